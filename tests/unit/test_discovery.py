"""What `init` concludes from a production: programs, roles, networks, and settings that differ from the defaults."""

from __future__ import annotations

import ast
import sys
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pytest_stagegbo
from pytest_stagegbo.cli import main
from pytest_stagegbo.cli.init import write_whole
from pytest_stagegbo.discovery.document import document, toml
from pytest_stagegbo.discovery.pools import advise
from pytest_stagegbo.discovery.programs import Command, Files, environment, service_of, unit_command
from pytest_stagegbo.discovery.proposal import Asked, Proposal, propose
from pytest_stagegbo.discovery.records import DEFAULT_FOLDERS, Environment, Service, Source, Survey
from pytest_stagegbo.errors import SourceMissing
from pytest_stagegbo.incus import Network, Pool
from pytest_stagegbo.incus.hostnet import HostNetwork
from pytest_stagegbo.settings import Layer, build

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

# Programs -------------------------------------------------------------------------------------------------------


def files(**texts: str) -> Files:
    """`files(**{"/etc/passwd": "..."})`"""
    folders: dict[str, set[str]] = {}
    for path in texts:
        folder, _, name = path.rpartition("/")
        while folder:
            folders.setdefault(folder, set()).add(name)
            folder, _, name = folder.rpartition("/")
    return Files(texts.get, lambda folder: tuple(sorted(folders.get(folder, ()))), lambda path: path in texts)


VAULT = """
storage "raft" { path = "/opt/gbo/data/vault" }
listener "tcp" {
  address = "0.0.0.0:8300"
  telemetry { unauthenticated_metrics_access = true }
  %s
}
api_addr = "https://10.0.2.12:8300"
"""


