"""Settings are read from one file and from variables, and everything knows where it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings import Layer, Loaded, load
from pytest_stagegbo.settings.keys import all_keys, env_name

if TYPE_CHECKING:
    from collections.abc import Callable


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load_here(folder: Path, **environ: str) -> Loaded:
    return load(None, folder, environ)


def refusal(folder: Path, /, **environ: str) -> str:
    return refusal_of(None, folder, environ)


def refusal_of(config: Path | None, folder: Path, environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        load(config, folder, environ)
    return str(caught.value)


# Finding the file -----------------------------------------------------------------------------------------------


def test_without_a_file_there_are_the_defaults(tmp_path: Path) -> None:
    loaded = load_here(tmp_path)
    assert loaded.settings.project == "STAGE-GBO"
    assert loaded.file is None


def test_stagegbo_toml_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "stagegbo.toml", 'project = "FILE"')
    loaded = load_here(tmp_path)
    assert (loaded.settings.project, loaded.file) == ("FILE", file)
    assert loaded.origins["project"] == "stagegbo.toml project"


def test_a_table_in_pyproject_is_read(tmp_path: Path) -> None:
    write(tmp_path / "pyproject.toml", '[tool.stagegbo]\nproject = "FILE"\n[tool.stagegbo.network]\nname = "br7"\n')
    loaded = load_here(tmp_path)
    assert loaded.settings.project == "FILE"
    assert loaded.origins["project"] == "pyproject.toml [tool.stagegbo] project"
    assert loaded.origins["network.name"] == "pyproject.toml [tool.stagegbo.network] name"


def test_the_nearest_folder_upwards_wins(tmp_path: Path) -> None:
    write(tmp_path / "stagegbo.toml", 'project = "FAR"')
    write(tmp_path / "near/pyproject.toml", '[tool.stagegbo]\nproject = "NEAR"')
    start = tmp_path / "near/tests/unit"
    start.mkdir(parents=True)
    assert load_here(start).settings.project == "NEAR"


def test_a_pyproject_without_the_table_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "stagegbo.toml", 'project = "FAR"')
    write(tmp_path / "near/pyproject.toml", "[project]\nname = 'x'")
    assert load_here(tmp_path / "near").settings.project == "FAR"


def test_two_files_in_one_folder_are_refused(tmp_path: Path) -> None:
    own = write(tmp_path / "stagegbo.toml")
    shared = write(tmp_path / "pyproject.toml", "[tool.stagegbo]")
    message = refusal(tmp_path)
    assert f"two files in one folder claim the settings: {own} and {shared}" in message
    assert "STAGEGBO_CONFIG" in message


def test_config_names_the_file_and_nothing_is_searched(tmp_path: Path) -> None:
    write(tmp_path / "stagegbo.toml", "not TOML at all")
    write(tmp_path / "other/mine.toml", 'project = "MINE"')
    loaded = load(Path("other/mine.toml"), tmp_path, {"STAGEGBO_CONFIG": "elsewhere.toml"})
    assert loaded.settings.project == "MINE"
    assert loaded.origins["project"] == "other/mine.toml project"


def test_a_file_outside_the_start_folder_is_shown_with_its_whole_path(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.toml", 'project = "MINE"')
    (tmp_path / "start").mkdir()
    assert load(file, tmp_path / "start", {}).origins["project"] == f"{file} project"


def test_a_variable_names_the_file(tmp_path: Path) -> None:
    write(tmp_path / "mine.toml", 'project = "MINE"')
    assert load_here(tmp_path, STAGEGBO_CONFIG="mine.toml").settings.project == "MINE"


def test_an_empty_variable_means_no_file(tmp_path: Path) -> None:
    write(tmp_path / "stagegbo.toml", 'project = "FILE"')
    assert load_here(tmp_path, STAGEGBO_CONFIG="").settings.project == "STAGE-GBO"


@pytest.mark.parametrize(
    ("config", "environ", "text"),
    [
        pytest.param(Path("no.toml"), {}, "--config no.toml: there is no such file", id="option"),
        pytest.param(Path(), {}, "--config .: that is no file", id="folder"),
        pytest.param(Path("~no-such-user/x"), {}, "--config ~no-such-user/x: there is no such file", id="unknown-home"),
        pytest.param(
            None,
            {"STAGEGBO_CONFIG": "no.toml"},
            "$STAGEGBO_CONFIG=no.toml: there is no such file",
            id="variable",
        ),
    ],
)
def test_a_named_file_must_exist(tmp_path: Path, config: Path | None, environ: dict[str, str], text: str) -> None:
    message = refusal_of(config, tmp_path, environ)
    assert text in message
    assert f"looked for {tmp_path}" in message


def test_a_named_pyproject_must_have_the_table(tmp_path: Path) -> None:
    write(tmp_path / "pyproject.toml", "[project]")
    assert "pyproject.toml has no table [tool.stagegbo]" in refusal_of(Path("pyproject.toml"), tmp_path, {})


# Reading the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line"),
    [
        pytest.param(b'a = 1\nproject == "x"\n', "(at line 2, column", id="middle"),
        pytest.param(b"a = 1\nb = 2\nproject = [\n", "(at line 3", id="end"),
    ],
)
def test_broken_toml_is_refused_with_file_and_line(tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "stagegbo.toml").write_bytes(content)
    message = refusal(tmp_path)
    assert message.startswith("stagegbo.toml is not valid TOML: ")
    assert line in message


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "cannot read /proc/self/mem: Input/output error" in refusal_of(Path("/proc/self/mem"), tmp_path, {})


def test_folders_that_cannot_be_looked_into_have_no_file(tmp_path: Path) -> None:
    too_long = tmp_path / ("x" * 300)
    assert load_here(too_long).file is None


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "stagegbo.toml").write_bytes(b'\xef\xbb\xbfproject = "FILE"\r\n')
    assert load_here(tmp_path).settings.project == "FILE"


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere"), os.mkfifo])
def test_what_has_a_settings_file_s_name_and_is_none_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """With the defaults, another stage would be used."""
    make(tmp_path / "stagegbo.toml")
    assert "stagegbo.toml: that is no file" in refusal(tmp_path)


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stagegbo.toml").write_bytes(b"# caf\xe9\n")
    assert "stagegbo.toml is not UTF-8" in refusal(tmp_path)


def test_problems_of_a_file_name_table_and_key(tmp_path: Path) -> None:
    write(
        tmp_path / "pyproject.toml",
        "[tool.stagegbo]\nprojekt = 'x'\n[tool.stagegbo.network]\naddress = '10.0.3.999/24'\n"
        "[[tool.stagegbo.containers.drive.probes]]\nprotocol = 's3'\nport = 0\n",
    )
    message = refusal(tmp_path)
    assert "pyproject.toml [tool.stagegbo] projekt: unknown key" in message
    assert "pyproject.toml [tool.stagegbo.network] address: '10.0.3.999/24' is not an IPv4 address" in message
    assert "pyproject.toml [tool.stagegbo.containers.drive] probes[0].port: 0 is not a port" in message


def test_a_table_that_stands_for_a_container_is_named_as_such(tmp_path: Path) -> None:
    write(tmp_path / "stagegbo.toml", "[containers.crm]\nunits = ['crm']\n")
    assert "stagegbo.toml [containers.crm]: a container of your own needs an `address`" in refusal(tmp_path)


# Paths ----------------------------------------------------------------------------------------------------------


def test_relative_paths_in_a_file_start_at_its_folder(tmp_path: Path) -> None:
    write(
        tmp_path / "stagegbo.toml",
        "[incus]\nendpoint = './incus.socket'\nclient_cert = 'c.crt'\nclient_key = '/etc/c.key'\n"
        "[vault]\nunseal_file = '~/init.json'\n",
    )
    (tmp_path / "tests").mkdir()
    settings = load_here(tmp_path / "tests").settings
    assert settings.incus.endpoint == f"{tmp_path}/incus.socket"
    assert settings.incus.client_cert == f"{tmp_path}/c.crt"
    assert settings.incus.client_key == "/etc/c.key"
    assert settings.incus.server_cert == ""
    assert settings.vault.unseal_file == str(Path.home() / "init.json")


def test_relative_paths_elsewhere_start_at_the_start_folder(tmp_path: Path) -> None:
    write(tmp_path / "stagegbo.toml")
    start = tmp_path / "tests"
    start.mkdir()
    options = [Layer.from_dotted("command line", {"incus.server_cert": "s.crt"})]
    settings = load(None, start, {"STAGEGBO_VAULT__UNSEAL_FILE": "init.json"}, options).settings
    assert settings.vault.unseal_file == f"{start}/init.json"
    assert settings.incus.server_cert == f"{start}/s.crt"


# Environment ----------------------------------------------------------------------------------------------------


def test_every_key_has_a_variable_of_its_own() -> None:
    names = [env_name(path) for path in all_keys()]
    assert len(set(names)) == len(names)
    assert "STAGEGBO_SOURCE_PROJECT" in names
    assert "STAGEGBO_NETWORK__ADDRESS" in names


def test_variables_set_keys(tmp_path: Path) -> None:
    loaded = load_here(
        tmp_path,
        STAGEGBO_PROJECT="ENV",
        STAGEGBO_NETWORK__NAT="false",
        STAGEGBO_TIMEOUTS__READY="7",
        STAGEGBO_CONTAINERS__TABLES__ADDRESS="10.0.3.99",
        STAGEGBO_CONTAINERS__DRIVE__WIPE="/a,/b",
        STAGEGBO_CONTAINERS__DRIVE__PROBES='[{"protocol": "s3", "port": 9000}]',
        HOME="/not/ours",
    )
    settings = loaded.settings
    assert (settings.project, settings.network.nat, settings.timeouts.ready) == ("ENV", False, 7.0)
    assert str(settings.containers["tables"].address) == "10.0.3.99"
    assert settings.containers["drive"].wipe == ("/a", "/b")
    assert settings.containers["drive"].probes[0].port == 9000
    assert loaded.origins["containers.tables.address"] == "$STAGEGBO_CONTAINERS__TABLES__ADDRESS"


def test_a_variable_leaves_a_container_out(tmp_path: Path) -> None:
    assert "llm" not in load_here(tmp_path, STAGEGBO_CONTAINERS__LLM="false").settings.containers


def test_a_variable_reaches_containers_of_the_file_whatever_their_spelling(tmp_path: Path) -> None:
    write(tmp_path / "stagegbo.toml", "[containers.CRM-db]\naddress = '10.0.3.20'")
    containers = load_here(tmp_path, STAGEGBO_CONTAINERS__CRM_DB__ADDRESS="10.0.3.21").settings.containers
    assert str(containers["CRM-db"].address) == "10.0.3.21"
    assert "crm-db" not in containers


def test_a_variable_reaches_containers_of_ini_options(tmp_path: Path) -> None:
    extra = [Layer.from_dotted("ini", {"containers.CRM.address": "10.0.3.20"})]
    environ = {"STAGEGBO_CONTAINERS__CRM__DISK_LIMIT": "1GB"}
    assert load(None, tmp_path, environ, extra=extra).settings.containers["CRM"].disk_limit == "1GB"


def test_variables_add_a_container(tmp_path: Path) -> None:
    containers = load_here(tmp_path, STAGEGBO_CONTAINERS__MY_DB__ADDRESS="10.0.3.20").settings.containers
    assert containers["my-db"].source_name == "my-db"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("STAGEGBO_PROJEKT", "; did you mean $STAGEGBO_PROJECT?", id="typo"),
        pytest.param("STAGEGBO_NETWORK_NAME", "; did you mean $STAGEGBO_NETWORK__NAME?", id="one-underscore"),
        pytest.param(
            "STAGEGBO_CONTAINERS_TABLES_ADDRESS",
            "; did you mean $STAGEGBO_CONTAINERS__TABLES__ADDRESS?",
            id="one-underscore-in-a-container",
        ),
        pytest.param(
            "STAGEGBO_CONTAINERS__TABLES__ADRESS",
            "; did you mean $STAGEGBO_CONTAINERS__TABLES__ADDRESS?",
            id="typo-in-a-container",
        ),
        pytest.param("STAGEGBO_NETWORK", "; network is a table: add two underscores", id="table"),
        pytest.param("STAGEGBO_CONTAINERS", "; containers is a table: add two underscores", id="containers"),
        pytest.param("STAGEGBO_CONTAINERS__A__B__C", "; settings have no such key", id="too-deep"),
        pytest.param("STAGEGBO_", "; settings have no such key", id="prefix-alone"),
        pytest.param("STAGEGBO_SOMETHING_ELSE", "; settings have no such key", id="nothing-near"),
        pytest.param("STAGEGBO_CONFIG_FILE", "; settings have no such key", id="longer-than-a-reserved-one"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_likely_one(tmp_path: Path, name: str, text: str) -> None:
    message = refusal(tmp_path, **{name: "s3cret"})
    assert f"${name}: unknown variable{text}" in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "name",
    [
        "STAGEGBO_LAB",
        "STAGEGBO_LAB_DIR",
        "STAGEGBO_LAB_NAME",
        "STAGEGBO_DEBUG",
        "STAGEGBO_ENDPOINT_TABLES",
        "STAGEGBOX",
    ],
)
def test_variables_for_other_purposes_are_passed_over(tmp_path: Path, name: str) -> None:
    assert load_here(tmp_path, **{name: "x"}).settings == load_here(tmp_path).settings


def test_problems_name_the_variable(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        STAGEGBO_NETWORK__ADDRESS="x",
        STAGEGBO_CONTAINERS__CRM__UNITS="crm",
        STAGEGBO_CONTAINERS__LLM__PROBES='[{"protocol": "tcp", "port": 0}]',
    )
    assert "$STAGEGBO_NETWORK__ADDRESS: 'x' is not an IPv4 address" in message
    assert "$STAGEGBO_CONTAINERS__CRM__UNITS: a container of your own needs an `address`" in message
    assert "$STAGEGBO_CONTAINERS__LLM__PROBES[0].port: 0 is not a port" in message


# All of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "winner"),
    [
        pytest.param("", "STAGE-GBO", id="default"),
        pytest.param("file", "FILE", id="file"),
        pytest.param("file ini", "INI", id="ini-over-file"),
        pytest.param("file ini env", "ENV", id="env-over-ini"),
        pytest.param("file ini env lab", "LAB", id="lab-over-env"),
        pytest.param("file ini env lab option", "OPTION", id="option-over-lab"),
        pytest.param("file option", "OPTION", id="option-over-file"),
    ],
)
def test_precedence(tmp_path: Path, sources: str, winner: str) -> None:
    given = sources.split()
    if "file" in given:
        write(tmp_path / "stagegbo.toml", 'project = "FILE"')
    layers = {name: Layer(name, {"project": name.upper()}) for name in ("ini", "lab", "option") if name in given}
    loaded = load(
        None,
        tmp_path,
        {"STAGEGBO_PROJECT": "ENV"} if "env" in given else {},
        options=[layers[name] for name in ("lab", "option") if name in layers],
        extra=[layers["ini"]] if "ini" in layers else [],
    )
    assert loaded.settings.project == winner


def test_problems_of_all_sources_come_in_one_error(tmp_path: Path) -> None:
    write(tmp_path / "stagegbo.toml", "projekt = 1")
    with pytest.raises(SettingsError) as caught:
        load(
            None,
            tmp_path,
            {"STAGEGBO_NOPE": "1"},
            options=[Layer("command line", {"disk_limit": "x"}, {"disk_limit": "--disk-limit"})],
            extra=[Layer("ini", {"network": {"nat": "x"}}, {"network.nat": "ini stagegbo_network_nat"})],
        )
    problems = [line.split(". ", 1)[1].split(":")[0] for line in caught.value.message.splitlines()[1:]]
    assert problems == ["stagegbo.toml projekt", "ini stagegbo_network_nat", "$STAGEGBO_NOPE", "--disk-limit"]


def test_reprs_of_what_was_read_show_no_values() -> None:
    assert "s3cret" not in repr(Layer("environment", {"vault": {"unseal_command": "s3cret"}}))


def test_importing_the_settings_is_light() -> None:
    """The plugin imports them in every run of pytest, also in projects that never touch the stage."""
    heavy = {"pylxd", "rich", "pytest", "requests"}
    code = f"import sys, pytest_stagegbo.settings; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
