"""Makes a bare container one of production's six: network, configuration, units, data. Runs once, inside of it.

Reads one JSON object from standard input: role, address, gateway, credentials of all services, and for the
container `system` the text of its scripts and a token for Vault.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Order = dict[str, Any]

GBO = pathlib.Path("/opt/gbo")
UNITS = pathlib.Path("/etc/systemd/system")
UNIT = """[Unit]
Description={description}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type={type}
User={user}
Group={user}
WorkingDirectory=/opt/gbo
{service}
StandardOutput=append:/opt/gbo/logs/{name}/{name}.log
StandardError=append:/opt/gbo/logs/{name}/{name}.log
Restart=on-failure
RestartSec=1
TimeoutStopSec=20

[Install]
WantedBy=multi-user.target
"""


def run(*argv: str, text: str | None = None) -> str:
    done = subprocess.run(argv, input=text, text=True, capture_output=True, check=False, cwd="/")
    if done.returncode:
        sys.exit(f"{' '.join(argv)[:200]}: status {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout


def put(path: pathlib.Path, text: str, user: str = "root", mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    shutil.chown(path, user, user)
    path.chmod(mode)


def folder(path: pathlib.Path, user: str, mode: int = 0o755) -> None:
    path.mkdir(parents=True, exist_ok=True)
    shutil.chown(path, user, user)
    path.chmod(mode)


def own(path: pathlib.Path, user: str) -> None:
    """Give a whole folder to a service's user."""
    for entry in [path, *path.rglob("*")]:
        shutil.chown(entry, user, user)


def unit(name: str, description: str, user: str, service: str, *, kind: str = "simple") -> None:
    put(
        UNITS / f"{name}.service",
        UNIT.format(name=name, description=description, user=user, service=service, type=kind),
    )


