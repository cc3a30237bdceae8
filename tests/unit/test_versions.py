"""Versions of this package beside each other: the one that made a stage, and the one that would change it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakes import finished
from msgspec.structs import replace

from pytest_stagegbo import __version__
from pytest_stagegbo.desired import marks, versions
from pytest_stagegbo.errors import MissingRequirement
from pytest_stagegbo.plan.provision import make_plan
from pytest_stagegbo.settings import Settings

SETTINGS = Settings()
ROOT = Path(__file__).parents[2]


def test_the_version_stands_in_one_place() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert __version__ == versions.own_version() == version


def test_a_stage_of_this_version_may_be_changed_by_this_version() -> None:
    assert make_plan(finished(SETTINGS), SETTINGS).changes == ()


@pytest.mark.parametrize("needed", ["99.0.0", "99", "0.99.0rc1"])
def test_a_stage_that_needs_a_newer_version_is_not_changed(needed: str) -> None:
    facts = finished(SETTINGS)
    stage = facts.projects[SETTINGS.project]
    newer = replace(stage, config={**stage.config, marks.REQUIRES: needed})
    facts = replace(facts, projects={**facts.projects, newer.name: newer})
    with pytest.raises(MissingRequirement, match="a newer version of pytest-stagegbo made stage") as caught:
        make_plan(facts, SETTINGS)
    assert f"'pytest-stagegbo>={needed}'" in caught.value.remedy


@pytest.mark.parametrize("needed", ["", "0.0.1", "nonsense"])
def test_a_stage_of_an_older_version_may_be_changed(needed: str) -> None:
    stage = finished(SETTINGS).projects[SETTINGS.project]
    versions.refuse_newer(replace(stage, config={**stage.config, marks.REQUIRES: needed}))


def test_a_project_of_somebody_else_is_none_of_this() -> None:
    stage = finished(SETTINGS).projects[SETTINGS.project]
    versions.refuse_newer(replace(stage, config={marks.REQUIRES: "99.0.0"}))
