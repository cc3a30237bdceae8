"""What `capsule --json` and `report --json` print: see `cli/shapes.py`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from pytest_stagegbo.cli.shapes import Moment, Part, Report, Seconds

__all__ = [
    "Capsule",
    "CapsuleDiff",
    "CapsuleExported",
    "CapsuleOpened",
    "Capsules",
    "CapsulesDropped",
    "Difference",
    "KeptCapsule",
    "SessionReport",
]


class KeptCapsule(Part):
    """A capsule."""

    id: Annotated[str, Meta(description="8 hexadecimal digits")]
    test: Annotated[str, Meta(description="the failed test, as pytest names it")]
    phase: Annotated[str, Meta(description="in which it failed: `setup`, `call` or `teardown`")]
    since: Annotated[Moment, Meta(description="the moment that is kept")]
    by: Annotated[str, Meta(description="`user@host` whose session kept it")]
    containers: list[str]
    bytes: Annotated[int, Meta(description="of all parts, with blocks that they share with the containers")]
    lost: Annotated[list[str], Meta(description="containers whose part is gone, so that it can't be opened")]
    left_out: Annotated[dict[str, str], Meta(description="by container that the test used and that is not kept, why")]
    slot: Annotated[int, Meta(description="0: the stage itself")]
    build: Annotated[list[str], Meta(description="files that ran instead of production's")]
    production_copied: Moment
    markers: Annotated[list[str], Meta(description="names of the test's markers")]
    seed: Annotated[str, Meta(description="of pytest-randomly; empty: there is none")]


class Capsules(Report, tag="stagegbo.capsules/1"):
    """`capsule list --json`."""

    capsules: Annotated[list[KeptCapsule], Meta(description="for each stage, the oldest first")]


class Capsule(Report, KeptCapsule, tag="stagegbo.capsule/1"):
    """`capsule show --json`."""

    report: Annotated[str, Meta(description="of the failed test, secrets masked")]
    logs: Annotated[str, Meta(description="of its containers since the test began, secrets masked")]


class CapsuleOpened(Report, tag="stagegbo.capsule-opened/1"):
    """`capsule open --json`."""

    project: Annotated[str, Meta(description="of the stage that it is open as: `--project`, `--stage-project`")]
    started: Annotated[bool, Meta(description="its services were started by this command")]
    seconds: Seconds


class Difference(Part):
    """One thing that differs from a clean stage."""

    container: str
    kind: Annotated[str, Meta(description="`row`, `rows`, `table`, `key`, `object`, `file` or `unknown`")]
    sign: Annotated[str, Meta(description="`+`: the test added it; `-`: the test removed it; empty: not known")]
    where: Annotated[str, Meta(description="database and table, number of the database, bucket, or folder")]
    what: Annotated[str, Meta(description="secrets masked; of `rows` how many, of `unknown` why")]


class CapsuleDiff(Report, tag="stagegbo.capsule-diff/1"):
    """`capsule diff --json`."""

    id: str
    differences: list[Difference]


class CapsuleExported(Report, tag="stagegbo.capsule-exported/1"):
    """`capsule export --json`."""

    folder: str
    data: Annotated[bool, Meta(description="true: it has production's data, with secrets")]


class CapsulesDropped(Report, tag="stagegbo.capsules-dropped/1"):
    """`capsule drop --json` and `capsule prune --json`."""

    dropped: Annotated[list[str], Meta(description="identifiers of those that were deleted")]


class SessionReport(Report, tag="stagegbo.report/1"):
    """`report --json`."""

    page: Annotated[str, Meta(description="its path")]
    sessions: int
    tests: int
