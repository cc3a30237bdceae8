"""What `import pytest_stagegbo` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pytest_stagegbo


def test_stage_service_and_version_are_there() -> None:
    from pytest_stagegbo import Service, Stage, __version__
    from pytest_stagegbo.stage import stage

    assert Stage is stage.Stage
    assert Service.__name__ == "Service"
    assert __version__[0].isdigit()
    assert {"Stage", "Service", "__version__"} <= set(dir(pytest_stagegbo))


def test_nothing_else_is() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        pytest_stagegbo.Nothing  # noqa: B018


def test_the_import_alone_brings_nothing_along() -> None:
    """pytest imports the package wherever it is installed."""
    program = "import sys, typing, __future__; before = set(sys.modules); import pytest_stagegbo\n"
    program += "print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['pytest_stagegbo']"
