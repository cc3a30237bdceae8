"""Well-formed settings that contradict themselves, or could cost data, are refused before anything is done."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings import Layer, Settings, build
from pytest_stagegbo.settings.checks import check

OTHER_NETWORK = {"network.address": "10.0.7.1/24"}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        build([Layer.from_dotted("f", values)])
    return caught.value.message


def test_the_defaults_have_no_problem() -> None:
    assert check(Settings()) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # projects
        pytest.param(
            {"project": "PROD", "source_project": "PROD"},
            "f project: the stage's project 'PROD' is the source project too; give the stage its own "
            "(see also f source_project)",
            id="stage-is-production",
        ),
        pytest.param(
            {"source_project": "STAGE-GBO"},
            "f source_project: the stage's project 'STAGE-GBO' is the source project too; give the stage its own "
            "(see also project (default))",
            id="production-is-stage",
        ),
        pytest.param(
            {"project": "default", "source_project": "PROD-GBO"},
            "f project: the stage cannot live in Incus's own project 'default'; name one that can go again",
            id="stage-in-default",
        ),
        pytest.param({"project": ""}, "f project: '' cannot name an Incus project: it is empty", id="no-project"),
        pytest.param({"project": ".."}, "f project: '..' cannot name an Incus project: it is reserved", id="dots"),
        # network
        pytest.param(
            {"network.name": "a-bridge-for-the-stage"},
            "f network.name: 'a-bridge-for-the-stage' cannot name a network interface: 2 to 15 letters, digits, '-', "
            "'_' or '.' (Linux's limit)",
            id="long-network-name",
        ),
        pytest.param(
            {"network.address": "10.0.2.200/24"},
            "f network.address: the bridge's address 10.0.2.200 is inside production's network 10.0.2.0/24 "
            "(see also network.production (default))",
            id="bridge-in-production",
        ),
        pytest.param(
            {"network.production": "10.0.0.0/16"},
            "f network.production: the bridge's address 10.0.3.1 is inside production's network 10.0.0.0/16 "
            "(see also network.address (default))",
            id="production-around-bridge",
        ),
        pytest.param(
            {"network.address": "10.0.3.1/23"},
            "f network.address: the stage's subnet 10.0.2.0/23 overlaps production's network 10.0.2.0/24 "
            "(see also network.production (default))",
            id="overlap",
        ),
        pytest.param(
            {"network.address": "10.0.7.0/24"},
            "f network.address: 10.0.7.0 is the network address of 10.0.7.0/24; the bridge needs one of its own, such "
            "as 10.0.7.1/24",
            id="bridge-at-network-address",
        ),
        pytest.param(
            {"network.address": "10.0.7.255/24"},
            "f network.address: 10.0.7.255 is the broadcast address of 10.0.7.0/24; the bridge needs one of its own, "
            "such as 10.0.7.1/24",
            id="bridge-at-broadcast-address",
        ),
        pytest.param(
            {"network.address": "127.0.7.1/24"},
            "f network.address: 127.0.7.1 cannot be given to a bridge; use a private one such as 10.0.3.1/24",
            id="loopback",
        ),
        # incus
        pytest.param(
            {"incus.endpoint": "http://incus:8443"},
            "f incus.endpoint: 'http://incus:8443' is neither the absolute path of a socket nor an https:// address",
            id="plain-http",
        ),
        pytest.param(
            {"incus.endpoint": "unix:///run/incus.socket"},
            "f incus.endpoint: 'unix:///run/incus.socket' is neither the absolute path of a socket nor an https:// "
            "address; write the socket's path alone",
            id="unix-url",
        ),
        pytest.param(
            {"incus.endpoint": "https://:8443"},
            "f incus.endpoint: this is not an address such as https://incus.example:8443",
            id="no-host",
        ),
        pytest.param(
            {"incus.endpoint": "https://incus:port"},
            "f incus.endpoint: this is not an address such as https://incus.example:8443",
            id="no-port",
        ),
        pytest.param(
            {"incus.endpoint": "https://me:s3cret@incus:8443"},
            "f incus.endpoint: an address must carry neither user nor password; Incus knows clients by certificate",
            id="password-in-address",
        ),
        pytest.param(
            {"incus.client_cert": "/c.crt"},
            "f incus.client_cert: client_cert needs client_key, and that is not set "
            "(see also incus.client_key (default))",
            id="certificate-without-key",
        ),
        pytest.param(
            {"incus.client_key": "/c.key"},
            "f incus.client_key: client_key needs client_cert, and that is not set "
            "(see also incus.client_cert (default))",
            id="key-without-certificate",
        ),
        # sizes, times, secrets
        pytest.param(
            {"disk_limit": "10G"},
            "f disk_limit: '10G' is not a size: Incus knows no unit 'G'; did you mean 10GB?",
            id="limit",
        ),
        pytest.param({"disk_limit": "0"}, "f disk_limit: '0' leaves no room at all", id="no-limit"),
        pytest.param(
            {"disk_floor": "much"},
            "f disk_floor: 'much' is not a size such as 10GB, 512MiB or a plain number of bytes",
            id="floor",
        ),
        pytest.param(
            {"disk_floor_share": 1}, "f disk_floor_share: 1 is not a part of 1, such as 0.1", id="floor-share"
        ),
        pytest.param(
            {"disk_floor_share": -0.1}, "f disk_floor_share: -0.1 is not a part of 1, such as 0.1", id="negative-share"
        ),
        pytest.param(
            {"limits.cpu_allowance": "half"},
            "f limits.cpu_allowance: 'half' is neither a percentage such as 50% nor a time such as 25ms/100ms",
            id="allowance",
        ),
        pytest.param(
            {"limits.cpu_priority": 11}, "f limits.cpu_priority: 11 is not a number from 0 to 10", id="cpu-priority"
        ),
        pytest.param(
            {"limits.disk_priority": -1}, "f limits.disk_priority: -1 is not a number from 0 to 10", id="disk-priority"
        ),
        pytest.param(
            {"limits.processes": -1}, "f limits.processes: -1 is not a number from 0 to 4194304", id="processes"
        ),
        pytest.param(
            {"containers.llm.disk_limit": "0GB"},
            "f containers.llm.disk_limit: '0GB' leaves no room at all",
            id="container-limit",
        ),
        pytest.param({"timeouts.ready": 0}, "f timeouts.ready: 0 is not a number of seconds above 0", id="no-time"),
        pytest.param({"timeouts.lock": -1}, "f timeouts.lock: -1 is not a number of seconds above 0", id="negative"),
        pytest.param(
            {"timeouts.operation": "inf"}, "f timeouts.operation: inf is not a number of seconds above 0", id="forever"
        ),
        pytest.param({"timeouts.ready": "nan"}, "f timeouts.ready: nan is not a number of seconds above 0", id="nan"),
        pytest.param(
            {"vault.unseal_file": "/init.json", "vault.unseal_env": "KEYS"},
            "f vault.unseal_file: unseal keys come from one place; vault.unseal_file and vault.unseal_env are set "
            "(see also f vault.unseal_env)",
            id="two-sources-of-keys",
        ),
        pytest.param(
            {"vault.unseal_env": "1 2"},
            "f vault.unseal_env: the value (not shown) is not the name of an environment variable",
            id="variable-name",
        ),
        # containers
        pytest.param(
            {f"containers.{name}": False for name in Settings().containers},
            "containers: no container is left; a stage needs at least one",
            id="no-containers",
        ),
        pytest.param(
            {"containers.my_db.address": "10.0.3.20"},
            "f containers.my_db: 'my_db' cannot name an Incus container: 1 to 63 letters, digits and '-', no '-' "
            "at either end, not digits alone",
            id="container-name",
        ),
        pytest.param(
            {"containers.llm.source": "-llm"},
            "f containers.llm.source: '-llm' cannot name an Incus container: 1 to 63 letters, digits and '-', no '-' "
            "at either end, not digits alone",
            id="source-name",
        ),
        pytest.param(
            {"containers.llm.address": "10.0.4.15"},
            "f containers.llm.address: 10.0.4.15 is outside the stage's subnet 10.0.3.0/24 "
            "(see also network.address (default))",
            id="outside",
        ),
        pytest.param(
            {"containers.llm.address": "10.0.3.1"},
            "f containers.llm.address: 10.0.3.1 is the bridge's own address (see also network.address (default))",
            id="bridges-address",
        ),
        pytest.param(
            {"network.address": "10.0.7.11/24"},
            "f network.address: 10.0.7.11 is the bridge's own address (see also containers.tables.address (default, "
            "moved with network.address))",
            id="bridge-at-a-default-address",
        ),
        pytest.param(
            {"containers.llm.address": "10.0.3.0"},
            "f containers.llm.address: 10.0.3.0 is the network address of 10.0.3.0/24 "
            "(see also network.address (default))",
            id="network-address",
        ),
        pytest.param(
            {"containers.llm.address": "10.0.3.255"},
            "f containers.llm.address: 10.0.3.255 is the broadcast address of 10.0.3.0/24 "
            "(see also network.address (default))",
            id="broadcast-address",
        ),
        pytest.param(
            {"containers.llm.address": "10.0.3.11"},
            "f containers.llm.address: the address 10.0.3.11 is used by tables and llm; each container needs its own "
            "(see also containers.tables.address (default))",
            id="same-address",
        ),
        pytest.param(
            {"containers.llm.source": "tables"},
            "f containers.llm.source: the source tables is used by tables and llm; each container needs its own "
            "(see also containers.tables.source (default))",
            id="same-source",
        ),
        pytest.param(
            {"containers.llm.production_address": "10.0.2.11"},
            "f containers.llm.production_address: the production address 10.0.2.11 is used by tables and llm; each "
            "container needs its own (see also containers.tables.production_address (default))",
            id="same-production-address",
        ),
        pytest.param(
            {"containers.llm.production_address": "10.9.9.9"},
            "f containers.llm.production_address: 10.9.9.9 is outside production's network 10.0.2.0/24 "
            "(see also network.production (default))",
            id="production-address-outside",
        ),
        pytest.param(
            {"containers.llm.needs": ["tabels"]},
            "f containers.llm.needs: 'tabels' is not a container of the stage; there are cache, drive, llm, system, "
            "tables, vault",
            id="needs-unknown",
        ),
        pytest.param(
            {"containers.llm.writes_to": ["cahce"]},
            "f containers.llm.writes_to: 'cahce' is not a container of the stage; there are cache, drive, llm, system, "
            "tables, vault",
            id="writes-to-unknown",
        ),
        pytest.param(
            {"containers.llm.needs": ["llm"], "containers.system.needs": []},
            "f containers.llm.needs: containers wait for each other in a circle: llm needs llm",
            id="needs-itself",
        ),
        pytest.param(
            {"containers.tables.needs": ["vault"], "containers.vault.needs": ["tables"]},
            "f containers.tables.needs: containers wait for each other in a circle: tables needs vault needs tables "
            "(see also f containers.vault.needs)",
            id="circle",
        ),
        pytest.param(
            {"containers.tables.needs": ["system"]},
            "f containers.tables.needs: containers wait for each other in a circle: system needs tables needs system "
            "(see also containers.system.needs (default))",
            id="circle-through-a-default",
        ),
        # folders
        pytest.param(
            {"containers.llm.wipe": ["models"]},
            "f containers.llm.wipe[0]: 'models' is not an absolute path",
            id="relative",
        ),
        pytest.param(
            {"containers.llm.wipe": ["/data/../etc/x"]},
            "f containers.llm.wipe[0]: '/data/../etc/x' is not written plainly; write '/etc/x' if that is "
            "what you mean",
            id="dots-in-path",
        ),
        pytest.param(
            {"containers.llm.wipe": ["//data"]},
            "f containers.llm.wipe[0]: '//data' is not written plainly; write '/data' if that is what you mean",
            id="two-slashes",
        ),
        pytest.param(
            {"containers.llm.wipe": ["/data\n"]},
            "f containers.llm.wipe[0]: '/data\\n' contains control characters",
            id="newline-in-path",
        ),
        pytest.param(
            {"containers.llm.wipe": ["/var/log"]},
            "f containers.llm.wipe[0]: '/var/log' holds folders that services need; name it in `logs`, which "
            "keeps them",
            id="wipe-var-log",
        ),
        pytest.param(
            {"containers.llm.wipe": ["/opt/gbo/logs"]},
            "f containers.llm.wipe: wiping '/opt/gbo/logs' would take the log folders in '/opt/gbo/logs' away, and "
            "services fail without them; leave it to `logs` (see also containers.llm.logs (default))",
            id="wipe-logs",
        ),
        pytest.param(
            {"containers.llm.wipe": ["/data"], "containers.llm.logs": ["/data/logs"]},
            "f containers.llm.wipe: wiping '/data' would take the log folders in '/data/logs' away, and "
            "services fail without them; leave it to `logs` (see also f containers.llm.logs)",
            id="wipe-around-logs",
        ),
        # units and probes
        pytest.param(
            {"containers.llm.units": ["llm; reboot"]},
            "f containers.llm.units[0]: 'llm; reboot.service' is not the name of a systemd unit",
            id="unit-with-space",
        ),
        pytest.param(
            {"containers.llm.units": ["--now"]},
            "f containers.llm.units[0]: '--now.service' is not the name of a systemd unit",
            id="unit-like-an-option",
        ),
        pytest.param(
            {"containers.llm.units": ["llm@"]},
            "f containers.llm.units[0]: 'llm@.service' is not the name of a systemd unit",
            id="template-without-instance",
        ),
        pytest.param(
            {"containers.llm.probes": [{"protocol": "tcp", "port": 0}]},
            "f containers.llm.probes[0].port: 0 is not a port from 1 to 65535",
            id="port-0",
        ),
        pytest.param(
            {"containers.llm.probes": [{"protocol": "tcp", "port": 65536}]},
            "f containers.llm.probes[0].port: 65536 is not a port from 1 to 65535",
            id="port-65536",
        ),
        pytest.param(
            {"containers.llm.probes": [{"protocol": "tcp", "port": 1}, {"protocol": "http", "port": 80}]},
            "f containers.llm.probes[1].path: an http probe needs a path that begins with '/', such as /health, not ''",
            id="http-without-path",
        ),
        pytest.param(
            {"containers.llm.probes": [{"protocol": "tcp", "port": 1, "path": "/x"}]},
            "f containers.llm.probes[0].path: only http probes have a path; tcp has none",
            id="path-without-http",
        ),
    ],
)
def test_a_contradiction_is_the_one_problem_reported(values: dict[str, Any], expected: str) -> None:
    assert refusal(values) == f"1 problem in the settings:\n  1. {expected}"


@pytest.mark.parametrize("name", ["a b", "a/b", "a_b", "it's", 'say "a"', "a\tb", "a\x00b"])
def test_incus_refuses_such_names_of_projects(name: str) -> None:
    for key in ("project", "source_project"):
        assert f"f {key}: {name!r} cannot name an Incus project: spaces, slashes" in refusal({key: name})


@pytest.mark.parametrize("name", ["", "a", "a b", "a/b", "..", "-br0", "lo", "brücke", "0123456789abcdef"])
def test_linux_refuses_such_names_of_networks(name: str) -> None:
    assert f"f network.name: {name!r} cannot name a network interface" in refusal({"network.name": name})


@pytest.mark.parametrize("name", ["br", "0123456789abcde", "stage.br_0-1"])
def test_linux_takes_such_names_of_networks(name: str) -> None:
    assert build([Layer("f", {"network": {"name": name}})]).network.name == name


@pytest.mark.parametrize("prefix", [31, 32])
def test_a_subnet_needs_room(prefix: int) -> None:
    assert f"a subnet of 10.0.7.2/{prefix} has no room for containers" in refusal(
        {"network.address": f"10.0.7.2/{prefix}"}
    )


@pytest.mark.parametrize("name", ["", "-a", "a-", "123", "a.b", "a b", "a" * 64, "*"])
def test_incus_refuses_such_names_of_containers(name: str) -> None:
    message = refusal({"containers": {name: {"address": "10.0.3.20"}}})
    assert f"f containers.{name}: {name!r} cannot name an Incus container" in message


@pytest.mark.parametrize("name", ["a", "A1", "1a", "a-b", "a" * 63])
def test_incus_takes_such_names_of_containers(name: str) -> None:
    assert name in build([Layer("f", {"containers": {name: {"address": "10.0.3.20"}}})]).containers


@pytest.mark.parametrize("field", ["wipe", "logs"])
@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/etc",
            "/usr",
            "/var",
            "/var/lib",
            "/opt",
            "/opt/gbo",
            "/opt/gbo/bin",
            "/opt/gbo/conf",
            "/home",
            "/root",
        ),
        *("/bin", "/sbin/", "/lib/systemd", "/boot", "/dev/shm", "/proc/sys", "/sys", "/run", "/srv", "/usr/local"),
    ],
)
def test_folders_of_the_system_are_never_emptied(field: str, path: str) -> None:
    shown = path.rstrip("/") or "/"
    assert f"f containers.llm.{field}[0]: {shown!r} is a folder that the container needs to work" in refusal(
        {f"containers.llm.{field}": [path]}
    )


@pytest.mark.parametrize(
    ("field", "path"),
    [
        pytest.param("wipe", "/opt/gbo/models", id="general-bots"),
        pytest.param("wipe", "/opt/gbo/data", id="all-data"),
        pytest.param("wipe", "/var/lib/minio", id="below-var-lib"),
        pytest.param("wipe", "/home/minio/data", id="below-home"),
        pytest.param("wipe", "/binaries", id="name-that-begins-alike"),
        pytest.param("wipe", "/opt/gbo/logs-old", id="sibling-of-the-logs"),
        pytest.param("logs", "/var/log", id="system-logs"),
    ],
)
def test_folders_of_data_can_be_emptied(field: str, path: str) -> None:
    settings = build([Layer.from_dotted("f", {f"containers.llm.{field}": [path]})])
    assert getattr(settings.containers["llm"], field) == (path,)


@pytest.mark.parametrize(
    "endpoint", ["", "/var/lib/incus/unix.socket", "https://incus.example:8443", "https://[fd00::1]:8443"]
)
def test_such_endpoints_are_taken(endpoint: str) -> None:
    assert build([Layer("f", {"incus": {"endpoint": endpoint}})]).incus.endpoint == endpoint


def test_a_password_in_an_address_is_not_repeated() -> None:
    assert "s3cret" not in refusal({"incus.endpoint": "https://me:s3cret@incus:8443"})


def test_several_contradictions_come_in_one_error() -> None:
    message = refusal({**OTHER_NETWORK, "project": "default", "disk_limit": "x", "containers.llm.address": "10.0.3.15"})
    assert message.startswith("3 problems in the settings:")
    assert "f project:" in message
    assert "f disk_limit:" in message
    assert "10.0.3.15 is outside the stage's subnet 10.0.7.0/24 (see also f network.address)" in message
