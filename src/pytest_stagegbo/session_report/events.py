"""What a process writes about a session: a JSON object a line, the first one a `Header`.

Moments are seconds of the process's steady clock. A header says when that clock showed what, so that files of several
processes and hosts come onto one clock.
"""

from __future__ import annotations

from msgspec import Struct, field

__all__ = [
    "SUFFIX",
    "VERSION",
    "BegunTest",
    "Ending",
    "Event",
    "Freeze",
    "Header",
    "Notice",
    "Reset",
    "Room",
    "Step",
    "Test",
    "Usage",
    "Wait",
]

SUFFIX = ".stage.jsonl"
"""Ends the names of files with events."""
VERSION = 1
"""Of the format. Readers refuse a file with a greater one."""


class _Event(Struct, tag_field="event", omit_defaults=True, frozen=True):
    """One line."""


class Header(_Event, tag="header", frozen=True):
    """Which process this is, and of which session."""

    version: int
    run: str
    """Identifies the session."""
    worker: str
    """`gw0`, or `main` where there is one process; `controller` of pytest-xdist runs no tests."""
    host: str
    pid: int
    at: float
    """Seconds since the epoch."""
    clock: float
    """What the steady clock showed at that moment."""
    workers: int = 1
    package: str = ""
    pytest: str = ""


class BegunTest(_Event, tag="begun", frozen=True):
    """A test begins. If its process is killed, this is all that is known of it."""

    at: float
    test: str


class Test(_Event, tag="test", frozen=True):
    """A test has ended."""

    __test__ = False  # not one of pytest's own

    test: str
    outcome: str
    """`passed`, `failed`, `error` (in setup or teardown), `skipped`, `xfailed` or `xpassed`."""
    began: float
    ended: float
    called: float = 0.0
    """When its setup had ended."""
    returned: float = 0.0
    """When the test itself had ended, and its teardown began."""
    project: str = ""
    """Of the stage that it used; empty: none."""
    uses: tuple[str, ...] = ()
    resets: tuple[str, ...] = ()
    """Containers that it kept to itself."""
    asked: tuple[str, ...] = ()
    """Containers that its fixtures stand for."""
    quiet: tuple[str, ...] = ()
    """Containers that were frozen for it."""
    failure: str = ""
    sections: tuple[tuple[str, str], ...] = ()
    properties: tuple[tuple[str, str], ...] = ()
    """What the stage noted at the test, by name."""


class Wait(_Event, tag="wait", frozen=True):
    """A test waited for others."""

    test: str
    project: str
    began: float
    ended: float
    names: tuple[str, ...] = ()
    """The containers that it waited for; none: for a fresh stage."""
    holders: str = ""
    """Who held them, as the locks said."""


class Reset(_Event, tag="reset", frozen=True):
    """A container was made clean."""

    project: str
    container: str
    way: str
    """As `resets.outcome.Outcome.way`; `failed`."""
    began: float
    ended: float
    reason: str = ""
    """Why the quickest way was not enough; of a failed one, the error."""
    test: str = ""
    """That began next in this process; empty: the reset went on behind the tests."""


class Step(_Event, tag="step", frozen=True):
    """A step of provisioning."""

    key: str
    text: str
    began: float
    ended: float
    project: str = ""
    error: str = ""


class Freeze(_Event, tag="freeze", frozen=True):
    """Containers were frozen while a quiet test ran."""

    project: str
    names: tuple[str, ...]
    test: str
    began: float
    ended: float


class Room(_Event, tag="room", frozen=True):
    """What was free in one place. Bytes."""

    at: float
    where: str
    free: int
    floor: int


class Usage(_Event, tag="usage", frozen=True):
    """What the volumes of a stage's containers used. Bytes."""

    at: float
    project: str
    used: dict[str, int]


class Notice(_Event, tag="notice", frozen=True):
    """Something that people have to know."""

    at: float
    kind: str
    """`killed`: a worker died; `stopped`: the disk guard ended the session; `note`."""
    text: str
    worker: str = ""
    test: str = ""


class Ending(_Event, tag="end", frozen=True):
    """The process has ended its part of the session."""

    at: float
    status: int
    lines: tuple[str, ...] = ()
    trouble: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    """Of the stage that it used: its project, the version of Incus."""


Event = Header | BegunTest | Test | Wait | Reset | Step | Freeze | Room | Usage | Notice | Ending