@pytest.mark.parametrize(
    ("command", "texts", "expected"),
    [
        pytest.param(
            Command("postgres", ("/usr/lib/postgresql/15/bin/postgres", "-D", "/data/pg"), "pg.service", ports=(5433,)),
            {},
            {"protocol": "postgresql", "port": 5433, "data": "/data/pg", "sure": "seen"},
            id="PostgreSQL that runs",
        ),
        pytest.param(
            Command("postgres", ("/usr/bin/postgres", "-D", "/data/pg"), "pg.service"),
            {"/data/pg/postgresql.auto.conf": "port = '5434'\n", "/data/pg/postgresql.conf": "port = 5435\n"},
            {"protocol": "postgresql", "port": 5434, "data": "/data/pg", "sure": "likely"},
            id="PostgreSQL that does not run",
        ),
        pytest.param(
            Command(
                "valkey-server",
                ("valkey-server *:6380",),
                "v.service",
                ports=(6380, 16380),
                configured=("v", "/c.conf"),
            ),
            {"/c.conf": "requirepass secret\nport 6380\ndir /srv/valkey\n"},
            {"protocol": "valkey", "port": 6380, "tls": False, "data": "/srv/valkey"},
            id="Valkey",
        ),
        pytest.param(
            Command("redis-server", ("redis-server",), "r.service", ports=(6390,), configured=("r", "/c.conf")),
            {"/c.conf": "port 0\ntls-port 6390\ndir /srv/r\n"},
            {"protocol": "valkey", "port": 6390, "tls": True},
            id="Redis with TLS alone",
        ),
        pytest.param(
            Command("postgres", ("/usr/bin/postgres", "-D", "/data/pg", "-p", "$PORT"), "pg.service"),
            {"/data/pg/postgresql.conf": "port = %PORT%\n"},
            {"protocol": "postgresql", "port": 5432},
            id="PostgreSQL whose port is no number",
        ),
        pytest.param(
            Command("postgres", ("/usr/bin/postgres",), "pg.service"),
            {
                "/etc/postgresql/15/main/postgresql.conf": "data_directory = '/srv/my data'   # here\nport = 5433\n",
                "/etc/postgresql/15/main/x": "",
            },
            {"port": 5433, "data": "/srv/my data"},
            id="PostgreSQL in a folder with a space",
        ),
        pytest.param(
            Command("valkey-server", ("v", "/c.conf", "--tls-port", "x"), "v.service"),
            {"/c.conf": 'port many\ndir "/srv/my data"\n'},
            {"protocol": "valkey", "port": 6379, "tls": False, "data": "/srv/my data"},
            id="Valkey with a folder in quotes, and no port",
        ),
        pytest.param(
            Command(
                "rclone",
                ("rclone", "serve", "s3", "--cert", "/etc/x.crt", "--key=/etc/x.key", "--config", "/etc/r", "/srv/d"),
                "r.service",
                ports=(8080,),
            ),
            {},
            {"protocol": "s3", "data": "/srv/d", "tls": True},
            id="rclone with certificates",
        ),
        pytest.param(
            Command("llama-server", ("llama-server", "--port", "99999"), "llm.service"),
            {},
            {"protocol": "http", "port": 8080},
            id="a port that there is not",
        ),
        pytest.param(
            Command("vault", ("vault", "server", "-config=/v.hcl"), "vault.service", ports=(8300, 8301)),
            {"/v.hcl": VAULT % 'tls_cert_file = "/x.crt"'},
            {"protocol": "vault", "port": 8300, "tls": True, "sure": "seen"},
            id="Vault with TLS",
        ),
        pytest.param(
            Command("bao", ("bao", "server", "-config", "/etc/bao"), "bao.service", ports=(8300,)),
            {"/etc/bao/main.hcl": VAULT % "tls_disable = true"},
            {"protocol": "vault", "port": 8300, "tls": False},
            id="OpenBao without, configured by a folder",
        ),
        pytest.param(
            Command("vault", ("vault", "server", "-config=/v.json"), "vault.service"),
            {"/v.json": '{"listener": [{"tcp": {"address": "0.0.0.0:8200", "tls_disable": "1"}}]}'},
            {"port": 8200, "tls": False, "sure": "likely"},
            id="Vault configured in JSON",
        ),
        pytest.param(
            Command("vault", ("vault", "server", "-config=/secret.hcl"), "vault.service", ports=(8200,)),
            {},
            {"port": 8200, "tls": False, "sure": "unsure"},
            id="Vault whose configuration can't be read",
        ),
        pytest.param(
            Command(
                "minio", ("minio", "server", "--console-address", ":9001", "/srv/data"), "m.service", ports=(9000, 9001)
            ),
            {},
            {"protocol": "s3", "port": 9000, "data": "/srv/data", "tls": False},
            id="MinIO with a console",
        ),
        pytest.param(
            Command(
                "minio",
                ("minio", "server", "/srv/data", "--address", ":9443"),
                "m.service",
                ports=(9443, 39001),
                home="/m",
            ),
            {"/m/.minio/certs/public.crt": ""},
            {"port": 9443, "tls": True, "data": "/srv/data"},
            id="MinIO with certificates",
        ),
        pytest.param(
            Command("minio", ("minio", "server", "/disk{1...4}"), "m.service", ports=(9000,)),
            {},
            {"port": 9000, "data": ""},
            id="MinIO on several disks",
        ),
        pytest.param(
            Command("botserver", ("/opt/gbo/bin/botserver",), "botserver.service", ports=(6060, 8080)),
            {"/opt/gbo/bin/.env": "VAULT_ADDR=http://10.0.2.12:8200\nPORT=8080\n"},
            {"protocol": "http", "port": 8080, "path": "/health", "sure": "seen"},
            id="BotServer that also listens elsewhere",
        ),
        pytest.param(
            Command("python3", ("python3", "x"), "llm.service", ports=(8081,)),
            {},
            {"protocol": "http", "port": 8081, "sure": "likely"},
            id="a model server of an unknown program",
        ),
        pytest.param(
            Command("nginx", ("nginx",), "nginx.service", ports=(80, 443)),
            {},
            {"protocol": "tcp", "sure": "unsure"},
            id="others",
        ),
    ],
)
def test_a_program_s_protocol_port_and_data(command: Command, texts: dict[str, str], expected: dict[str, Any]) -> None:
    found = service_of(command, files(**texts))
    assert found is not None
    assert {name: getattr(found, name) for name in expected} == expected
    assert "secret" not in found.why.replace("/secret.hcl", "")


