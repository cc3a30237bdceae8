"""Layers make settings: what wins, what values become, what is not understood."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from msgspec import structs

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings import Layer, ProbeSettings, Settings, build
from pytest_stagegbo.settings.build import resolve

S3 = {"protocol": "s3", "port": 9000}


def layer(values: dict[str, Any], origin: str = "test.toml") -> Layer:
    return Layer.from_dotted(origin, values)


def from_keys(values: dict[str, Any]) -> Settings:
    return build([layer(values)])


def refusal(*layers: Layer) -> str:
    with pytest.raises(SettingsError) as caught:
        build(layers)
    return str(caught.value)


# What wins ------------------------------------------------------------------------------------------------------


def test_nothing_given_makes_the_defaults() -> None:
    assert build([]) == Settings()


def test_the_last_layer_wins_key_by_key() -> None:
    settings = build(
        [
            layer({"project": "LOW", "source_project": "PROD", "network.name": "br-low"}),
            layer({"project": "HIGH", "network.nat": False}),
        ]
    )
    assert (settings.project, settings.source_project) == ("HIGH", "PROD")
    assert (settings.network.name, settings.network.nat) == ("br-low", False)


@pytest.mark.parametrize(
    ("key", "low", "falsy", "expected"),
    [
        pytest.param("network.nat", True, False, False, id="false"),
        pytest.param("network.nat", True, 0, False, id="zero"),
        pytest.param("containers.drive.wipe", ["/data"], [], (), id="empty-list"),
        pytest.param("containers.drive.wipe", ["/data"], "", (), id="empty-text-for-a-list"),
        pytest.param("containers.drive.probes", [S3], "", (), id="empty-text-for-probes"),
        pytest.param("containers.drive.production_address", "10.0.2.99", "", None, id="empty-text-for-an-address"),
        pytest.param("vault.unseal_file", "/keys", "", "", id="empty-text"),
        pytest.param("disk_floor", "5GB", "0", "0", id="zero-size"),
    ],
)
def test_a_falsy_value_wins_like_any(key: str, low: object, falsy: object, expected: object) -> None:
    value: Any = build([layer({key: low}), layer({key: falsy})])
    for part in key.split("."):
        value = value[part] if isinstance(value, type(Settings().containers)) else getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_none_means_not_given() -> None:
    settings = build([layer({"project": "LOW"}), layer({"project": None, "network.name": None})])
    assert (settings.project, settings.network.name) == ("LOW", "stagebr0")


def test_a_list_replaces_the_whole_list_below_it() -> None:
    settings = build([layer({"containers.drive.wipe": ["/a", "/b"]}), layer({"containers.drive.wipe": ["/c"]})])
    assert settings.containers["drive"].wipe == ("/c",)


def test_a_higher_source_of_unseal_keys_silences_the_others_below() -> None:
    """A lab that brings a file of keys works in a folder whose file names a command."""
    settings = build([layer({"vault.unseal_command": ["sops"]}), layer({"vault.unseal_file": "/lab/init.json"})])
    assert settings.vault.unseal_file == "/lab/init.json"
    assert settings.vault.unseal_command == ()


def test_switching_one_source_of_unseal_keys_off_leaves_another_below() -> None:
    settings = build([layer({"vault.unseal_env": "KEYS"}), layer({"vault.unseal_file": ""})])
    assert settings.vault.unseal_env == "KEYS"


# Where values come from -----------------------------------------------------------------------------------------


def test_each_key_has_the_origin_of_the_value_that_won() -> None:
    origins = resolve(
        [
            layer({"project": "LOW", "source_project": "PROD"}, "stagegbo.toml"),
            Layer("command line", {"project": "HIGH"}, {"project": "--project"}),
        ]
    ).origins
    assert origins["project"] == "--project"
    assert origins["source_project"] == "stagegbo.toml source_project"
    assert origins["network.name"] == "default"


def test_every_key_of_every_container_has_an_origin() -> None:
    loaded = resolve([layer({"containers.llm": False, "containers.crm.address": "10.0.3.20"})])
    fields = {field.name for field in structs.fields(loaded.settings.containers["crm"])} - {"name", "deploy", "held"}
    fields.add("enabled")
    expected = {f"containers.{name}.{field}" for name in loaded.settings.containers for field in fields}
    expected |= {"containers.system.deploy.botserver", "containers.system.deploy.botui"}
    assert {key for key in loaded.origins if key.startswith("containers.")} == expected


def test_the_origin_of_an_address_that_moved_says_so() -> None:
    origins = resolve([layer({"network.address": "10.0.7.1/24", "containers.llm.address": "10.0.7.99"})]).origins
    assert origins["containers.tables.address"] == "default, moved with network.address"
    assert origins["containers.llm.address"] == "test.toml containers.llm.address"
    assert origins["containers.tables.production_address"] == "default"


# What values become ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        pytest.param("network.nat", "false", False, id="text-bool"),
        pytest.param("network.nat", " TRUE ", True, id="text-bool-loosely"),
        pytest.param("network.nat", "0", False, id="text-zero"),
        pytest.param("timeouts.ready", 30, 30.0, id="whole-seconds"),
        pytest.param("timeouts.ready", "0.5", 0.5, id="text-seconds"),
        pytest.param("network.address", "10.9.0.1/16", IPv4Interface("10.9.0.1/16"), id="interface"),
        pytest.param("network.production", "10.0.2.0/24", IPv4Network("10.0.2.0/24"), id="network"),
        pytest.param("vault.unseal_command", ["cat", "a b"], ("cat", "a b"), id="list"),
        pytest.param("vault.unseal_command", "cat 'a b'", ("cat", "a b"), id="command-split-as-a-shell-does"),
        pytest.param("vault.unseal_command", '["cat", "a b"]', ("cat", "a b"), id="command-in-json"),
    ],
)
def test_a_value_becomes_what_the_model_asks_for(key: str, value: object, expected: object) -> None:
    table, name = key.split(".")
    result = getattr(getattr(from_keys({key: value}), table), name)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(["/a", "/b"], id="list"),
        pytest.param("/a, /b", id="commas"),
        pytest.param("/a,,/b,", id="stray-commas"),
        pytest.param('["/a", "/b"]', id="json"),
        pytest.param(["/a/", "/b/"], id="trailing-slashes"),
    ],
)
def test_folders_are_listed_in_several_ways(value: object) -> None:
    assert from_keys({"containers.drive.wipe": value}).containers["drive"].wipe == ("/a", "/b")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([S3], id="tables"),
        pytest.param([{"protocol": "s3", "port": "9000"}], id="port-as-text"),
        pytest.param('[{"protocol": "s3", "port": 9000}]', id="json"),
        pytest.param([ProbeSettings("s3", 9000)], id="probes"),
    ],
)
def test_probes_are_given_as_tables_or_json(value: object) -> None:
    assert from_keys({"containers.drive.probes": value}).containers["drive"].probes == (ProbeSettings("s3", 9000),)


@pytest.mark.parametrize(
    ("given", "unit"),
    [
        pytest.param("minio", "minio.service", id="bare"),
        pytest.param("postgresql@15-main", "postgresql@15-main.service", id="instance"),
        pytest.param("a.b", "a.b.service", id="dot-that-is-no-suffix"),
        pytest.param("minio.service", "minio.service", id="service"),
        pytest.param("backup.timer", "backup.timer", id="timer"),
    ],
)
def test_units_without_a_suffix_are_services(given: str, unit: str) -> None:
    assert from_keys({"containers.drive.units": [given]}).containers["drive"].units == (unit,)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        pytest.param("project", 5, "5 is not text; put it in quotes", id="number-for-text"),
        pytest.param("disk_limit", 10**10, "is not text; put it in quotes", id="number-for-a-size"),
        pytest.param("project", ["a"], "['a'] is not text", id="list-for-text"),
        pytest.param("project", {"a": 1}, "{'a': 1} is not text", id="table-for-text"),
        pytest.param("network.nat", "maybe", "'maybe' is not true or false", id="word-for-bool"),
        pytest.param("network.nat", "", "'' is not true or false", id="nothing-for-bool"),
        pytest.param("network.nat", 2, "2 is not true or false", id="number-for-bool"),
        pytest.param("timeouts.ready", "2m", "'2m' is not a number", id="unit-for-seconds"),
        pytest.param("timeouts.ready", True, "True is not a number", id="bool-for-seconds"),
        pytest.param(
            "network.address",
            "10.0.3.999/24",
            "'10.0.3.999/24' is not an IPv4 address with a prefix length, such as 10.0.3.1/24",
            id="no-address",
        ),
        pytest.param("network.address", "10.0.3.1", "is not an IPv4 address with a prefix length", id="no-prefix"),
        pytest.param("network.address", 167772929, "is not an IPv4 address with a prefix", id="number-for-address"),
        pytest.param("network.address", "fd00::1/64", "is not an IPv4 address with a prefix length", id="ipv6"),
        pytest.param("network.production", "10.0.2.0", "is not an IPv4 network", id="network-without-prefix"),
        pytest.param("network.production", "10.0.2.7/24", "did you mean 10.0.2.0/24?", id="network-with-host"),
        pytest.param("containers.drive.address", "10.0.3", "'10.0.3' is not an IPv4 address", id="short-address"),
        pytest.param("containers.drive.address", "", "'' is not an IPv4 address", id="empty-address"),
        pytest.param("containers.drive.production_address", "x", "is not an IPv4 address, or empty", id="optional"),
        pytest.param("containers.drive.boot", "fast", "'fast' is not one of `units`, `full`", id="unknown-word"),
        pytest.param("containers.drive.wipe", 5, "5 is not a list of text", id="number-for-list"),
        pytest.param("containers.drive.wipe", "[/a", "'[/a' is not a JSON array", id="broken-json"),
        pytest.param("containers.drive.wipe", ["/a", 5], "wipe[1]: 5 is not text", id="number-in-list"),
        pytest.param("containers.drive.units", ["minio", ""], "units[1]: the text is empty", id="empty-in-list"),
        pytest.param("containers.drive.probes", "s3", "'s3' is not a JSON array", id="word-for-probes"),
        pytest.param("containers.drive.probes", S3, "is not a list of tables with `protocol`", id="one-probe"),
        pytest.param("containers.drive.probes", ["s3"], "probes[0]: 's3' is not a table with", id="word-for-a-probe"),
        pytest.param(
            "containers.drive.probes", [{**S3, "prt": 1}], "probes[0].prt: unknown key; did you mean port?", id="key"
        ),
        pytest.param(
            "containers.drive.probes", [S3, {"port": 1}], "probes[1]: a probe needs `protocol`", id="no-protocol"
        ),
        pytest.param(
            "containers.drive.probes", [{"protocol": "s3"}], "a probe needs `port`, a whole number", id="no-port"
        ),
        pytest.param(
            "containers.drive.probes", [{**S3, "port": "a"}], "probes[0].port: 'a' is not a whole number", id="port"
        ),
        pytest.param(
            "containers.drive.probes", [{**S3, "protocol": "ftp"}], "'ftp' is not one of `postgresql`", id="ftp"
        ),
        pytest.param("containers.llm", "maybe", "'maybe' is not true or false", id="container-switch"),
        pytest.param(
            "containers.llm", 3, "containers.llm is a table of settings, not one value", id="container-number"
        ),
        pytest.param("network", "x", "network is a table of settings, not one value", id="value-for-table"),
    ],
)
def test_a_value_of_another_kind_is_refused_where_it_stands(key: str, value: object, text: str) -> None:
    message = refusal(layer({key: value}))
    assert text in message
    assert f"test.toml {key}" in message
    assert message.startswith("1 problem in the settings:")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("vault.unseal_file", ["s3cret"], id="list-for-file"),
        pytest.param("vault.unseal_command", ["x", {"k": "s3cret"}], id="table-in-command"),
        pytest.param("vault.unseal_command", "'s3cret", id="open-quote"),
        pytest.param("vault.unseal_command", '["s3cret', id="broken-json"),
        pytest.param("vault.unseal_env", "s3cret/key=", id="key-for-a-name"),
        pytest.param("vault.unseal_keys", ["s3cret"], id="key-for-a-setting"),
    ],
)
def test_what_stands_under_vault_is_not_repeated(key: str, value: object) -> None:
    message = refusal(layer({key: value}))
    assert f"test.toml {key}" in message
    assert "s3cret" not in message


# What is not understood -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text"),
    [
        pytest.param("projekt", "unknown key 'projekt'; did you mean project?", id="top"),
        pytest.param("network.adress", "unknown key 'adress'; did you mean address?", id="nested"),
        pytest.param("netwrk.name", "unknown key 'netwrk'; did you mean network?", id="table"),
        pytest.param("unseal_file", "unknown key 'unseal_file'; did you mean vault.unseal_file?", id="elsewhere"),
        pytest.param("containers.drive.wipes", "unknown key 'wipes'; did you mean wipe?", id="container"),
        pytest.param("containers.drive.name", "`source` names the one to clone", id="container-name"),
        pytest.param("zzz", "unknown key 'zzz'\n", id="nothing-near"),
    ],
)
def test_an_unknown_key_is_refused_with_the_likely_one(key: str, text: str) -> None:
    assert text in refusal(layer({key: "x"}))


def test_every_problem_of_every_layer_is_listed_once_with_its_place() -> None:
    message = refusal(
        layer({"projekt": "x", "network.address": "nonsense"}, "stagegbo.toml"),
        Layer("environment", {"project": "a b"}, {"project": "$STAGEGBO_PROJECT"}, problems=("$STAGEGBO_X: unknown",)),
        layer({"network.address": "10.0.7.1/24"}, "command line"),
    )
    assert message.splitlines()[:-2] == [
        "4 problems in the settings:",
        "  1. stagegbo.toml projekt: unknown key 'projekt'; did you mean project?",
        "  2. stagegbo.toml network.address: 'nonsense' is not an IPv4 address with a prefix length, such as "
        "10.0.3.1/24",
        "  3. $STAGEGBO_X: unknown",
        "  4. $STAGEGBO_PROJECT: 'a b' cannot name an Incus project: spaces, slashes, underscores, quotes and control "
        "characters are not allowed",
    ]
    assert message.splitlines()[-2].startswith("what to do: correct every line above")


def test_a_problem_that_is_found_twice_is_listed_once() -> None:
    layers = [Layer("environment", problems=("same",)), Layer("environment", problems=("same",))]
    assert refusal(*layers).startswith("1 problem in the settings:\n  1. same\n")


def test_nothing_is_reported_that_only_follows_from_a_value_that_was_refused() -> None:
    """Containers in 10.0.9.x are outside the default subnet, which nobody asked for."""
    message = refusal(layer({"network.address": "nonsense", "containers.drive.address": "10.0.9.14"}))
    assert message.startswith("1 problem in the settings:\n  1. test.toml network.address: 'nonsense'")


# Containers -----------------------------------------------------------------------------------------------------


def test_a_container_keeps_the_defaults_of_what_is_not_given() -> None:
    default = Settings().containers["drive"]
    drive = from_keys({"containers.drive.probes": [S3]}).containers["drive"]
    assert drive == structs.replace(default, probes=(ProbeSettings("s3", 9000),))


def test_a_new_name_adds_a_container_after_the_default_ones() -> None:
    containers = from_keys({"containers.crm-db.address": "10.0.3.20"}).containers
    assert list(containers) == ["system", "tables", "vault", "cache", "drive", "llm", "crm-db"]
    crm = containers["crm-db"]
    assert (crm.name, crm.source_name, crm.address, crm.production_address, crm.units) == (
        *("crm-db", "crm-db", IPv4Address("10.0.3.20"), None),
        (),
    )


def test_a_new_container_needs_an_address() -> None:
    message = refusal(layer({"containers.tabels.units": ["postgresql"], "containers.system.needs": ["tabels"]}))
    assert message.startswith("1 problem in")
    assert "test.toml containers.tabels: a container of your own needs an `address`; did you mean tables?" in message


def test_an_empty_table_of_a_new_container_is_noticed() -> None:
    assert "containers.crm: a container of your own needs an `address`" in refusal(layer({"containers.crm": {}}))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"containers.llm": False}, id="false"),
        pytest.param({"containers.llm": "false"}, id="text"),
        pytest.param({"containers.llm.enabled": False}, id="enabled"),
        pytest.param({"containers.llm.enabled": False, "containers.llm.disk_limit": "1GB"}, id="with-other-fields"),
    ],
)
def test_a_container_can_be_left_out(values: dict[str, Any]) -> None:
    containers = from_keys(values).containers
    assert "llm" not in containers
    assert containers["system"].needs == ("tables", "vault", "cache", "drive")


def test_a_higher_layer_brings_a_container_back() -> None:
    settings = build([layer({"containers.llm": False}), layer({"containers.llm": True})])
    assert settings == Settings()


def test_a_container_that_is_left_out_stays_out_when_a_higher_layer_changes_it() -> None:
    settings = build([layer({"containers.llm": False}), layer({"containers.llm.disk_limit": "1GB"})])
    assert "llm" not in settings.containers


def test_a_container_added_below_can_be_left_out_above() -> None:
    added = layer({"containers.crm.address": "10.0.3.20"})
    assert "crm" not in build([added, layer({"containers.crm": False})]).containers


def test_leaving_out_a_container_that_is_not_there_is_refused() -> None:
    message = refusal(layer({"containers.lmm": False}))
    assert "there is no container 'lmm' to leave out; did you mean llm?" in message


def test_needs_that_were_given_are_not_shortened() -> None:
    message = refusal(layer({"containers.llm": False, "containers.system.needs": ["tables", "llm"]}))
    assert "test.toml containers.system.needs: 'llm' is not a container of the stage" in message


# Moving along with subnets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "tables"),
    [
        pytest.param("10.0.7.1/24", "10.0.7.11", id="same-size"),
        pytest.param("10.9.0.1/16", "10.9.0.11", id="larger"),
        pytest.param("10.0.7.129/25", "10.0.7.139", id="smaller"),
        pytest.param("10.0.3.254/24", "10.0.3.11", id="same-subnet"),
    ],
)
def test_default_addresses_keep_their_place_in_another_subnet(network: str, tables: str) -> None:
    settings = from_keys({"network.address": network})
    assert settings.containers["tables"].address == IPv4Address(tables)
    assert settings.containers["tables"].production_address == IPv4Address("10.0.2.11")


def test_addresses_that_were_given_stay() -> None:
    settings = from_keys({"network.address": "10.0.7.1/24", "containers.tables.address": "10.0.7.99"})
    assert settings.containers["tables"].address == IPv4Address("10.0.7.99")
    assert settings.containers["cache"].address == IPv4Address("10.0.7.13")


def test_production_addresses_move_with_productions_network() -> None:
    containers = from_keys({"network.production": "192.168.5.0/24"}).containers
    assert containers["tables"].production_address == IPv4Address("192.168.5.11")
    assert containers["tables"].address == IPv4Address("10.0.3.11")


@pytest.mark.parametrize(
    "network",
    [pytest.param("10.0.7.1/29", id="too-small"), pytest.param("255.255.255.249/29", id="beyond-the-last-address")],
)
def test_a_subnet_without_room_for_the_default_addresses_is_refused(network: str) -> None:
    assert "is outside the stage's subnet" in refusal(layer({"network.address": network}))
