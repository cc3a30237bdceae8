"""From what pytest was given to settings: options over environment over ini over file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.plugin.options import SETTINGS
from pytest_stagegbo.session.options import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_stagegbo.settings import Settings

NAMES = SETTINGS


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Settings]:
    """Settings of options, environment, ini and file; a dash in an option's name is an underscore here."""

    def read(
        options: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        ini: Mapping[str, Any] | None = None,
        file: str = "",
    ) -> Settings:
        if file:
            (tmp_path / "stagegbo.toml").write_text(file)
        given = [{**dict.fromkeys(NAMES), **(values or {})} for values in (options, ini)]
        return read_settings(tmp_path, given[0], given[1], NAMES, environ or {})

    return read


FIELDS: list[Any] = [
    pytest.param("project", "STAGE-1", "STAGE-2", "project", id="project"),
    pytest.param("provision", "never", "recreate", "pytest.provision", id="provision"),
    pytest.param("lock-timeout", "5", "6", "timeouts.lock", id="lock-timeout"),
    pytest.param("disk-min", "1GB", "2GB", "disk_floor", id="disk-min"),
    pytest.param("reset", "cache", "drive", "pytest.reset", id="reset"),
    pytest.param("deploy", "botserver=/a", "botui=/b", "pytest.deploy", id="deploy"),
    pytest.param("capsule", "failed", "none", "pytest.capsule", id="capsule"),
    pytest.param("keep", "true", "false", "pytest.keep", id="keep"),
    pytest.param("changes", "true", "false", "pytest.changes", id="changes"),
    pytest.param("verify", "true", "false", "pytest.verify", id="verify"),
]
DEFAULTS = {"project": "STAGE-GBO", "pytest.provision": "auto", "timeouts.lock": "900.0"}


def field(settings: Settings, dotted: str) -> str:
    value: Any = settings
    for name in dotted.split("."):
        value = getattr(value, name)
    return (
        ",".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
    )


def variable(dotted: str) -> str:
    return "STAGEGBO_" + dotted.replace(".", "__").upper()


def toml(dotted: str, value: str) -> str:
    table, _, name = dotted.rpartition(".")
    text = value if dotted in {"timeouts.lock", "pytest.keep", "pytest.changes", "pytest.verify"} else f'"{value}"'
    text = f"[{text}]" if dotted in {"pytest.reset", "pytest.deploy"} else text
    return f"[{table}]\n{name} = {text}" if table else f"{name} = {text}"


def same(found: str, value: str) -> bool:
    return found in {value, f"{value}.0"}


@pytest.mark.parametrize(("name", "high", "low", "dotted"), FIELDS)
class TestPrecedence:
    """Each source wins over the next one, for every option."""

    def test_option_over_environment(
        self, read: Callable[..., Settings], name: str, high: str, low: str, dotted: str
    ) -> None:
        assert same(field(read({name: high}, {variable(dotted): low}), dotted), high)

    def test_environment_over_ini(
        self, read: Callable[..., Settings], name: str, high: str, low: str, dotted: str
    ) -> None:
        assert same(field(read(None, {variable(dotted): high}, {name: low}), dotted), high)

    def test_ini_over_file(self, read: Callable[..., Settings], name: str, high: str, low: str, dotted: str) -> None:
        assert same(field(read(None, None, {name: high}, toml(dotted, low)), dotted), high)

    def test_file(self, read: Callable[..., Settings], name: str, high: str, low: str, dotted: str) -> None:
        assert same(field(read(file=toml(dotted, low)), dotted), low), (name, high)


@pytest.mark.parametrize("high", ["option", "environment", "ini"])
@pytest.mark.parametrize(
    ("name", "falsy", "truthy", "dotted", "expected"),
    [
        pytest.param("keep", "false", "true", "pytest.keep", "false", id="false"),
        pytest.param("reset", "", "cache", "pytest.reset", "", id="an empty list"),
        pytest.param("reset", "none", "cache", "pytest.reset", "none", id="none"),
        pytest.param("disk-min", "0", "5GB", "disk_floor", "0", id="0 bytes"),
    ],
)
def test_a_falsy_value_counts(
    read: Callable[..., Settings], high: str, name: str, falsy: str, truthy: str, dotted: str, expected: str
) -> None:
    sources: dict[str, tuple[Any, ...]] = {
        "option": ({name: falsy}, {variable(dotted): truthy}, {name: truthy}, toml(dotted, truthy)),
        "environment": (None, {variable(dotted): falsy}, {name: truthy}, toml(dotted, truthy)),
        "ini": (None, None, {name: falsy}, toml(dotted, truthy)),
    }
    assert field(read(*sources[high]), dotted) == expected


def test_nothing_given_is_the_defaults(read: Callable[..., Settings]) -> None:
    settings = read()
    assert {dotted: field(settings, dotted) for dotted in DEFAULTS} == DEFAULTS


def test_every_problem_of_every_source_at_once_with_where_it_stands(read: Callable[..., Settings]) -> None:
    with pytest.raises(SettingsError) as caught:
        read(
            {"provision": "sometimes", "lock-timeout": "soon"},
            {"STAGEGBO_DISK_FLOOR": "much"},
            {"reset": "taables", "keep": "perhaps"},
            'projct = "STAGE-2"',
        )
    lines = [line.split(". ", 1)[1] for line in str(caught.value).splitlines() if line[:2] == "  "]
    assert sorted(line.partition(":")[0].split()[0] for line in lines) == [
        "$STAGEGBO_DISK_FLOOR",
        "--stage-lock-timeout",
        "--stage-provision",
        "stage_keep",
        "stage_reset",
        "stagegbo.toml",
    ]


class TestConfig:
    """Which file is read: the option's, the variable's, the ini's."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Callable[[str], str]:
        def make(name: str) -> str:
            (tmp_path / f"{name}.toml").write_text(f'project = "STAGE-{name}"')
            return f"{name}.toml"

        return make

    def test_option_over_environment_over_ini(self, read: Callable[..., Settings], file: Callable[[str], str]) -> None:
        option, environ, ini = {"config": file("A")}, {"STAGEGBO_CONFIG": file("B")}, {"config": file("C")}
        assert read(option, environ, ini).project == "STAGE-A"
        assert read(None, environ, ini).project == "STAGE-B"
        assert read(None, None, ini).project == "STAGE-C"

    def test_an_empty_variable_means_no_file(self, read: Callable[..., Settings], file: Callable[[str], str]) -> None:
        settings = read(None, {"STAGEGBO_CONFIG": ""}, {"config": file("C")}, 'project = "STAGE-D"')
        assert settings.project == "STAGE-GBO"

    def test_a_file_that_is_not_there_is_an_error(self, read: Callable[..., Settings]) -> None:
        with pytest.raises(SettingsError, match="there is no such file"):
            read({"config": "missing.toml"})


@pytest.mark.parametrize("word", ["", "0", "false", "no", "off", "OFF", "False"])
@pytest.mark.parametrize("source", ["environment", "ini"])
def test_the_lab_can_be_said_no_to(read: Callable[..., Settings], source: str, word: str) -> None:
    """Otherwise the root folder of a lab would be looked for, and its network joined."""
    given = (None, {"STAGEGBO_LAB": word}, {"lab": "1"}) if source == "environment" else (None, None, {"lab": word})
    assert read(*given).incus.endpoint == ""