def until(question: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            sys.exit(f"gave up waiting for {what} after {seconds} s")
        time.sleep(0.02)


def network(order: Order) -> None:
    put(
        pathlib.Path("/etc/network/interfaces"),
        "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet static\n"
        f"    address {order['address']}\n    netmask 255.255.255.0\n    gateway {order['gateway']}\n"
        "    dns-nameservers 8.8.8.8 8.8.4.4\n",
    )
    run("systemctl", "restart", "networking.service")


def start(*names: str) -> None:
    # Links instead of `systemctl enable`, which reloads the manager once for every unit.
    wants = UNITS / "multi-user.target.wants"
    for name in names:
        link = wants / f"{name}.service"
        if not link.is_symlink():
            link.symlink_to(UNITS / f"{name}.service")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", *(f"{name}.service" for name in names))


def habits(user: str) -> None:
    """What real servers do by themselves; a clone that does it too acts in production's name."""
    put(pathlib.Path("/etc/cron.d/gbo-nightly"), "* * * * * root date -Is >> /var/log/gbo-cron.log\n")
    rotation = "/opt/gbo/logs/*/*.log {\n  daily\n  rotate 7\n  missingok\n  copytruncate\n}\n"
    put(pathlib.Path("/etc/logrotate.d/gbo"), rotation)
    folder(GBO / "logs/archive", user, 0o2750)
    put(GBO / "logs/archive/last-year.log", "a line of production's past\n", user, 0o600)


def tables(order: Order) -> None:
    account = order["credentials"]["tables"]
    data = GBO / "data/pgdata"
    bin_dir = "/usr/lib/postgresql/15/bin"
    folder(data, "postgres", 0o700)
    folder(GBO / "logs/postgresql", "postgres", 0o2770)
    options = ["--encoding=UTF8", "--locale=C.UTF-8", "--auth-local=peer", "--auth-host=scram-sha-256", "--no-sync"]
    run("runuser", "-u", "postgres", "--", f"{bin_dir}/initdb", "-D", str(data), *options)
    put(
        data / "postgresql.auto.conf",
        "listen_addresses = '*'\nport = 5432\nlogging_collector = off\nmax_connections = 200\n",
        "postgres",
        0o600,
    )
    with (data / "pg_hba.conf").open("a") as stream:
        stream.write("host all all 10.0.0.0/8 scram-sha-256\n")
    service = f"ExecStart={bin_dir}/postgres -D {data}\nExecReload=/bin/kill -HUP $MAINPID\n"
    service += "KillMode=mixed\nKillSignal=SIGINT\nRuntimeDirectory=postgresql\nRuntimeDirectoryPreserve=yes"
    unit("postgresql", "PostgreSQL", "postgres", service, kind="notify")
    start("postgresql")
    user, password, database = account["username"], account["password"], account["database"]
    psql = ["runuser", "-u", "postgres", "--", "psql", "-qX", "-v", "ON_ERROR_STOP=1"]
    run(*psql, text=f"CREATE ROLE {user} LOGIN PASSWORD '{password}';\nCREATE DATABASE {database} OWNER {user};\n")
    run(
        *psql,
        database,
        text=f"""
        SET ROLE {user};
        CREATE TABLE bots (id integer PRIMARY KEY, name text UNIQUE NOT NULL, created timestamptz DEFAULT now());
        CREATE TABLE users (id integer PRIMARY KEY, name text NOT NULL, mail text UNIQUE NOT NULL);
        CREATE TABLE message_history (id bigserial PRIMARY KEY, user_id integer REFERENCES users, content text);
        CREATE TABLE bot_configuration (bot text, config_key text, config_value text, PRIMARY KEY (bot, config_key));
        CREATE TABLE heartbeat (
            id bigserial PRIMARY KEY, at timestamptz DEFAULT now(), writer text, address text,
            client inet DEFAULT inet_client_addr()
        );
        INSERT INTO bots VALUES (1, 'default'), (2, 'sales');
        INSERT INTO users SELECT n, 'user ' || n, 'user' || n || '@production.invalid' FROM generate_series(1, 500) n;
        INSERT INTO message_history (user_id, content)
            SELECT 1 + n % 500, 'message ' || n FROM generate_series(1, 5000) n;
        """,
    )


def cache(order: Order) -> None:
    account = order["credentials"]["cache"]
    data = GBO / "data/valkey"
    folder(data, "valkey", 0o750)
    folder(GBO / "logs/valkey", "valkey", 0o700)
    put(
        GBO / "conf/valkey.conf",
        f"bind 0.0.0.0\nport {account['port']}\nrequirepass {account['password']}\ndir {data}\n"
        "dbfilename dump.rdb\nsave 60 1\nappendonly yes\nappenddirname appendonlydir\nappendfsync everysec\n"
        "supervised systemd\ndaemonize no\nlogfile /opt/gbo/logs/valkey/valkey-server.log\n",
        "valkey",
        0o640,
    )
    unit("valkey", "Valkey", "valkey", f"ExecStart=/usr/bin/valkey-server {GBO}/conf/valkey.conf", kind="notify")
    start("valkey")

    def client(text: str) -> None:
        command = ["env", f"REDISCLI_AUTH={account['password']}", "valkey-cli", "-p", str(account["port"])]
        answer = run(*command, text=text)
        if "ERR" in answer or "NOAUTH" in answer:
            sys.exit(answer)

    client("\n".join(f"SET session:{n} production-session-{n}" for n in range(200)) + "\nSAVE\n")
    client("\n".join(f"HSET bot:{n} name bot-{n} state running" for n in range(50)) + "\n")  # in the AOF alone


def vault(order: Order) -> None:
    data = GBO / "data/vault"
    folder(data, "vault", 0o700)
    folder(GBO / "logs/vault", "vault", 0o711)
    put(
        GBO / "conf/vault.hcl",
        f'storage "raft" {{\n  path = "{data}"\n  node_id = "vault"\n  performance_multiplier = 1\n}}\n'
        'listener "tcp" {\n  address = "0.0.0.0:8200"\n  tls_disable = true\n}\n'
        f'api_addr = "http://{order["address"]}:8200"\ncluster_addr = "https://127.0.0.1:8201"\n'
        "ui = false\n",
        "vault",
        0o640,
    )
    unit("vault", "Vault", "vault", f"ExecStart={GBO}/bin/vault server -config={GBO}/conf/vault.hcl\nKillSignal=SIGINT")
    start("vault")


DIALOGS = {
    "start.bas": 'REM greets\nTALK "Welcome to production"\nHEAR name\nTALK "Hello " + name\n',
    "report.bas": 'SET SCHEDULE "0 8 * * *"\nSEND MAIL "boss@production.invalid", "Daily report"\n',
}


def drive(order: Order) -> None:
    account = order["credentials"]["drive"]
    data = GBO / "data/minio"
    for bot in ("default", "sales"):
        bucket = data / f"{bot}.gbai"
        for name, text in DIALOGS.items():
            put(bucket / f"{bot}.gbdialog" / name, text)
        put(bucket / f"{bot}.gbot/config.csv", f"name,value\nllm-model,smollm2\nbot-title,The {bot} bot\n")
        put(bucket / f"{bot}.gbkb/handbook/chapter-1.md", "# Handbook\n" + "production's knowledge\n" * 2000)
    put(data / ".minio.sys/format.json", '{"version": "1", "format": "fs"}\n', mode=0o600)
    put(data / ".minio.sys/config/iam/format.json", '{"version": 1}\n', mode=0o600)
    own(data, "minio")
    data.chmod(0o750)
    folder(GBO / "logs/minio", "minio", 0o750)
    put(
        GBO / "conf/minio.env",
        # rclone takes a list here, written as CSV: hence the quotes within the quotes.
        f"RCLONE_AUTH_KEY='\"{account['access_key']},{account['secret_key']}\"'\nRCLONE_CONFIG=/dev/null\n",
        "minio",
        0o600,
    )
    serve = f"{GBO}/bin/rclone serve s3 {data} --addr :{account['port']} --dir-cache-time 1s --cache-dir /tmp/rclone"
    unit("minio", "MinIO", "minio", f"EnvironmentFile={GBO}/conf/minio.env\nExecStart={serve}")
    start("minio")


def llm(order: Order) -> None:
    folder(GBO / "logs/llm", "llm", 0o1777)
    put(GBO / "bin/llm.py", order["scripts"]["llm.py"])
    command = f"/usr/bin/python3 {GBO}/bin/llm.py {order['credentials']['llm']['port']}"
    unit("llm", "llama.cpp", "llm", f"Environment=PYTHONPATH={GBO}/lib PYTHONDONTWRITEBYTECODE=1\nExecStart={command}")
    start("llm")


def system(order: Order) -> None:
    for name in ("botserver", "botui"):
        put(GBO / "bin" / name, order["scripts"]["botserver.py"], "gbo", 0o755)
    put(
        GBO / "bin/.env",
        f"VAULT_ADDR={order['vault']}\nVAULT_TOKEN={order['token']}\nPORT=5858\n"
        f"DATA_DIR={GBO}/data\nWORK_DIR={GBO}/work\nPOLL_SECONDS=10\n",
        "gbo",
        0o600,
    )
    folder(GBO / "data", "gbo")
    folder(GBO / "work", "gbo", 0o750)
    folder(GBO / "work/.state", "gbo", 0o700)
    put(GBO / "work/.state/schedule.json", '{"next": "2020-01-01T08:00:00"}\n', "gbo", 0o600)
    old = GBO / "work/retired.gbai/retired.gbdialog"
    put(old / "start.ast", '{"version": 1, "statements": []}\n')
    own(GBO / "work/retired.gbai", "gbo")
    for name, title in (("botserver", "BotServer"), ("botui", "BotUI")):
        folder(GBO / "logs" / name, "gbo", 0o755)
        unit(name, title, "gbo", f"ExecStart={GBO}/bin/{name}")
    start("botserver", "botui")


ROLES = {
    "system": (system, "gbo"),
    "tables": (tables, "postgres"),
    "vault": (vault, "vault"),
    "cache": (cache, "valkey"),
    "drive": (drive, "minio"),
    "llm": (llm, "llm"),
}


def main() -> None:
    order = json.load(sys.stdin)
    until(pathlib.Path("/run/systemd/private").exists, "systemd")
    network(order)
    role, user = ROLES[order["role"]]
    habits(user)
    role(order)


main()
