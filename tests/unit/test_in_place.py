"""What a clone is prepared with for a refresh of its files, and when that can't be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fakes import clone
from msgspec.structs import replace

from pytest_stagegbo.apply.in_place import note_changes
from pytest_stagegbo.desired import marks
from pytest_stagegbo.incus import CommandResult
from pytest_stagegbo.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.incus import Instance

SETTINGS = Settings()
BOOTED = "2026-11-27T09:22:22.546808776Z"


class Daemon:
    """Notes what is written."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.log: list[Any] = []

    def set_instance_config(self, name: str, config: Mapping[str, str]) -> None:
        self.log.append((name, dict(config)))

    def execute(self, name: str, command: Sequence[str]) -> CommandResult:
        self.log.append((name, command[-1]))
        return CommandResult(self.status, "", "find: not found")


def noted(daemon: Any, made: Instance, **origin: str) -> bool:
    return note_changes(daemon, made, replace(made, config={**made.config, **origin}))


def test_files_changed_since_the_first_boot_get_another_time_of_change() -> None:
    daemon = Daemon()
    assert noted(daemon, clone("vault", SETTINGS, booted=BOOTED))
    unfinished, (_, script) = daemon.log
    assert unfinished == ("vault", {marks.STATE: marks.BUILDING}), "before anything is changed"
    assert "-newerct @1795771342.497 " in script, "by the kernel's time, which nobody can choose"


@pytest.mark.parametrize("moment", ["", "yesterday"])
def test_a_clone_of_a_version_without_that_time_counts_from_its_making(moment: str) -> None:
    made = replace(clone("vault", SETTINGS), created_at=moment)
    assert not noted(Daemon(), made), "where that is unknown, too, the snapshot is restored"


def test_what_fails_or_does_not_run_or_has_its_owners_shifted_otherwise_is_left_to_a_restore() -> None:
    made = clone("vault", SETTINGS, booted=BOOTED)
    assert not noted(Daemon(status=127), made)
    for other in (replace(made, status="Stopped"), replace(made, status="Frozen")):
        daemon = Daemon()
        assert not noted(daemon, other)
        assert daemon.log == []
    assert not noted(Daemon(), made, **{"volatile.last_state.idmap": "[1]"})
