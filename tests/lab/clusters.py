"""Labs whose daemons are an Incus cluster, for tests that change them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from tests.lab.support import SIX, until

from pytest_stagegbo.lab import Lab, api
from pytest_stagegbo.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tests.lab.support import Ground


def containers(*names: str) -> str:
    """Settings for a stage that has only these containers."""
    return "[containers]\n" + "".join(f"{name} = false\n" for name in SIX if name not in names)


def online(count: int) -> dict[str, str]:
    return {f"member{number}": "online" for number in range(1, count + 1)}


@contextlib.contextmanager
def brought_up(name: str, members: int) -> Iterator[Lab]:
    """A lab of so many members, production on the first. One that is up already is left up.

    Args:
        name: Ends the lab's name.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGEGBO_LAB_NAME", f"{Lab.find().paths.name}-{name}")
        lab = Lab.find()
        (lab.paths.state / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(lab.paths.lock(f"tests-{lab.paths.name}")):
            found_up = lab.status().ready
            try:
                lab.up(Silent(), members=members)
                yield lab
            finally:
                if not found_up:
                    lab.down(purge=True)


def member_status(lab: Lab, member: str) -> str:
    """As the cluster sees it: `Online`, `Offline` or `Evacuated`."""
    listed = api.get(lab.socket, "/1.0/cluster/members?recursion=1")
    return str({each["server_name"]: each["status"] for each in listed}[member])


def answers(lab: Lab, member: str) -> bool:
    """Whether the first member gets an answer of another one, which may be online and only starting."""
    try:
        api.get(lab.socket, f"/1.0/cluster/members/{member}/state")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def stopped(lab: Lab, member: str) -> Iterator[None]:
    """While the block runs, the cluster knows that a member is away. Afterwards it is there again."""
    lab.change_member(member, "stop", Silent())
    try:
        until(lambda: member_status(lab, member) == "Offline", f"the cluster knows that {member} is away", 40)
        yield
    finally:
        lab.change_member(member, "start", Silent())
        until(lambda: set(lab.status().members.values()) == {"online"}, f"{member} is online", 30)
        until(lambda: answers(lab, member), f"{member} answers", 60)


def whole_cluster(ground: Ground, members: Collection[str]) -> dict[str, Any]:
    """What there is on a cluster, and what production is."""
    names = {each: sorted(ground.names(each)) for each in ("projects", "networks", "network-acls", "storage-pools")}
    found = ground.get("instances", project="default", recursion="1")
    production = {each["name"]: (each["config"], each["location"], each["status"]) for each in found}
    links = {}
    for member in members:
        argv = ground.lab.at(member).exec_argv(["ip", "-j", "link"])
        listed = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        links[member] = sorted(each["ifname"] for each in listed if not each["ifname"].startswith("veth"))
    return {**names, **production, **links}
