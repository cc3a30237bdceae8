"""The plugin in pytest, where there is no Incus."""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_plugin import HEAVY

from pytest_stagegbo.lab import Lab
from pytest_stagegbo.lab.paths import Paths
from pytest_stagegbo.plugin import options
from pytest_stagegbo.plugin.configuration import Configuration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.settings import Settings

NOWHERE = 'incus.endpoint = "/nonexistent/unix.socket"\n'
MALFORMED = 'projct = "STAGE-2"\ndisk_floor = "much"\n'
NO_DAEMON = "*ServerUnreachable: *"
REMINDER = "*StageMissing: the stage could not be provisioned: *"
FIXTURES = [
    "stage_gbo",
    "stage_fresh",
    "stage_settings",
    "stage_changes",
    "stage_credentials",
    "stage_system",
    "stage_tables",
    "stage_vault",
    "stage_cache",
    "stage_drive",
    "stage_llm",
    "stage_psycopg",
    "stage_psycopg_async",
    "stage_valkey",
    "stage_valkey_async",
    "stage_s3",
    "stage_hvac",
    "stage_openai",
]


@pytest.fixture
def nowhere(pytester: pytest.Pytester) -> pytest.Pytester:
    """A folder whose settings aim at a daemon that is not there."""
    (pytester.path / "stagegbo.toml").write_text(NOWHERE)
    return pytester


