"""Runs in which nothing may be done to a stage: no test is executed, or none that uses the stage."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.lab import Lab
from pytest_stagegbo.plugin.configuration import Configuration
from pytest_stagegbo.plugin.process import StageProcess
from pytest_stagegbo.plugin.running import executed

if TYPE_CHECKING:
    from pytest_stagegbo.session.session import StageSession

OPTIONS = ["--stage-reset=cache", "--stage-slots=2", "--stage-provision=recreate", "--stage-verify", "-p", "no:xdist"]
CODE = """
    import pytest
    @pytest.mark.stage_reset("cache")
    def test_shared(stage_cache): pass
    def test_fresh(stage_fresh): pass
    def test_settings(stage_settings): pass
    def test_asks(request): request.getfixturevalue("stage_gbo")
    @pytest.fixture
    def asks(request): return request.getfixturevalue("stage_drive")
    def test_fixture_asks(asks): pass
"""
SKIPPED = """
    import unittest
    import pytest
    @pytest.mark.skip
    def test_skip(stage_cache, stage_fresh): pass
    @pytest.mark.skipif(True, reason="so")
    def test_if(stage_cache): pass
    @pytest.mark.skipif(condition=True, reason="so")
    def test_condition(stage_fresh): pass
    @pytest.mark.xfail(run=False)
    def test_fails(stage_gbo): pass
    def test_plain(): pass
    @unittest.skip("not today")
    @pytest.mark.usefixtures("stage_cache")
    class TestSkipped(unittest.TestCase):
        def test_class(self): pass
    @pytest.mark.usefixtures("stage_cache", "stage_fresh")
    @pytest.mark.stage_reset("cache")
    class TestPartly(unittest.TestCase):
        @unittest.skip("not today")
        def test_method(self): pass
        @unittest.skipIf(True, "not today")
        def test_condition(self): pass
