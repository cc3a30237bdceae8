"""The plugin is loaded at every start of pytest wherever it is installed, so it may cost nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = {"pylxd", "rich", "msgspec", "requests", "filelock", "tomli", "urllib3", "cryptography", "ws4py"}


def imported(code: str, folder: Path) -> set[str]:
    """Names of the modules in a new interpreter after `code`."""
    printing = f"{code}\nprint('modules:', *sys.modules)"
    argv = [sys.executable, "-c", f"import sys\n{printing}"]
    out = subprocess.run(argv, cwd=folder, check=True, capture_output=True, text=True).stdout
    return set(out.partition("modules:")[2].split())


def test_pytest_finds_the_plugin() -> None:
    found = [point.value for point in entry_points(group="pytest11") if point.name == "stagegbo"]
    assert found == ["pytest_stagegbo.plugin"]


def test_importing_the_plugin_imports_nothing_heavy(tmp_path: Path) -> None:
    assert not imported("import pytest_stagegbo.plugin", tmp_path) & HEAVY


def test_pytest_without_a_test_that_uses_the_stage_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_plain.py").write_text("def test_plain(): pass\n")
    modules = imported("import pytest; assert pytest.main(['-q', '-p', 'no:cacheprovider']) == 0", tmp_path)
    assert "pytest_stagegbo.plugin" in modules
    assert not modules & (HEAVY - {"tomli"})  # pytest's own on Python 3.10
