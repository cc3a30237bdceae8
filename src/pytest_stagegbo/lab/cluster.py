"""The members of a lab whose daemons are an Incus cluster, and how they become one.

Production is on the first member. Each further one is a daemon in namespaces of its own, with a pool and bridges of its
own. A member counts once a mark says that it has joined: what a killed run left of one that had not is thrown away.
"""

from __future__ import annotations

import contextlib
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import LabError
from pytest_stagegbo.lab import api, namespace, pools
from pytest_stagegbo.lab.command import write_atomic
from pytest_stagegbo.lab.host import Host
from pytest_stagegbo.lab.paths import FIRST, MOST_MEMBERS
from pytest_stagegbo.lab.switch import PORT, Switch, address
from pytest_stagegbo.progress import task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_stagegbo.progress import Progress

__all__ = ["Cluster"]

_OFFLINE_SECONDS = 11
"""After that long without a sign of it, a member counts as offline. Incus allows no less."""
_BACK_SECONDS = 20.0
"""For a daemon that runs and does not answer: it may wait for other members, which are only starting."""


class Cluster:
    """The daemons of one lab: one, or the members of a cluster.

    Args:
        first: The one that production is on.
    """

    def __init__(self, first: Host) -> None:
        self.first = first
        self._paths = first.paths

    @cached_property
    def _switch(self) -> Switch:
        return Switch(self._paths.switch_file, self._paths.log)

    @property
    def count(self) -> int:
        """How many members the lab has, or gets; 1: there is no cluster."""
        try:
            return max(1, min(int(json.loads(self._paths.members.read_text())["count"]), MOST_MEMBERS))
        except (OSError, ValueError, KeyError):
            return 1

    def want(self, count: int, *, fresh: bool) -> None:
        """Note how many members the lab is to have, for this run and for the next one, should this one be killed.

        Args:
            count: 0: as many as it has.
            fresh: The lab is made again.

        Raises:
            LabError: it has more, and is not made again.
        """
        there = self.count
        if count in {0, there}:
            return
        if count < there and not fresh:
            raise LabError(
                f"the lab {self._paths.name} is a cluster of {there} members",
                seen="a member is not taken out of a lab",
                remedy="replace it with `stagegbo lab up --fresh` and a smaller number of --members",
            )
        if count < there:
            self._end(self.hosts()[count:])
        write_atomic(self._paths.members, json.dumps({"count": count}))

    def hosts(self) -> list[Host]:
        """All daemons, the first one first."""
        return [self.first, *(Host(self._paths.of(f"{FIRST[:-1]}{number}")) for number in range(2, self.count + 1))]

    def host(self, member: str) -> Host:
        """The daemon of a member.

        Raises:
            LabError: the lab has no such member.
        """
        found = {each.name: each for each in self.hosts()}
        if self.count == 1 or member not in found:
            raise LabError(
                f"the lab {self._paths.name} has no member {member}",
                seen=f"members: {', '.join(found)}" if self.count > 1 else "it is one daemon, and no cluster",
                remedy="name one of them, or add members, for example with `stagegbo lab up --members 3`",
            )
        return found[member]

    # -- up

    def start(self) -> None:
        """Start every daemon that does not answer, but for members that have yet to join.

        They start at once: with three members, no daemon answers before another one is there.

        Raises:
            LabError: one of them did not answer in time.
        """
        hosts = [each for each in self.hosts() if each is self.first or _mark(each).exists()]
        running = [each for each in hosts if each.namespace.init() is not None]
        for host in hosts:
            if host not in running:
                self._launch(host)
            elif self.count > 1:
                self._switch.plug_in(host)
        for host in running:
            try:
                host.wait(_BACK_SECONDS)
            except LabError:
                self._launch(host)
        for host in hosts:
            host.wait()

    def _launch(self, host: Host) -> None:
        host.launch((lambda: self._switch.plug_in(host)) if self.count > 1 else None)

    def form(self, progress: Progress) -> None:
        """Have all members join, as far as they have not. Production is there already, and goes on.

        Raises:
            LabError: one of them could not.
        """
        if self.count == 1:
            return
        if not is_clustered(self.first):
            with task(progress, "cluster", f"making {FIRST} the first member of a cluster"):
                self._switch.plug_in(self.first)
                own = f"core.https_address={address(FIRST)}:{PORT}"
                self._incus("config", "set", own, what="setting the address of the first member")
                self._incus("cluster", "enable", FIRST, what="making the first member")
                # Incus 7.0 breaks this request off where there is no cluster yet.
                patience = f"cluster.offline_threshold={_OFFLINE_SECONDS}"
                self._incus("config", "set", patience, what="configuring the cluster")
        for host in self.hosts()[1:]:
            if not _mark(host).exists():
                with task(progress, host.name, f"{host.name} joins the cluster"):
                    self._join(host)

    def _join(self, host: Host) -> None:
        host.end()
        if host.name in self._known():  # to the database: its run was killed
            path = f"/1.0/cluster/members/{host.name}?force=1"
            self._incus("query", "--wait", "-X", "DELETE", path, what=f"removing what is left of {host.name}")
        host.discard()
        self._launch(host)
        host.wait()
        printed = self._incus("cluster", "add", host.name, what=f"adding {host.name} to the cluster")
        own = [{"entity": "storage-pool", "name": each, "key": "size", "value": pools.SIZE} for each in self._pools()]
        wanted = {
            "enabled": True,
            "server_address": f"{address(host.name)}:{PORT}",
            "cluster_token": printed.split()[-1],
            "member_config": own,
        }
        text = json.dumps({"cluster": wanted})
        host.incus("admin", "init", "--preseed", what=f"{host.name} joining the cluster", stdin=text, inside=True)
        for pool, kind in self._pools().items():
            if kind == "simple":
                pools.count_simply(host, pool, required=True)
        _mark(host).touch()

    def _pools(self) -> dict[str, str]:
        return pools.pools(self.first)

    def _known(self) -> list[str]:
        return [str(each["server_name"]) for each in api.get(self._paths.socket, "/1.0/cluster/members?recursion=1")]

    def _incus(self, *words: str, what: str) -> str:
        return self.first.incus(*words, what=what, inside=True)

    def is_whole(self) -> bool:
        """Whether all members have joined, and are there."""
        return self.count == 1 or set(self.states().values()) == {"online"}

    def states(self) -> dict[str, str]:
        """By member: `online`, `offline` as the others see it, `stopped`, `starting`, `cut` off from the others, or
        `absent`, since it has yet to join. Empty where there is no cluster."""
        if self.count == 1:
            return {}
        seen: dict[str, str] = {}
        found = {}
        for host in self.hosts():
            if not seen:
                with contextlib.suppress(OSError):
                    listed = api.get(host.paths.socket, "/1.0/cluster/members?recursion=1")
                    seen = {str(each["server_name"]): str(each["status"]).lower() for each in listed}
            state = ""
            if host is not self.first and not _mark(host).exists():
                state = "absent"
            elif host.namespace.init() is None:
                state = "stopped"
            elif not self._switch.is_connected(host.name):
                state = "cut"
            elif not host.answers():
                state = "starting"
            found[host.name] = state
        return {name: state or seen.get(name, "offline") for name, state in found.items()}

    # -- one member

    def stop_member(self, member: str) -> None:
        """Kill a member's daemon, with its containers, as a power cut would."""
        self.host(member).end()

    def cut_member(self, member: str) -> None:
        """Cut a member off from the others. Its daemon and its containers go on."""
        host = self.host(member)
        self._switch.plug_in(host)
        self._switch.cut(member)

    def start_member(self, member: str) -> None:
        """Bring a member back that was stopped or cut off."""
        host = self.host(member)
        if host.namespace.init() is None:
            self._launch(host)
        else:
            self._switch.plug_in(host)
        host.wait()

    # -- down

    def end(self, hosts: Sequence[Host] | None = None) -> None:
        """Kill all daemons and whatever else is in their namespaces, and take these away."""
        self._end(self._all() if hosts is None else hosts)
        self._switch.delete()

    def _end(self, hosts: Sequence[Host]) -> None:
        for host in hosts:
            host.end()
            namespace.kill(host.namespace.members())
            host.namespace.delete(self._paths.log)

    def discard(self) -> None:
        """Delete the databases and pools of all members. Production's are made again."""
        for host in self._all():
            host.end()
            _mark(host).unlink(missing_ok=True)
            host.discard()

    def note(self) -> None:
        """As `Host.note`, of all members."""
        for host in self.hosts():
            host.note()

    def _all(self) -> list[Host]:
        """Also members of which a killed run has left something."""
        names = [f"{FIRST[:-1]}{number}" for number in range(2, MOST_MEMBERS + 1)]
        paths = [self._paths.of(name) for name in names]
        return [self.first, *(Host(each) for each in paths if each.lab.exists())]


def is_clustered(host: Host) -> bool:
    """Whether a daemon is a member of a cluster. Raises `OSError`."""
    environment: dict[str, Any] = api.get(host.paths.socket, "/1.0")["environment"]
    return bool(environment.get("server_clustered"))


def _mark(host: Host) -> Path:
    """Exists once a member has joined."""
    return host.paths.lab / "joined"
