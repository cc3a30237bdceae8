"""What a test asks of the stage: told from the names of its fixtures, its markers, and the settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.plugin.stash import DEMAND
from pytest_stagegbo.session.requirements import (
    FIXTURES,
    Requirements,
    asks_for_stage,
    baseline_of,
    check_production_access,
    check_quiet,
    demand,
)
from pytest_stagegbo.settings import Layer, Settings, build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIX = ("system", "tables", "vault", "cache", "drive", "llm")
WIPED = ("system", "cache", "drive")


def settings(reset: str = "", more: Mapping[str, object] | None = None) -> Settings:
    return build([Layer.from_dotted("test", {"pytest.reset": reset, **(more or {})})])


def mark(*names: object, **keywords: object) -> pytest.Mark:
    return pytest.mark.stage_reset(*names, **keywords).mark if names or keywords else pytest.mark.stage_reset.mark


def asked(names: str, resets: str = "") -> Requirements:
    return Requirements(frozenset(names.split()), tuple(resets.split()))


@pytest.mark.parametrize(
    ("fixtures", "marks", "reset", "expected"),
    [
        pytest.param(["stage_gbo"], [], "", asked(" ".join(SIX)), id="the stage is all its containers"),
        *(pytest.param([name], [], "", asked(only), id=name) for name, only in FIXTURES.items()),
        pytest.param(["tmp_path", "stage_cache", "stage_llm"], [], "", asked("cache llm"), id="two containers"),
        pytest.param(["stage_cache"], [], "cache", asked("cache", "cache"), id="settings reset what is used"),
        pytest.param(["stage_llm"], [], "all", asked("llm"), id="settings reset nothing that is not used"),
        pytest.param(
            ["stage_gbo"], [], "all", asked(" ".join(SIX), " ".join(WIPED)), id="all: the three that are wiped"
        ),
        pytest.param(["stage_gbo"], [], "none", asked(" ".join(SIX)), id="none: no reset"),
        pytest.param(["stage_cache"], [["cache"]], "", asked("cache", "cache"), id="a marker"),
        pytest.param(["stage_cache"], [["drive"]], "", asked("cache drive", "drive"), id="a marker makes it used"),
        pytest.param([], [["drive", "cache"]], "", asked("cache drive", "drive cache"), id="a marker and no fixture"),
        pytest.param(
            ["stage_llm"], [["all"]], "", asked("llm system cache drive", " ".join(WIPED)), id="a marker: all"
        ),
        pytest.param(["stage_cache"], [["none"]], "all", asked("cache"), id="a marker: none, over the settings"),
        pytest.param(
            ["stage_gbo"], [["drive"]], "cache", asked(" ".join(SIX), "drive"), id="a marker over the settings"
        ),
        pytest.param(["stage_cache"], [["cache"], ["drive"]], "", asked("cache", "cache"), id="the closest marker"),
        pytest.param(["stage_cache"], [["none"], ["cache"]], "", asked("cache"), id="the closest marker: none"),
        pytest.param(["stage_cache"], [["cache", "cache"]], "", asked("cache", "cache"), id="named twice, reset once"),
    ],
)
def test_demand(fixtures: Sequence[str], marks: Sequence[Sequence[str]], reset: str, expected: Requirements) -> None:
    assert demand(fixtures, [mark(*names) for names in marks], settings(reset)) == expected


def test_a_container_that_is_left_out_is_not_used() -> None:
    found = demand(["stage_gbo"], [mark("all")], settings(more={"containers.system.enabled": False}))
    assert found == asked("tables vault cache drive llm", "cache drive")


def test_a_container_with_folders_to_wipe_of_its_own_can_be_reset_by_name() -> None:
    found = demand([], [mark("tables")], settings(more={"containers.tables.wipe": ["/opt/gbo/data/pg"]}))
    assert found == asked("tables", "tables")


@pytest.mark.parametrize("name", ["tables", "vault", "llm"])
def test_what_keeps_its_data_is_reset_by_name_only(name: str) -> None:
    assert demand(["stage_gbo"], [mark(name)], settings()).resets == (name,)
    assert name not in demand(["stage_gbo"], [mark("all")], settings()).resets
    assert set(demand(["stage_gbo"], [mark("all", name)], settings()).resets) == {"system", "cache", "drive", name}


def test_a_container_without_a_way_to_reset_it_is_refused() -> None:
    with pytest.raises(SettingsError, match="cannot be reset: vault"):
        demand(["stage_gbo"], [mark("vault")], settings(more={"containers.vault.reset": "restart"}))


@pytest.mark.parametrize("name", ["chache", "STAGE", ""])
def test_what_cannot_be_reset_is_refused_and_the_rest_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=re.escape("stage_reset names what cannot be reset")) as caught:
        demand(["stage_gbo"], [mark("cache", name)], settings())
    assert "cache" not in caught.value.message.partition("; did you mean")[0]
    assert ("did you mean cache?" in caught.value.message) == (name == "chache")
    assert caught.value.remedy == "choose from system, tables, vault, cache, drive, llm, all, none"


@pytest.mark.parametrize(
    ("fixtures", "marked", "expected"),
    [
        (["tmp_path"], False, False),
        ([], True, True),
        (["stage_gbo"], False, True),
        (["stage_settings"], False, False),
        *((["tmp_path", name], False, True) for name in FIXTURES),
    ],
)
def test_whether_a_test_has_to_do_with_the_stage(fixtures: Sequence[str], marked: bool, expected: bool) -> None:
    assert asks_for_stage(fixtures, marked=marked) is expected


def test_a_baseline_is_about_all_that_it_may_have_and_what_is_reset_anyway() -> None:
    wanted = demand(["stage_llm"], [mark("vault")], settings(), baseline="demo")
    four = ("system", "tables", "cache", "drive")
    assert wanted == Requirements(frozenset({*four, "vault", "llm"}), (*four, "vault"), baseline="demo")


@pytest.mark.parametrize("wrong", [(), ("a", "b"), (7,), ("a b",), ("",)])
def test_a_baselines_marker_has_one_name(wrong: tuple[object, ...]) -> None:
    assert baseline_of(pytest.mark.stage_baseline("demo").mark) == "demo"
    assert baseline_of(None) == ""
    with pytest.raises(SettingsError, match=r"stage_baseline takes one name|no name of a baseline"):
        baseline_of(pytest.mark.stage_baseline(*wrong).mark if wrong else pytest.mark.stage_baseline.mark)


CHOICE = "; choose from system, tables, vault, cache, drive, llm, all, none"


@pytest.mark.parametrize(
    ("wrong", "message", "remedy"),
    [
        (mark(), "names no container", '"cache"'),
        (mark(names="cache"), "takes names without a keyword, and got names=", '"cache"'),
        (mark("drive", name=["cache"]), "takes names without a keyword", '"drive", "cache"'),
        (mark(["cache", "drive"]), "takes each name as a text of its own", '"cache", "drive"'),
        (mark(("tables",)), "takes each name as a text of its own", '"tables"'),
        (mark({"cache": 1}), "takes each name as a text of its own", '"cache"'),
        (mark("cache,drive"), "takes each name as a text of its own", '"cache", "drive"'),
        (mark("cache", None), "takes each name as a text of its own, and got None", '"cache"'),
        (mark(b"cache"), "takes each name as a text of its own, and got b'cache'", '"cache"'),
        (mark(lambda: None), "takes each name as a text of its own", '"cache"'),
        (mark(True), "takes each name as a text of its own, and got True", '"cache"'),
        (mark("none", "cache"), "none goes with no other name", '"none", "cache"'),
    ],
)
@pytest.mark.parametrize("further", [False, True])
def test_a_marker_that_means_nothing_says_what_to_write(
    wrong: pytest.Mark, message: str, remedy: str, further: bool
) -> None:
    """Also where a closer one counts instead."""
    marks = [mark("llm"), wrong] if further else [wrong]
    with pytest.raises(SettingsError, match=message) as caught:
        demand(["stage_cache"], marks, settings("cache"))
    assert caught.value.remedy == f"write @pytest.mark.stage_reset({remedy}){CHOICE}"


@pytest.mark.parametrize(
    "given", [((), {}), (("",), {}), ((" ",), {}), ((7,), {}), (("a", "b"), {}), ((), {"why": "a"})]
)
def test_a_reason_for_production_is_one_text(given: tuple[tuple[object, ...], dict[str, object]]) -> None:
    args, keywords = given
    wrong = pytest.Mark("stage_production_access", args, keywords, _ispytest=True)
    with pytest.raises(SettingsError, match="says why in one text"):
        check_production_access(wrong)
    check_production_access(pytest.mark.stage_production_access("why").mark)
    check_production_access(pytest.mark.stage_production_access(reason="why").mark)


# As pytest gives it to the plugin ---------------------------------------------------------------------------------


def demands(pytester: pytest.Pytester, code: str, *args: str) -> dict[str, Requirements | None]:
    """Of every test that is collected, by its name."""
    pytester.makepyfile(f"import pytest\n{code}")
    items, _ = pytester.inline_genitems(*args)
    return {item.name: item.stash.get(DEMAND, None) for item in items}


@pytest.mark.parametrize(
    ("fixture", "container"),
    [
        ("stage_psycopg", "tables"),
        ("stage_valkey", "cache"),
        ("stage_s3", "drive"),
        ("stage_hvac", "vault"),
        ("stage_openai", "llm"),
        *FIXTURES.items(),
    ],
)
def test_a_client_uses_its_container_and_no_other(pytester: pytest.Pytester, fixture: str, container: str) -> None:
    assert demands(pytester, f"def test_it({fixture}): pass") == {"test_it": asked(container)}


def test_a_fixture_that_uses_the_stage_makes_its_tests_use_it(pytester: pytest.Pytester) -> None:
    code = """
        @pytest.fixture
        def seeded(stage_drive): pass
        @pytest.fixture
        def bot(seeded): pass
        def test_with(bot): pass
        def test_without(): pass
        @pytest.mark.usefixtures("bot")
        def test_named(): pass
    """
    found = demands(pytester, _plain(code))
    assert found == {"test_with": asked("drive"), "test_without": None, "test_named": asked("drive")}


def test_an_autouse_fixture_makes_all_tests_use_it(pytester: pytest.Pytester) -> None:
    code = """
        @pytest.fixture(autouse=True, scope="module")
        def seeded(stage_cache): pass
        def test_it(): pass
    """
    assert demands(pytester, _plain(code)) == {"test_it": asked("cache")}


def test_the_closest_marker_counts(pytester: pytest.Pytester) -> None:
    """Of test, class and module, over `--stage-reset`."""
    code = """
        pytestmark = pytest.mark.stage_reset("system")
        def test_module(stage_gbo): pass
        @pytest.mark.stage_reset("none")
        def test_none(stage_gbo): pass
        @pytest.mark.stage_reset("drive")
        class TestClass:
            def test_class(self, stage_gbo): pass
            @pytest.mark.stage_reset("cache", "drive")
            def test_own(self, stage_gbo): pass
    """
    found = {name: each and each.resets for name, each in demands(pytester, _plain(code), "--stage-reset=all").items()}
    assert found == {
        "test_module": ("system",),
        "test_none": (),
        "test_class": ("drive",),
        "test_own": ("cache", "drive"),
    }


def test_a_marker_on_one_parameter_is_for_that_one_only(pytester: pytest.Pytester) -> None:
    code = """
        @pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.stage_reset("cache"))])
        def test_it(n, stage_cache): pass
    """
    found = demands(pytester, _plain(code))
    assert found == {"test_it[1]": asked("cache"), "test_it[2]": asked("cache", "cache")}


@pytest.mark.parametrize(
    ("fixtures", "more", "expected"),
    [
        (["stage_cache"], {}, "system"),
        (["stage_tables", "stage_llm"], {}, "system"),
        (["stage_llm"], {}, ""),
        (["stage_vault"], {"containers.llm.writes_to": ["vault"]}, "llm"),
        (["stage_cache"], {"containers.system.writes_to": ["drive"]}, ""),
        (["stage_cache", "stage_system"], {}, ""),
        (["stage_gbo"], {}, ""),
    ],
)
def test_quiet_is_about_who_may_write_and_is_not_asked_for(
    fixtures: list[str], more: dict[str, object], expected: str
) -> None:
    assert demand(fixtures, [], settings(more=more)).quiet == frozenset()
    assert demand(fixtures, [], settings(more=more), quiet=True).quiet == frozenset(expected.split())
    assert demand(fixtures, [], settings(more={"pytest.quiet": True, **more})).quiet == frozenset(expected.split())


def test_quiet_without_the_container_that_is_written_to() -> None:
    assert settings(more={"containers.cache": False}).containers["system"].writes_to == ("tables", "drive")


def test_a_quiet_marker_takes_nothing(pytester: pytest.Pytester) -> None:
    check_quiet(pytest.mark.stage_quiet.mark)
    with pytest.raises(SettingsError, match="stage_quiet takes no arguments, and got 'cache', why="):
        check_quiet(pytest.mark.stage_quiet("cache", why=1).mark)
    code = """
        @pytest.mark.stage_quiet
        class TestClass:
            def test_it(self, stage_cache): pass
    """
    assert demands(pytester, _plain(code)) == {"test_it": Requirements(frozenset({"cache"}), (), frozenset({"system"}))}


def _plain(code: str) -> str:
    return "\n".join(line[8:] for line in code.splitlines())
