"""The project of the leases, and when it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes import refused

from pytest_stagegbo.desired import marks
from pytest_stagegbo.incus import WriterScope
from pytest_stagegbo.incus.lease_store import FREE, SECONDS, TOKEN, LeaseStore
from pytest_stagegbo.incus.records import Reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.incus.connection import Connection

PROJECT = "STAGE-GBO-LEASES"
MARKS = {marks.OWNER: marks.OWNER_VALUE, marks.PROJECT: PROJECT, marks.FAMILY: "STAGE-GBO"}


class Daemon:
    """Has one project, or none."""

    def __init__(self, config: Mapping[str, str] | None, profiles: Sequence[Mapping[str, Any]] = ()) -> None:
        self.config = config
        self.profiles = list(profiles)
        self.deleted: list[str] = []

    def request(self, method: str, path: Sequence[str], **_: Any) -> Reply:
        if self.config is None:
            raise refused(404)
        if method == "DELETE":
            self.deleted.append("/".join(path))
            if path[0] == "projects" and len(self.deleted) <= len(self.profiles):
                raise refused(400, "Only empty projects can be removed")
        return Reply(self.profiles if path[0] == "profiles" else {"config": self.config}, "", {})

    def store(self) -> LeaseStore:
        scope = WriterScope(PROJECT, "", "", "default", frozenset())
        connection = cast("Connection", self)
        return LeaseStore(connection, scope, "STAGE-GBO", "STAGE-GBO", {"limits.instances": "0", **MARKS}, 1.0)


def lease(name: str, **config: str) -> dict[str, Any]:
    return {"name": name, "config": {TOKEN: "t", SECONDS: "30", **config}}


def test_it_goes_with_the_leases_that_were_given_back() -> None:
    daemon = Daemon(MARKS, [lease("STAGE-GBO.3", **{FREE: "true"}), {"name": "default", "config": {}}])
    daemon.store().remove_project()
    assert daemon.deleted == ["profiles/STAGE-GBO.3", f"projects/{PROJECT}"]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(None, id="there is none"),
        pytest.param({}, id="somebody else's"),
        pytest.param({**MARKS, marks.PROJECT: "OTHER-LEASES"}, id="one that was renamed"),
    ],
)
def test_what_this_tool_did_not_make_stays(config: Mapping[str, str] | None) -> None:
    """Incus would delete it, as it is empty."""
    daemon = Daemon(config)
    daemon.store().remove_project()
    assert daemon.deleted == []


def test_a_lease_that_a_host_has_keeps_it() -> None:
    daemon = Daemon(MARKS, [lease("STAGE-GBO.3"), lease("STAGE-GBO-1.9", **{FREE: "true"})])
    daemon.store().remove_project()
    assert daemon.deleted == ["profiles/STAGE-GBO-1.9", f"projects/{PROJECT}"]