"""


@pytest.fixture
def sessions(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each time that the plugin would have connected, or joined a lab."""
    (pytester.path / "stagegbo.toml").write_text('incus.endpoint = "/nonexistent/unix.socket"\n')
    monkeypatch.setenv("STAGEGBO_LAB_DIR", str(pytester.path / "labs"))  # a lab that is up is nobody's to use here
    found: list[str] = []
    original = StageProcess.session

    def session(self: StageProcess) -> StageSession:
        found.append("connects")
        return original(self)

    monkeypatch.setattr(StageProcess, "session", session)
    monkeypatch.setattr(Lab, "join_network", lambda _: found.append("joins"))
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["--collect-only"],
        ["--co", "-q"],
        ["--setup-plan"],
        ["--setup-only"],
        ["--fixtures"],
        ["--funcargs"],
        ["--fixtures-per-test"],
        ["--markers"],
        ["--help"],
        ["--version"],
        ["--cache-show"],
        ["-k", "nothing"],
        ["--deselect", "test_it.py"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("lab", ["", "1"])
def test_whatever_executes_no_test_does_nothing(
    pytester: pytest.Pytester,
    sessions: list[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    lab: str,
) -> None:
    """Also where the lab is wanted and this is not root."""
    monkeypatch.setenv("STAGEGBO_LAB", lab)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    pytester.makepyfile(test_it=CODE)
    result = pytester.runpytest_inprocess(*OPTIONS, *arguments)
    assert result.ret in {0, pytest.ExitCode.NO_TESTS_COLLECTED}
    assert sessions == []
    assert "INTERNALERROR" not in result.stdout.str()


def test_setup_only_says_why_it_leaves_tests_out(pytester: pytest.Pytester, sessions: list[str]) -> None:
    pytester.makepyfile(test_it=CODE)
    result = pytester.runpytest_inprocess("--setup-only", "-rs")
    result.stdout.fnmatch_lines(["SKIPPED * no test is executed, so nothing is done to the stage"])
    assert sessions == []


def test_help_is_printed_whatever_the_options_say(pytester: pytest.Pytester, sessions: list[str]) -> None:
    result = pytester.runpytest_inprocess("--help", "-o", "stage_lab=maybe")
    assert result.ret == 0
    assert sessions == []


@pytest.mark.parametrize("code", [SKIPPED, "raise RuntimeError('not to be collected')"])
def test_tests_that_are_not_executed_need_no_stage(pytester: pytest.Pytester, sessions: list[str], code: str) -> None:
    """All are skipped, or pytest ends because of an error in collection."""
    pytester.makepyfile(test_it=code, test_other=CODE if "raise" in code else "")
    result = pytester.runpytest_inprocess(*OPTIONS)
    assert result.ret in {0, pytest.ExitCode.INTERRUPTED}
    assert sessions == []


def test_tests_that_come_after_errors_in_collection_need_it(pytester: pytest.Pytester, sessions: list[str]) -> None:
    pytester.makepyfile(test_it="raise RuntimeError", test_other="def test_it(stage_cache): pass")
    pytester.runpytest_inprocess("--continue-on-collection-errors").assert_outcomes(errors=2)
    assert sessions


class TestLab:
    """The lab is joined, and root asked for, when a test needs the stage."""

    @pytest.fixture(autouse=True)
    def _exported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STAGEGBO_LAB", "1")

    def test_no_test_uses_the_stage(
        self, pytester: pytest.Pytester, sessions: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setenv("STAGEGBO_LAB_NAME", "Not A Name")
        (pytester.path / "stagegbo.toml").write_text("no TOML [")
        pytester.makepyfile("def test_it(): pass")
        pytester.runpytest_inprocess().assert_outcomes(passed=1)
        assert sessions == []

    def test_without_root_only_the_tests_that_use_the_stage_fail(
        self, pytester: pytest.Pytester, sessions: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        pytester.makepyfile("def test_it(): pass\ndef test_stage(stage_cache): pass\ndef test_after(): pass")
        result = pytester.runpytest_inprocess()
        result.assert_outcomes(passed=2, errors=1)
        result.stdout.fnmatch_lines(["*MissingRequirement: the lab needs root*"])
        assert "joins" not in sessions

    def test_a_test_that_uses_the_stage_joins(
        self, pytester: pytest.Pytester, sessions: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        pytester.makepyfile("def test_stage(stage_cache): pass")
        pytester.runpytest_inprocess()
        assert "joins" in sessions


def test_a_worker_goes_on_after_errors_in_collection(pytester: pytest.Pytester, sessions: list[str]) -> None:
    """So what its tests need is got before the first one."""
    pytester.makepyfile(test_it="raise RuntimeError", test_other="def test_it(stage_cache): pass")
    items, _ = pytester.inline_genitems("test_other.py")
    items[0].session.testsfailed, items[0].config.option.collectonly = 1, False
    assert executed(items) == []
    items[0].config.workerinput = {}  # type: ignore[attr-defined] # pytest-xdist's
    assert executed(items) == items
    assert sessions == []


@pytest.mark.parametrize(
    ("arguments", "ini", "environ", "expected"),
    [
        ([], "", {}, "stagegbo"),
        (["--stage-lab"], "", {}, "stagegbo --lab"),
        ([], "stage_lab = false", {}, "stagegbo"),
        ([], "stage_lab = 1", {"STAGEGBO_LAB": "off"}, "stagegbo"),
        ([], "", {"STAGEGBO_LAB": "on"}, "stagegbo --lab"),
        ([], "stage_lab = 7.0", {}, "STAGEGBO_LAB=7.0 stagegbo --lab"),
        ([], "stage_project = STAGE-2", {}, "stagegbo --project STAGE-2"),
        ([], "", {"STAGEGBO_PROJECT": "STAGE-3"}, "stagegbo --project STAGE-3"),
        ([], "stage_config = a.toml", {}, "stagegbo --config a.toml"),
        ([], "stage_config = a.toml", {"STAGEGBO_CONFIG": "b.toml"}, "stagegbo"),
        (["--stage-config=b.toml"], "stage_config = a.toml", {}, "stagegbo --config b.toml"),
    ],
)
def test_commands_to_copy_are_aimed_at_what_the_run_uses(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    ini: str,
    environ: dict[str, str],
    expected: str,
) -> None:
    for name in ("a.toml", "b.toml"):
        (pytester.path / name).touch()
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    pytester.makeini(f"[pytest]\n{ini}\n")
    found = pytester.parseconfigure(*arguments).pluginmanager.get_plugin("stagegbo-configuration")
    assert isinstance(found, Configuration)
    assert found.settings
    assert found.command(0) == expected
    assert found.command(2) == f"{expected} --slot 2"