class TestNothingAsked:
    """A run whose tests do not use the stage costs nothing, and nothing about the stage can make it fail."""

    @pytest.fixture(params=["no file", NOWHERE, MALFORMED, "no TOML ["], ids=["no file", "no daemon", "bad", "broken"])
    def folder(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        if request.param != "no file":
            (tmp_path / "stagegbo.toml").write_text(request.param)
        (tmp_path / "test_plain.py").write_text("def test_plain(tmp_path): pass\n")
        return tmp_path

    def test_whatever_the_settings_say(self, folder: Path) -> None:
        """Five runs in one process, which in the end has imported nothing heavy for any of them."""
        ways = ["-q", "--collect-only", "--fixtures", "--markers", "--help"]
        code = (
            f"import sys, pytest; ends = [int(pytest.main([way])) for way in {ways}]\n"
            "print('modules:', *sys.modules); sys.exit(str(ends))"
        )
        environ = {**os.environ, "STAGEGBO_ENDPOINT_CACHE_URL": "redis://10.0.3.13:6379", "STAGEGBO_DEBUG": "1"}
        environ |= {"INCUS_SOCKET": "/nonexistent", "STAGEGBO_LAB_NAME": "mine", "PYTHONWARNINGS": "error"}
        argv = [sys.executable, "-c", code]
        done = subprocess.run(argv, cwd=folder, env=environ, capture_output=True, text=True, check=False)
        assert done.stderr == f"{[0] * len(ways)}\n", done.stdout + done.stderr
        modules = set(done.stdout.partition("modules:")[2].split())
        assert "pytest_stagegbo.plugin" in modules
        assert not modules & (HEAVY - {"tomli"})  # pytest's own on Python 3.10

    def test_no_line_about_the_stage_is_printed(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile("def test_plain(): pass")
        assert "stage-gbo" not in nowhere.runpytest_inprocess().stdout.str()


class TestNoDaemon:
    """What needs the stage fails; the rest doesn't notice."""

    CODE = """
        import pytest
        def test_before(): pass
        def test_first(stage_gbo): pass
        def test_second(stage_cache): pass
        @pytest.mark.stage_reset("cache")
        def test_third(): pass
        def test_after(): pass
        @pytest.mark.skip
        def test_skipped(stage_gbo): pass
        @pytest.mark.skipif(True, reason="no Incus here")
        @pytest.mark.stage_reset("all")
        def test_skipped_too(stage_gbo): pass
        @pytest.mark.xfail(run=False)
        def test_not_run(stage_gbo): pass
    """

    def test_each_test_that_needs_it_fails_the_first_with_the_whole_error(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile(self.CODE)
        result = nowhere.runpytest_inprocess("-ra")
        result.assert_outcomes(passed=2, errors=3, skipped=2, xfailed=1)
        result.stdout.fnmatch_lines(
            ["*ERROR at setup of test_first*", NO_DAEMON, "*last seen: *", "*ERROR at setup of test_second*", REMINDER]
        )
        text = result.stdout.str()
        assert text.count("last seen: ") == 1
        assert text.count("see the first test that says so") == 2

    def test_nothing_else_is_printed_of_it(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile("def test_it(stage_gbo): pass")
        text = nowhere.runpytest_inprocess().stdout.str()
        assert "Traceback" not in text
        assert "During handling" not in text
        assert "pytest_stagegbo/plugin" not in text

    def test_a_test_that_asks_for_it_only_while_it_runs_fails_too(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile("def test_it(request): request.getfixturevalue('stage_gbo')")
        result = nowhere.runpytest_inprocess()
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*ServerUnreachable: *"])

    def test_collecting_does_not_need_it(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile(self.CODE)
        result = nowhere.runpytest_inprocess("--collect-only", "-q")
        assert result.ret == 0
        result.stdout.fnmatch_lines(["*::test_first", "*::test_after"])

    def test_the_header_says_so_where_the_stage_was_spoken_of(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile("def test_it(): pass")
        result = nowhere.runpytest_inprocess("--stage-project=STAGE-2")
        assert result.ret == 0
        result.stdout.fnmatch_lines(["stage-gbo: project STAGE-2, a clone of default, on Incus at /nonexistent/*"])

    def test_a_test_that_uses_it_is_reason_enough_for_the_header(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile("def test_it(stage_gbo): pass")
        nowhere.runpytest_inprocess().stdout.fnmatch_lines(["collected 1 item", "stage-gbo: project STAGE-GBO, *: *"])


class TestUsageErrors:
    """Said before a test is collected, all at once."""

    @pytest.fixture
    def untouched(self, pytester: pytest.Pytester) -> pytest.Pytester:
        pytester.makepyfile("raise SystemExit('collected')")
        return pytester

    def test_of_options_environment_ini_and_file(
        self, untouched: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STAGEGBO_TIMEOUTS__READY", "soon")
        (untouched.path / "stagegbo.toml").write_text(MALFORMED)
        untouched.makeini("[pytest]\nstage_reset = tables,chache\nstage_keep = perhaps\n")
        result = untouched.runpytest_inprocess("--stage-provision=sometimes", "--stage-lock-timeout=-1")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines_random(
            [
                "ERROR: * problems in the settings:",
                "*--stage-provision: 'sometimes' is not one of *",
                "*$STAGEGBO_TIMEOUTS__READY: 'soon' *",
                "*stage_keep: 'perhaps' *",
                "*stagegbo.toml projct: unknown key 'projct'*",
                "*stagegbo.toml disk_floor: 'much' *",
            ]
        )
        assert "collected" not in result.stdout.str()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--stage-reset=chache"], "*--stage-reset: unknown: chache; there are all, cache, *"),
            (["--stage-reset=taables"], "*--stage-reset: unknown: taables*"),
            (["--stage-reset=none,cache"], "*--stage-reset: none goes with no other name*"),
            (["--stage-project=default"], "*--stage-project: *"),
            (["--stage-disk-min=much"], "*--stage-disk-min: 'much' *"),
            (["--stage-config=missing.toml"], "*missing.toml: there is no such file*"),
            (["-o", "stage_lock_timeout=soon"], "*stage_lock_timeout: 'soon' *"),
        ],
        ids=lambda value: value[-1] if isinstance(value, list) else "",
    )
    def test_of_one_value(self, untouched: pytest.Pytester, arguments: Sequence[str], message: str) -> None:
        result = untouched.runpytest_inprocess(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([message])

    def test_of_a_file_once_a_test_uses_the_stage(self, pytester: pytest.Pytester) -> None:
        (pytester.path / "stagegbo.toml").write_text(MALFORMED)
        pytester.makepyfile("def test_one(stage_gbo): pass\ndef test_two(stage_gbo): pass")
        result = pytester.runpytest_inprocess()
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert result.stderr.str().count("unknown key 'projct'") == 1

    def test_under_xdist_fail_the_tests_that_need_the_stage(self, pytester: pytest.Pytester) -> None:
        """pytest-xdist can't be ended with a message while a worker collects."""
        pytest.importorskip("xdist")
        (pytester.path / "stagegbo.toml").write_text(MALFORMED)
        pytester.makepyfile("def test_it(stage_gbo): pass\ndef test_plain(): pass")
        result = pytester.runpytest_subprocess("-n1")
        result.assert_outcomes(errors=1, passed=1)
        result.stdout.fnmatch_lines(["*SettingsError: *", "*unknown key 'projct'*"])


class TestMarkers:
    """A wrong one is an error of its test's collection, and nobody else's."""

    CODE = """
        import pytest
        @pytest.mark.stage_reset
        def test_bare(stage_cache): raise SystemExit("run")
        @pytest.mark.stage_reset(["cache", "drive"])
        def test_list(stage_cache): raise SystemExit("run")
        @pytest.mark.stage_reset(names="cache")
        def test_keyword(): raise SystemExit("run")
        class TestClass:
            pytestmark = pytest.mark.stage_reset("chache")
            def test_name(self, stage_gbo): raise SystemExit("run")
        @pytest.mark.stage_production_access
        def test_reason(): raise SystemExit("run")
        def test_plain(): pass
    """
    ERRORS = (
        "*::test_bare: stage_reset names no container*",
        '*write @pytest.mark.stage_reset("cache"); choose from *',
        "*::test_list: stage_reset takes each name as a text of its own*",
        '*write @pytest.mark.stage_reset("cache", "drive"); choose from *',
        "*::test_keyword: stage_reset takes names without a keyword*",
        "*::TestClass::test_name: stage_reset names what cannot be reset: chache; did you mean cache*",
        "*::test_reason: stage_production_access says why in one text*",
    )

    def test_pytest_ends_after_the_collection(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile(self.CODE)
        result = nowhere.runpytest_inprocess("-p", "no:xdist")
        assert result.ret == pytest.ExitCode.INTERRUPTED
        result.assert_outcomes(errors=5)
        result.stdout.fnmatch_lines(self.ERRORS)

    def test_and_goes_on_where_it_is_told_to(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile(self.CODE)
        result = nowhere.runpytest_inprocess("-p", "no:xdist", "--continue-on-collection-errors")
        result.assert_outcomes(errors=5, passed=1)

    def test_collecting_only_shows_them(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile(self.CODE)
        result = nowhere.runpytest_inprocess("-p", "no:xdist", "--collect-only", "-q")
        assert result.ret == pytest.ExitCode.INTERRUPTED
        result.stdout.fnmatch_lines(self.ERRORS)

    def test_tests_that_are_left_out_are_not_judged(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile(self.CODE)
        nowhere.runpytest_inprocess("-p", "no:xdist", "-k", "plain").assert_outcomes(passed=1, deselected=5)

    def test_under_xdist_the_other_tests_go_on(self, nowhere: pytest.Pytester) -> None:
        pytest.importorskip("xdist")
        nowhere.makepyfile(self.CODE)
        result = nowhere.runpytest_subprocess("-n2")
        result.assert_outcomes(errors=5, passed=1)
        result.stdout.fnmatch_lines(self.ERRORS)
        assert "INTERNALERROR" not in result.stdout.str()
        assert "WorkerController" not in result.stdout.str()

    def test_one_that_a_conftest_adds_counts(self, nowhere: pytest.Pytester) -> None:
        """Also in a hook that runs last, and a fixture's name too."""
        nowhere.makeconftest(
            """
            import pytest
            @pytest.hookimpl(trylast=True)
            def pytest_collection_modifyitems(items):
                items[0].add_marker(pytest.mark.stage_reset("cache"))
                items[1].add_marker(pytest.mark.stage_reset)
                items[2].fixturenames.append("stage_drive")
            """
        )
        nowhere.makepyfile("def test_added(): pass\ndef test_wrong(): pass\ndef test_named(): pass")
        result = nowhere.runpytest_inprocess("--continue-on-collection-errors")
        result.assert_outcomes(errors=3)
        result.stdout.fnmatch_lines(["*::test_wrong: stage_reset names no*", NO_DAEMON, REMINDER])

    def test_one_that_comes_too_late_fails_its_test(self, nowhere: pytest.Pytester) -> None:
        nowhere.makepyfile(
            """
            import pytest
            @pytest.fixture
            def late(request): request.applymarker(pytest.mark.stage_reset("cache"))
            def test_it(late): pass
            def test_plain(): pass
            """
        )
        result = nowhere.runpytest_inprocess()
        result.assert_outcomes(failed=1, passed=1)
        result.stdout.fnmatch_lines(["*added to this test after the collection, too late*"])


TABLE = [
    ("project", "STAGE-2", ("project",), "STAGE-2"),
    ("provision", "never", ("pytest", "provision"), "never"),
    ("reset", "cache, drive", ("pytest", "reset"), ("cache", "drive")),
    ("reset", "none", ("pytest", "reset"), ("none",)),
    ("reset", "", ("pytest", "reset"), ()),
    ("deploy", "botserver=/x/b", ("pytest", "deploy"), ("botserver=/x/b",)),
    ("slots", "4", ("slots", "count"), 4),
    ("slots", "auto", ("slots", "count"), "auto"),
    ("lock-timeout", "2.5", ("timeouts", "lock"), 2.5),
    ("disk-min", "0", ("disk_floor",), "0"),
    ("production-access", "allow", ("pytest", "production_access"), "allow"),
    ("config", "other.toml", ("source_project",), "PROD-2"),
]


class TestOptions:
    """Every option, on the command line and in ini files."""

    @staticmethod
    def settings(pytester: pytest.Pytester, *arguments: str) -> Settings:
        (pytester.path / "other.toml").write_text('source_project = "PROD-2"\n')
        found = pytester.parseconfigure(*arguments).pluginmanager.get_plugin("stagegbo-configuration")
        assert isinstance(found, Configuration)
        return found.settings

    @staticmethod
    def value(settings: Settings, path: tuple[str, ...]) -> object:
        found: Any = settings
        for name in path:
            found = getattr(found, name)
        return found

    def test_none_is_left_out_here(self) -> None:
        tested = {name for name, *_ in TABLE} | {"capsule", "changes", "keep", "lab", "quiet", "report", "verify"}
        assert tested == {*options.OPTIONS, *options.SWITCHES}

    @pytest.mark.parametrize(("name", "text", "path", "expected"), TABLE)
    def test_on_the_command_line(
        self, pytester: pytest.Pytester, name: str, text: str, path: tuple[str, ...], expected: object
    ) -> None:
        assert self.value(self.settings(pytester, f"--stage-{name}={text}"), path) == expected

    @pytest.mark.parametrize("form", ["pytest.ini", "pyproject.toml", "-o"])
    @pytest.mark.parametrize(("name", "text", "path", "expected"), TABLE)
    def test_in_ini_files(
        self, pytester: pytest.Pytester, form: str, name: str, text: str, path: tuple[str, ...], expected: object
    ) -> None:
        ini = "stage_" + name.replace("-", "_")
        if form == "-o":
            found = self.settings(pytester, "-o", f"{ini}={text}")
        else:
            content = f"[pytest]\n{ini} = {text}" if form == "pytest.ini" else _pyproject(ini, text)
            (pytester.path / form).write_text(content)
            found = self.settings(pytester)
        assert self.value(found, path) == expected

    def test_command_line_over_environment_over_ini_over_file(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (pytester.path / "stagegbo.toml").write_text('project = "STAGE-FILE"')
        assert self.settings(pytester).project == "STAGE-FILE"
        pytester.makeini("[pytest]\nstage_project = STAGE-INI")
        assert self.settings(pytester).project == "STAGE-INI"
        monkeypatch.setenv("STAGEGBO_PROJECT", "STAGE-ENV")
        assert self.settings(pytester).project == "STAGE-ENV"
        assert self.settings(pytester, "--stage-project=STAGE-CLI").project == "STAGE-CLI"

    def test_verify(self, pytester: pytest.Pytester) -> None:
        assert self.settings(pytester, "--stage-verify").pytest.verify is True
        assert self.settings(pytester, "-o", "stage_verify=true").pytest.verify is True

    def test_changes(self, pytester: pytest.Pytester) -> None:
        assert self.settings(pytester).pytest.changes is False
        assert self.settings(pytester, "--stage-changes").pytest.changes is True
        assert self.settings(pytester, "-o", "stage_changes=true").pytest.changes is True

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ([], False),
            (["--stage-keep"], True),
            (["-o", "stage_keep=true"], True),
            (["-o", "stage_keep=false"], False),
            (["-o", "stage_keep=false", "--stage-keep"], True),
        ],
    )
    def test_keep(self, pytester: pytest.Pytester, arguments: list[str], expected: bool) -> None:
        assert self.settings(pytester, *arguments).pytest.keep is expected

    @pytest.mark.parametrize(
        ("arguments", "environ", "expected"),
        [
            ([], {}, []),
            (["--stage-lab"], {}, [None]),
            (["-o", "stage_lab=7.0"], {}, ["7.0"]),
            (["-o", "stage_lab=no"], {}, []),
            (["-o", "stage_lab=1"], {"STAGEGBO_LAB": "0"}, []),
            ([], {"STAGEGBO_LAB": "6.0"}, ["6.0"]),
            (["--stage-lab"], {"STAGEGBO_LAB": "0"}, [None]),
            (["-o", "stage_lab=7.0"], {"STAGEGBO_LAB": "off"}, []),
            ([], {"STAGEGBO_LAB": " ON "}, [None]),
        ],
    )
    def test_lab(
        self,
        pytester: pytest.Pytester,
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        environ: dict[str, str],
        expected: list[str | None],
    ) -> None:
        """When it is aimed at, and at which; an option over what it implies."""
        found: list[str | None] = []

        def find(version: str | None) -> Lab:
            found.append(version)
            return Lab(Paths(Path("/labs"), "some", "6.0"))

        monkeypatch.setattr(Lab, "find", find)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        settings = self.settings(pytester, "--stage-project=STAGE-2", *arguments)
        assert found == expected
        assert settings.project == "STAGE-2"
        assert settings.incus.endpoint == ("/labs/labs/some/incus/unix.socket" if expected else "")

    @pytest.mark.parametrize(
        ("arguments", "environ", "place"),
        [
            (["--stage-lab=maybe"], {}, "*unrecognized arguments*|*ignored explicit argument*"),
            (["-o", "stage_lab=maybe"], {}, "ERROR: stage_lab: 'maybe' does not say whether to use the lab*"),
            ([], {"STAGEGBO_LAB": "5.0"}, "ERROR: $STAGEGBO_LAB: '5.0' does not say whether to use the lab*"),
        ],
    )
    def test_a_lab_that_is_neither_wanted_nor_not(
        self,
        nowhere: pytest.Pytester,
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        environ: dict[str, str],
        place: str,
    ) -> None:
        nowhere.makepyfile("def test_it(stage_cache): pass")
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        result = nowhere.runpytest_inprocess(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        text = result.stderr.str()
        assert any(fnmatch.fnmatch(line, each) for line in text.splitlines() for each in place.split("|")), text


def _pyproject(name: str, text: str) -> str:
    return f'[tool.pytest.ini_options]\n{name} = "{text}"\n'


class TestHelp:
    def test_options(self, pytester: pytest.Pytester) -> None:
        text = pytester.runpytest_inprocess("--help").stdout.str()
        for name in (*options.OPTIONS, *options.SWITCHES):
            assert f"--stage-{name}" in text
            assert f"stage_{name.replace('-', '_')} (string)" in text

    def test_marker(self, pytester: pytest.Pytester) -> None:
        result = pytester.runpytest_inprocess("--markers", "--strict-markers")
        result.stdout.fnmatch_lines(["@pytest.mark.stage_reset(?names): reset these containers of the stage *"])

    def test_every_fixture_says_what_it_is(self, pytester: pytest.Pytester) -> None:
        lines = pytester.runpytest_inprocess("--fixtures").stdout.lines
        said = {line.split()[0]: lines[number + 1] for number, line in enumerate(lines) if line.startswith("stage_")}
        assert sorted(said) == sorted(FIXTURES)
        assert not [name for name, text in said.items() if not text.strip() or "no docstring" in text]


def test_the_settings_can_be_had_without_the_stage(nowhere: pytest.Pytester) -> None:
    nowhere.makepyfile("def test_it(stage_settings): assert stage_settings.project == 'STAGE-2'")
    nowhere.runpytest_inprocess("--stage-project=STAGE-2").assert_outcomes(passed=1)
