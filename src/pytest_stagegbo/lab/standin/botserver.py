#!/usr/bin/python3
"""A stand-in for General Bots' BotServer and BotUI: it does to the other containers what BotServer does.

Run as `botui` it is BotUI, otherwise BotServer. Needs Python's own library, and psycopg2 for PostgreSQL.

The server reads `/opt/gbo/bin/.env` (VAULT_ADDR, VAULT_TOKEN, PORT, DATA_DIR, WORK_DIR, POLL_SECONDS), asks Vault
for everything else, writes to tables, cache and drive, compiles the buckets' `.bas` files into the work folder and
answers /health and /api/health: 200 once every other service was reached, and not failed since; else 503.

`lab.builds` makes other builds of it: those have other values in `BUILD`.
"""

import datetime
import hashlib
import hmac
import http.client
import http.server
import importlib
import json
import os
import pathlib
import re
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
import xml.etree.ElementTree
from collections.abc import Callable
from typing import Any

Secret = dict[str, Any]
BUILD: dict[str, Any] = {"version": "1", "migrations": {}, "end": ""}
"""`migrations`: SQL by name, done once, before the first answer. `end`: after that it does `crash`, or `hang`."""
ENV_FILE = pathlib.Path("/opt/gbo/bin/.env")
DIAL_SECONDS = 3.0
WRITE_SECONDS = 1.0
BACKENDS = ("vault", "tables", "cache", "drive", "llm")


def say(text: str) -> None:
    print(f"{datetime.datetime.now().isoformat(timespec='milliseconds')} {text}", flush=True)


def read_env() -> dict[str, str]:
    settings = {}
    for line in ENV_FILE.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.lstrip().startswith("#"):
            settings[name.strip()] = value.strip().strip('"')
    return settings


class Vault:
    def __init__(self, address: str, token: str) -> None:
        parts = urllib.parse.urlsplit(address)
        self.host, self.port, self.token = parts.hostname or "", parts.port or 8200, token

    def secret(self, name: str) -> Secret:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DIAL_SECONDS)
        try:
            connection.request("GET", f"/v1/secret/data/gbo/{name}", headers={"X-Vault-Token": self.token})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise OSError(f"vault answers {answer.status} for secret/gbo/{name}")
            found: Secret = json.loads(body)["data"]["data"]
            return found
        finally:
            connection.close()


class Cache:
    """Valkey's protocol, as far as it is needed here."""

    def __init__(self, secret: Secret) -> None:
        self.sock = socket.create_connection((secret["host"], int(secret["port"])), timeout=DIAL_SECONDS)
        self.stream = self.sock.makefile("rb")
        if secret.get("password"):
            self.call("AUTH", secret["password"])

    def call(self, *words: object) -> Any:
        parts = [str(word).encode() for word in words]
        self.sock.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        return self.read()

    def read(self) -> Any:
        line = self.stream.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("cache closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise OSError(f"cache: {rest.decode()}")
        if kind == b"$":
            return None if rest == b"-1" else self.stream.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.read() for _ in range(int(rest))]
        return rest

    def close(self) -> None:
        self.stream.close()
        self.sock.close()