def test_a_unit_says_what_it_starts() -> None:
    text = (
        "[Service]\nUser=minio\nEnvironmentFile=-/etc/default/minio\nWorkingDirectory=/srv\n"
        "ExecStart=-/usr/local/bin/minio server \\\n  $MINIO_OPTS ${MINIO_VOLUMES}\n"
        "StandardOutput=append:/srv/log/minio.log\n[Unit]\nRequires=disks.service system.slice x@%i.service\n"
    )
    given = files(
        **{
            "/etc/default/minio": 'MINIO_OPTS="--address :9000 --console-address :9001"\nMINIO_VOLUMES=/srv/data\n',
            "/etc/passwd": "root:x:0:0::/root:/bin/sh\nminio:x:9:9::/home/m:/bin/false\n",
        }
    )
    command = unit_command("minio.service", text, given)
    assert command is not None
    assert command.argv[1:] == ("server", "--address", ":9000", "--console-address", ":9001", "/srv/data")
    assert (command.home, command.folder, command.logs) == ("/home/m", "/srv", ("/srv/log",))
    assert command.requires == ("disks.service",)
    service = service_of(command, given)
    assert service is not None
    assert (service.port, service.data, service.unit) == (9000, "/srv/data", "minio.service")


def test_of_the_environment_of_botserver_no_token_is_kept() -> None:
    command = Command("botserver", ("/srv/gbo/botserver",), "botserver.service")
    found = environment(
        command, files(**{"/srv/gbo/.env": "VAULT_ADDR=https://u:pw@v:8200\nVAULT_TOKEN=hvs.1\nPORT=80\n"})
    )
    assert found == Environment("/srv/gbo/.env", "https://v:8200", 80, "")


# Conclusions ----------------------------------------------------------------------------------------------------

POOL = Pool("tank", "btrfs", "/dev/sdb", 100 << 30, 10 << 30)


def service(protocol: Any, port: int, unit: str, **more: Any) -> Service:
    return Service(protocol, port, unit, f"{unit}.service", f"{unit} listens on {port}", **more)


SIX: dict[str, tuple[Service, ...]] = {
    "system": (
        service("http", 5858, "botserver", path="/health", executable="/opt/gbo/bin/botserver"),
        service("http", 5859, "botui", path="/health", executable="/opt/gbo/bin/botui"),
    ),
    "tables": (service("postgresql", 5432, "postgresql", data="/opt/gbo/data/pgdata"),),
    "vault": (service("vault", 8200, "vault"),),
    "cache": (service("valkey", 6379, "valkey", data="/opt/gbo/data/valkey"),),
    "drive": (service("s3", 9100, "minio", data="/opt/gbo/data/minio"),),
    "llm": (service("http", 8081, "llm", path="/health"),),
}
ENVIRONMENT = Environment("/opt/gbo/bin/.env", "http://10.0.2.12:8200", 5858, "/opt/gbo/work")


def source(name: str, role: str, address: str, **more: Any) -> Source:
    environment = ENVIRONMENT if role == "system" else None
    found: dict[str, Any] = {
        "services": SIX[role],
        "environment": environment,
        "folders": frozenset(DEFAULT_FOLDERS),
        **more,
    }
    return Source("default", name, "Running", "tank", (IPv4Interface(address),) if address else (), "running", **found)


def production(**changes: Source) -> list[Source]:
    """General Bots' six, in their places."""
    return [changes.get(role, source(role, role, f"10.0.2.{10 + at}/24")) for at, role in enumerate(SIX)]


