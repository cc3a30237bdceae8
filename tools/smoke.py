"""What has to work wherever the package is installed: run by `tools/release_check.py` in an environment that has the
package, what it asks for, and nothing else."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_stagegbo

pytest_plugins = ["pytester"]

DISTRIBUTIONS = os.environ["SMOKE_DISTRIBUTIONS"].split()
FOUND = pkgutil.walk_packages(pytest_stagegbo.__path__, "pytest_stagegbo.")
MODULES = sorted(each.name for each in FOUND if not each.name.endswith("__main__") and ".standin." not in each.name)
"""Without programs that run when they are imported: the lab's containers have them."""
NOWHERE = 'incus.endpoint = "/nonexistent/unix.socket"\n'
"""Whatever this machine has: these tests speak to no daemon."""


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_the_wheel_that_is_tried() -> None:
    assert "site-packages" in pytest_stagegbo.__path__[0]
    assert pytest_stagegbo.__version__ == os.environ["SMOKE_VERSION"]
    assert (Path(pytest_stagegbo.__path__[0]) / "py.typed").is_file()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_can_be_imported(module: str) -> None:
    importlib.import_module(module)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_what_was_asked_for_is_there(distribution: str) -> None:
    # `packages_distributions` of Python 3.10 knows only those that list their modules themselves.
    files = importlib.metadata.files(distribution) or []
    packages = {each.parent.name for each in files if each.name == "__init__.py" and len(each.parts) == 2}
    single = {each.stem for each in files if each.suffix == ".py" and len(each.parts) == 1}
    modules = sorted(name for name in packages | single if name.isidentifier() and name[0] != "_")
    assert modules
    for name in modules:
        importlib.import_module(name)


def test_the_command_has_help() -> None:
    command = str(Path(sys.executable).parent / "stagegbo")
    assert "provision" in run(command, "--help")
    assert run(command, "--version") == f"pytest-stagegbo {pytest_stagegbo.__version__}\n"


def test_pytest_has_the_options() -> None:
    shown = run(sys.executable, "-m", "pytest", "--help")
    for option in ("--stage-reset", "--stage-slots", "--stage-verify", "--stage-lab"):
        assert option in shown


def test_tests_run_and_a_stage_without_a_daemon_is_one_clear_error(pytester: pytest.Pytester) -> None:
    pytester.makefile(".toml", stagegbo=NOWHERE)
    pytester.makepyfile("def test_plain(): pass\n\ndef test_stage(stage_gbo): pass\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the Incus daemon at /nonexistent/unix.socket did not answer*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