class Drive:
    """Amazon's S3 protocol with signature version 4, as far as it is needed here."""

    REGION = "us-east-1"

    def __init__(self, secret: Secret) -> None:
        self.host, self.port = secret["host"], int(secret["port"])
        self.access, self.secret = secret["access_key"], secret["secret_key"]
        self.kept: http.client.HTTPConnection | None = None
        """A connection for all calls. Without it each call leaves a port that stays in use for a minute."""

    def call(self, method: str, path: str, query: dict[str, str] | None = None, body: bytes = b"") -> bytes:
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        path = urllib.parse.quote(path)
        pairs = sorted((query or {}).items())
        arguments = "&".join(f"{urllib.parse.quote(k, safe='')}={urllib.parse.quote(v, safe='')}" for k, v in pairs)
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": f"{self.host}:{self.port}", "x-amz-content-sha256": digest, "x-amz-date": stamp}
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        request = "\n".join((method, path, arguments, lines, names, digest))
        scope = f"{day}/{self.REGION}/s3/aws4_request"
        text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
        key = b"AWS4" + self.secret.encode()
        for part in (day, self.REGION, "s3", "aws4_request", text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
        )
        connection = self.kept or http.client.HTTPConnection(self.host, self.port, timeout=DIAL_SECONDS)
        try:
            target = f"{path}?{arguments}" if arguments else path
            connection.request(method, target, body=body or None, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            if answer.status >= 300:
                raise OSError(f"drive answers {answer.status} to {method} {path}")
            return data
        finally:
            if connection is not self.kept:
                connection.close()

    def buckets(self) -> list[str]:
        return self._texts(self.call("GET", "/"), "Name")

    def objects(self, bucket: str) -> list[str]:
        return self._texts(self.call("GET", f"/{bucket}", {"list-type": "2"}), "Key")

    @staticmethod
    def _texts(document: bytes, tag: str) -> list[str]:
        return [e.text or "" for e in xml.etree.ElementTree.fromstring(document).iter() if e.tag.split("}")[-1] == tag]


def compile_basic(source: str) -> str:
    """The `.ast` of a `.bas`: not BotServer's format, but made from the source in the same place."""
    statements = []
    for number, line in enumerate(source.splitlines(), 1):
        words = re.findall(r'"[^"]*"|\S+', line)
        if words and not words[0].startswith("'") and words[0].upper() != "REM":
            statements.append({"line": number, "keyword": words[0].upper(), "arguments": words[1:]})
    return json.dumps({"version": 1, "statements": statements}, indent=1)


class Server:
    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        self.work = pathlib.Path(env.get("WORK_DIR", "/opt/gbo/work"))
        self.poll_seconds = float(env.get("POLL_SECONDS", "10"))
        self.name = socket.gethostname()
        self.vault = Vault(env["VAULT_ADDR"], env["VAULT_TOKEN"])
        self.states = dict.fromkeys(BACKENDS, "not reached yet")
        self.hosts: dict[str, str] = {}
        self.beats = 0

    def health(self) -> tuple[int, dict[str, Any]]:
        failing = {name: state for name, state in self.states.items() if state != "ok"}
        body = {
            "status": "unhealthy" if failing else "ok",
            "service": "botserver",
            "version": BUILD["version"],
            "backends": self.states,
            "hosts": self.hosts,
            "beats": self.beats,
        }
        return (503 if failing else 200), body

    def migrate(self) -> None:
        """Bring the database to this build's form. Waits for a database that can't be reached yet."""
        while BUILD["migrations"]:
            try:
                connection = self.connect_tables(self.secret("tables"))
            except Exception as error:
                say(f"migrations wait: {error}")
                time.sleep(WRITE_SECONDS)
                continue
            with connection.cursor() as cursor:
                cursor.execute("CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY)")
                for name, statement in BUILD["migrations"].items():
                    cursor.execute("SELECT 1 FROM migrations WHERE name = %s", (name,))
                    if not cursor.fetchone():
                        cursor.execute(statement)
                        cursor.execute("INSERT INTO migrations VALUES (%s)", (name,))
                        say(f"migrated: {name}")
            connection.close()
            return

    def run(self) -> None:
        tasks = {"tables": self.tables, "cache": self.cache, "drive": self.drive, "llm": self.llm}
        for name, task in tasks.items():
            threading.Thread(target=self.keep, args=(name, task), daemon=True).start()

    def keep(self, name: str, task: Callable[[Secret], None]) -> None:
        """Run a task for ever: anything that goes wrong shows in /health, is logged, and is tried again."""
        while True:
            try:
                secret = self.secret(name)
                self.hosts[name] = f"{secret['host']}:{secret['port']}"
                task(secret)
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                if self.states[name] != reason:
                    say(f"{name}: {reason}")
                self.states[name] = reason
            time.sleep(WRITE_SECONDS)

    def secret(self, name: str) -> Secret:
        try:
            secret = self.vault.secret(name)
        except Exception as error:
            self.states["vault"] = f"{type(error).__name__}: {error}"
            raise
        self.reached("vault")
        return secret

    def reached(self, name: str) -> None:
        if self.states[name] != "ok":
            say(f"{name}: reached")
        self.states[name] = "ok"

    def connect_tables(self, secret: Secret) -> Any:
        # Here and not above: it takes 50 ms that the first answer need not wait for.
        psycopg2 = importlib.import_module("psycopg2")
        connection = psycopg2.connect(
            host=secret["host"],
            port=secret["port"],
            user=secret["username"],
            password=secret["password"],
            dbname=secret["database"],
            connect_timeout=int(DIAL_SECONDS),
            application_name="botserver",
            # A peer that went away without a word must not hold this thread for ever.
            options="-c statement_timeout=5000",
            tcp_user_timeout=int(DIAL_SECONDS * 1000),
        )
        connection.autocommit = True
        return connection

    def tables(self, secret: Secret) -> None:
        connection = self.connect_tables(secret)
        try:
            while True:
                with connection.cursor() as cursor:
                    cursor.execute(
                        "INSERT INTO heartbeat (writer, address) VALUES (%s, %s)",
                        (self.name, connection.get_dsn_parameters()["host"]),
                    )
                self.beats += 1
                self.reached("tables")
                time.sleep(WRITE_SECONDS)
        finally:
            connection.close()

    def cache(self, secret: Secret) -> None:
        cache = Cache(secret)
        try:
            while True:
                cache.call("SET", "botserver:heartbeat", time.time())
                cache.call("INCR", "botserver:beats")
                cache.call("LPUSH", "botserver:recent", f"{self.name} {time.time():.3f}")
                cache.call("LTRIM", "botserver:recent", 0, 99)
                self.reached("cache")
                time.sleep(WRITE_SECONDS)
        finally:
            cache.close()

    def drive(self, secret: Secret) -> None:
        drive = Drive(secret)
        while True:
            for bucket in drive.buckets():
                if bucket.endswith(".gbai"):
                    self.monitor(drive, bucket)
            self.reached("drive")
            time.sleep(self.poll_seconds)

    def monitor(self, drive: Drive, bucket: str) -> None:
        bot = bucket.removesuffix(".gbai")
        drive.call("PUT", f"/{bucket}/{bot}.gblog/monitor.txt", body=f"{self.name} {time.time():.3f}\n".encode())
        for name in drive.objects(bucket):
            if name.startswith(f"{bot}.gbdialog/") and name.endswith(".bas"):
                target = self.work / bucket / pathlib.PurePosixPath(name).with_suffix(".ast")
                text = compile_basic(drive.call("GET", f"/{bucket}/{name}").decode(errors="replace"))
                if not target.exists() or target.read_text() != text:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    partial = target.with_suffix(".partial")
                    partial.write_text(text)
                    partial.replace(target)
                    say(f"compiled {bucket}/{name}")
            elif name == f"{bot}.gbot/config.csv":
                self.sync_config(bot, drive.call("GET", f"/{bucket}/{name}").decode(errors="replace"))

    def sync_config(self, bot: str, text: str) -> None:
        rows = [line.split(",", 1) for line in text.splitlines()[1:] if "," in line]
        connection = self.connect_tables(self.secret("tables"))
        try:
            with connection.cursor() as cursor:
                for key, value in rows:
                    cursor.execute(
                        "INSERT INTO bot_configuration (bot, config_key, config_value) VALUES (%s, %s, %s)"
                        " ON CONFLICT (bot, config_key) DO UPDATE SET config_value = excluded.config_value",
                        (bot, key.strip(), value.strip()),
                    )
        finally:
            connection.close()

    def llm(self, secret: Secret) -> None:
        while True:
            connection = http.client.HTTPConnection(secret["host"], int(secret["port"]), timeout=DIAL_SECONDS)
            try:
                connection.request("GET", "/health")
                status = connection.getresponse().status
            finally:
                connection.close()
            if status != 200:
                raise OSError(f"llm answers {status}")
            self.reached("llm")
            time.sleep(WRITE_SECONDS)


class Answerer(socketserver.ThreadingTCPServer):
    # Not http.server.HTTPServer: it looks its own name up, which takes seconds where no name server answers.
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def serve(port: int, health: Callable[[], tuple[int, dict[str, Any]]], title: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path in ("/health", "/api/health"):
                status, body = health()
                self.send(status, "application/json", json.dumps(body).encode())
            elif path == "/":
                self.send(200, "text/html", f"<!doctype html><title>{title}</title><h1>{title}</h1>".encode())
            else:
                self.send(404, "text/plain", b"not found\n")

        def send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    say(f"{title} listens on port {port}")
    Answerer(("0.0.0.0", port), Handler).serve_forever()


def main() -> None:
    if pathlib.Path(sys.argv[0]).name == "botui":
        serve(int(os.environ.get("UI_PORT", "5859")), lambda: (200, {"status": "ok", "service": "botui"}), "BotUI")
    env = read_env()
    server = Server(env)
    say(f"BotServer, build {BUILD['version']}")
    server.migrate()
    if BUILD["end"] == "crash":
        sys.exit(f"build {BUILD['version']} panicked: there is no setting GBO_MODE")
    if BUILD["end"] == "hang":
        say(f"build {BUILD['version']} waits for what never comes")
        threading.Event().wait()
    server.run()
    serve(int(env.get("PORT", "5858")), server.health, "BotServer")


if __name__ == "__main__":
    main()