def look(sources: list[Source], **more: Any) -> Survey:
    found: dict[str, Any] = {
        "networks": {"prodbr0": Network("prodbr0", "default", "bridge", True, {"ipv4.address": "10.0.2.1/24"}, "", ())},
        "host": (HostNetwork(IPv4Network("10.0.2.0/24"), "prodbr0", IPv4Address("10.0.2.1")),),
        "pools": {"tank": POOL},
        "pool_names": frozenset({"tank", "stage"}),
        "foreign": frozenset({"default"}),
        **more,
    }
    by_project: dict[str, list[Source]] = {}
    for each in sources:
        by_project.setdefault(each.project, []).append(each)
    return Survey({name: tuple(found) for name, found in by_project.items()}, **found)


def conclude(survey: Survey, asked: Asked | None = None, **answers: str) -> Proposal:
    return propose(survey, asked or Asked(), answers)


def written(survey: Survey, proposal: Proposal) -> dict[str, Any]:
    """The file's content. It makes the very settings that were concluded."""
    values: dict[str, Any] = tomllib.loads(document(proposal, advise(survey, proposal)))
    assert build([Layer("stagegbo.toml", values)]) == proposal.settings
    return values


def test_of_a_production_as_the_defaults_are_nothing_is_written() -> None:
    survey = look(production())
    proposal = conclude(survey)
    assert proposal.conclusions == ()
    assert proposal.questions == ()
    text = document(proposal, advise(survey, proposal))
    assert all(line.startswith("#") or not line for line in text.splitlines())
    assert "`incus storage create stage2 btrfs size=20GiB`" in text


def test_what_differs_is_written_and_nothing_else() -> None:
    """Other names and ports, TLS, a second database, no model server."""
    database = IPv4Address("10.0.2.51")
    sources = [
        replace(source("bot", "system", "10.0.2.50/24"), connections=frozenset({(database, 5432)})),
        source("alpha", "tables", "10.0.2.20/24"),
        source("beta", "tables", "10.0.2.51/24"),
        source("safe", "vault", "10.0.2.52/24", services=(replace(SIX["vault"][0], tls=True),)),
        source("cache", "cache", "10.0.2.13/24"),
        source("minio", "drive", "10.0.2.53/24", services=(replace(SIX["drive"][0], port=9000, data="/srv/data"),)),
        source("mail", "llm", "10.0.2.54/24", services=(service("tcp", 25, "postfix", sure="unsure"),)),
    ]
    survey = look(sources)
    proposal = conclude(survey)
    assert written(survey, proposal) == {
        "containers": {
            "llm": False,
            "system": {
                "source": "bot",
                "production_address": "10.0.2.50",
                "needs": ["tables", "vault", "cache", "drive", "alpha"],
            },
            "tables": {"source": "beta", "production_address": "10.0.2.51"},
            "vault": {
                "source": "safe",
                "production_address": "10.0.2.52",
                "probes": [{"protocol": "vault", "port": 8200, "tls": True}],
            },
            "drive": {
                "source": "minio",
                "production_address": "10.0.2.53",
                "probes": [{"protocol": "s3", "port": 9000}],
                "wipe": ["/srv/data"],
            },
            "alpha": {
                "address": "10.0.3.20",
                "production_address": "10.0.2.20",
                "units": ["postgresql.service"],
                "probes": [{"protocol": "postgresql", "port": 5432}],
                "data": "/opt/gbo/data/pgdata",
                "reset": "hot",
            },
        }
    }
    assert [each.name for each, _ in proposal.roles.left_out] == ["mail"]
    assert [question.key for question in proposal.questions] == ["clone.mail"]
    assert "# Not cloned: mail; it runs postfix on 25," in document(proposal, None)
    more = conclude(survey, None, **{"clone.mail": "yes"}).settings.containers["mail"]
    assert [(probe.protocol, probe.port) for probe in more.probes] == [("tcp", 25)]


