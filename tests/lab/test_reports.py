"""What a run in a pipeline leaves behind about the stage: JUnit's file, annotations, a job's summary."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.lab

TESTS = """
import pytest

@pytest.mark.stage_reset("cache")
def test_fails(stage_cache):
    stage_cache.exec("sh", "-c", "echo from-a-test | systemd-cat -t valkey-server; exit 3")

def test_passes(stage_cache): pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "a worker"])
def test_a_pipeline_learns_of_the_stage(
    provisioned: subprocess.CompletedProcess[str],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    workers: tuple[str, ...],
) -> None:
    assert provisioned.returncode == 0
    pytester.makepyfile(test_it=TESTS)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    done = pytester.runpytest_subprocess("--stage-lab", "-p", "no:cacheprovider", "--junitxml=report.xml", *workers)
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*::error file=test_it.py,line=5,title=test_it.py%3A%3Atest_fails::*CommandFailed*"])
    assert "pytest_stagegbo/" not in done.stdout.str()  # no frame of this package's own
    suite = ElementTree.parse(pytester.path / "report.xml").getroot()[0]
    properties = {each.get("name"): each.get("value") for each in suite.findall("properties/property")}
    assert (properties["stage.project"], properties["stage.verify"]) == ("STAGE-GBO", "not asked for")
    failed = suite.find("testcase[@name='test_fails']")
    assert failed is not None
    assert "stage.reset.cache" in [each.get("name") for each in failed.findall("properties/property")]
    assert "stage container cache: logged since the test began" in (failed.findtext("system-err") or "")
    summary = (pytester.path / "summary.md").read_text()
    assert "- reset cache: once" in summary
    assert "| `test_it.py::test_fails` | pytest_stagegbo.errors.CommandFailed:" in summary
