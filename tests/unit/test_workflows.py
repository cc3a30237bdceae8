"""Pipelines of both forges: they are valid, and every command in them exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.glob(".*/workflows/*.yml") if path.parts[-3] != ".git"
)
DEV = (ROOT / "dev").read_text()
OTHERS = {".venv/bin/twine"}
"""Programs beside `./dev`: it has them installed."""


def read(name: str) -> dict[str, Any]:
    # YAML 1.1 takes the key `on` for a truth value.
    found: dict[str, Any] = yaml.load((ROOT / name).read_text(), yaml.BaseLoader)
    return found


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in read(name)["jobs"].values() for step in job.get("steps", [])]


def test_both_forges_test_and_publish() -> None:
    assert {f".{forge}/workflows/{what}.yml" for forge in ("github", "forgejo") for what in ("test", "publish")} <= set(
        WORKFLOWS
    )


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_command_exists(name: str) -> None:
    found = 0
    for step in steps(name):
        if "run" not in step:
            continue
        script = step["run"]
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        for line in script.strip().splitlines():
            words = shlex.split(line)
            words = words[1:] if words[0] == "sudo" else words
            found += 1
            if words[0] != "./dev":
                assert words[0] in OTHERS, line
                continue
            assert re.search(rf"^  [\w |-]*\b{re.escape(words[1])}( \||\))", DEV, re.MULTILINE), line
            if words[1] == "release-check":
                options = (ROOT / "tools/release_check.py").read_text()
                assert all(f'"{word}"' in options for word in words if word.startswith("--")), line
    assert found


@pytest.mark.parametrize("name", WORKFLOWS)
def test_jobs_that_are_needed_or_called_exist(name: str) -> None:
    jobs = read(name)["jobs"]
    for job in jobs.values():
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= jobs.keys()
        if job.get("uses", "").startswith("./"):
            called = read(job["uses"].removeprefix("./"))
            assert "workflow_call" in called["on"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_to_a_commit(name: str) -> None:
    """A tag can be moved by whoever owns the action."""
    for line in (ROOT / name).read_text().splitlines():
        if "uses:" in line and "uses: ./" not in line:
            assert re.search(r"uses: \S+@[0-9a-f]{40} # v[\d.]+$", line), line


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_job_may_do_no_more_than_it_needs(name: str) -> None:
    workflow = read(name)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for job in workflow["jobs"].values():
        for permission, value in job.get("permissions", {}).items():
            assert value == "read" or permission == "id-token"
            if permission == "id-token":  # nothing of the project's runs beside the right to publish
                assert not any("run" in step for step in job["steps"])


def test_pypi_gets_attestations_and_no_password() -> None:
    (publish,) = (step for step in steps(".github/workflows/publish.yml") if "gh-action-pypi-publish" in str(step))
    assert publish["with"]["attestations"] == "true"
    assert "password" not in publish["with"]
    assert "secrets." not in (ROOT / ".github/workflows/publish.yml").read_text()


def test_every_python_that_is_supported_is_tested() -> None:
    supported = re.findall(r":: Python :: (\d\.\d+)", (ROOT / "pyproject.toml").read_text())
    for name in (".github/workflows/test.yml", ".forgejo/workflows/test.yml"):
        versions = {
            version for step in steps(name) for version in step.get("with", {}).get("python-version", "").split()
        }
        assert versions == set(supported)