def test_two_databases_that_are_alike_are_a_question() -> None:
    sources = [
        *production(tables=source("first", "tables", "10.0.2.11/24")),
        source("second", "tables", "10.0.2.30/24"),
    ]
    proposal = conclude(look(sources))
    (question,) = proposal.questions
    assert (question.key, question.choices) == ("role.tables", ("first", "second"))
    assert any("which one is tables" in doubt for doubt in proposal.doubts)
    answered = conclude(look(sources), None, **{"role.tables": "second"})
    assert answered.settings.containers["tables"].source == "second"
    assert answered.settings.containers["first"].address == IPv4Address("10.0.3.20")
    assert not any("which one" in doubt for doubt in answered.doubts)


def test_a_container_named_like_another_role_keeps_out_of_its_way() -> None:
    sources = production(vault=source("vault", "vault", "10.0.2.12/24"), llm=source("llm", "tables", "10.0.2.15/24"))
    proposal = conclude(look(sources))
    assert proposal.settings.containers["other-llm"].source == "llm"
    assert "llm" not in proposal.settings.containers


def test_the_project_with_the_most_kinds_is_production_and_equals_are_a_question() -> None:
    few = [replace(each, project="OTHER") for each in production()[:2]]
    assert conclude(look([*few, *production()])).source_project == "default"
    assert conclude(look([*few, *production()]), Asked("OTHER")).settings.source_project == "OTHER"
    same = [replace(each, project="PROD") for each in production()]
    proposal = conclude(look([*same, *production()]))
    assert [question.key for question in proposal.questions] == ["project"]
    assert conclude(look([*same, *production()]), None, project="PROD").settings.source_project == "PROD"


def test_without_a_container_of_general_bots_there_is_an_error_that_names_what_is_there() -> None:
    web = source("web", "llm", "10.0.2.9/24", services=(service("tcp", 80, "nginx", sure="unsure"),))
    with pytest.raises(SourceMissing, match="default/web"):
        conclude(look([web]))
    with pytest.raises(SourceMissing, match="web: it runs nginx on 80"):
        conclude(look([web]), Asked("default"))


def test_what_can_not_be_seen_is_said_and_gets_its_default() -> None:
    blind = [
        replace(each, name=f"gbo-{each.name}", services=(), sight="names", blind="the daemon is on another host")
        for each in production()
    ]
    proposal = conclude(look(blind))
    assert proposal.settings.containers["drive"].source == "gbo-drive"
    assert {each.sure for each in proposal.roles.assigned} == {"unsure"}
    assert sum("can't be seen from here (the daemon is on another host)" in doubt for doubt in proposal.doubts) == 6
    assert "# NOT SURE: its name is like drive" in document(proposal, None)


def test_a_second_network_of_production_is_held_by_one_that_holds_both() -> None:
    sources = production(drive=source("drive", "drive", "10.0.4.14/24"))
    survey = look(sources)
    proposal = conclude(survey)
    found = proposal.settings.network
    assert found.production == IPv4Network("10.0.0.0/21")
    assert not found.subnet.overlaps(found.production)
    assert str(proposal.settings.containers["drive"].production_address) == "10.0.4.14"
    written(survey, proposal)


def test_a_second_network_with_somebody_else_in_between_is_a_gap_that_is_named() -> None:
    sources = production(drive=source("drive", "drive", "10.0.4.14/24"))
    lan = HostNetwork(IPv4Network("10.0.5.0/24"), "eth0", IPv4Address("10.0.5.2"))
    proposal = conclude(look(sources, host=(lan,)))
    assert proposal.settings.network.production == IPv4Network("10.0.2.0/24")
    assert proposal.settings.containers["drive"].production_address is None
    assert any("10.0.4.14 is outside of 10.0.2.0/24" in doubt for doubt in proposal.doubts)


def test_a_subnet_and_a_bridge_that_somebody_has_are_not_taken() -> None:
    taken = Network("stagebr0", "default", "bridge", True, {"ipv4.address": "10.0.3.1/24"}, "", ())
    found = conclude(look(production(), networks={"stagebr0": taken})).settings.network
    assert found.name == "stagebrb0"
    assert not found.subnet.overlaps(IPv4Network("10.0.3.0/24"))
    own = conclude(look(production(), networks={"stagebr0": taken}, stages={"STAGE-GBO": ("stagebr0", "10.0.7.1/24")}))
    assert (own.settings.network.name, str(own.settings.network.address)) == ("stagebr0", "10.0.7.1/24")


def test_what_settings_refuse_is_said_and_all_else_is_written() -> None:
    whole_mount = (replace(SIX["drive"][0], data="/mnt", logs=("/opt",), requires=("disks.service",)),)
    survey = look(production(drive=source("drive", "drive", "10.0.2.14/24", services=whole_mount)))
    proposal = conclude(survey)
    assert written(survey, proposal) == {"containers": {"drive": {"units": ["minio.service", "disks.service"]}}}
    assert [doubt for doubt in proposal.doubts if "containers.drive.wipe" in doubt and "'/mnt'" in doubt]
    assert [doubt for doubt in proposal.doubts if "containers.drive.logs" in doubt]


def test_a_large_source_gets_a_larger_limit() -> None:
    survey = look(production(tables=source("tables", "tables", "10.0.2.11/24", used=12 * 10**9)))
    assert written(survey, conclude(survey)) == {"containers": {"tables": {"disk_limit": "20GB"}}}


def test_a_pool_without_copy_on_write_is_what_an_own_pool_helps_most() -> None:
    survey = look(production(), pools={"tank": replace(POOL, driver="dir")})
    found = advise(survey, conclude(survey))
    assert found is not None
    assert "tank has no copy-on-write" in found.text


def test_values_are_written_as_toml() -> None:
    value = {"a": 'quotes " \\ \n\x7f é', "b": [True, 1], "c": [{"d": "e"}]}
    assert tomllib.loads(f"x = {toml(value)}") == {"x": value}


def test_a_line_of_a_comment_is_one_line() -> None:
    odd = replace(source("a", "llm", "10.0.2.9/24"), name="x\ny", services=(service("tcp", 80, "n\n[vault]"),))
    survey = look([*production(), odd])
    written(survey, conclude(survey))


# The command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_terminal_and_without_yes_it_asks_nobody(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_a_file_that_exists_stays_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stagegbo.toml").write_text("project = 'MINE'\n")
    assert main(["init", "--yes"]) == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "stagegbo.toml").read_text() == "project = 'MINE'\n"


def test_a_folder_gets_no_second_file_of_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pyproject.toml").write_text("[tool.stagegbo]\nproject = 'MINE'\n")
    assert main(["init", "--yes"]) == 2
    assert "--output" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["pyproject.toml"]


def test_who_may_read_the_file_stays_as_it_was(folder: Path) -> None:
    """`vault.unseal_command` may hold a secret."""
    mine = folder / "mine.toml"
    mine.write_text("old")
    mine.chmod(0o600)
    write_whole(mine, "new")
    assert (mine.read_text(), mine.stat().st_mode & 0o777) == ("new", 0o600)
    assert [path.name for path in folder.iterdir()] == ["mine.toml"]


def test_the_room_speaks_to_no_service() -> None:
    """Not a packet goes to production: nothing here opens a socket or runs a program."""
    root = Path(pytest_stagegbo.__file__).parent
    for path in (*(root / "discovery").glob("*.py"), root / "incus/guestview.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {"socket", "subprocess", "http", "urllib"} & {name.partition(".")[0] for name in names}, path
            assert not [
                name for name in names if name.startswith(("pytest_stagegbo.services", "pytest_stagegbo.forward"))
            ]
