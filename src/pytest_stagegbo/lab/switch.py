"""The network between the members of a lab's cluster: a bridge in a namespace of its own, with a cable to each member.

No other machine, and no other lab, is on it.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from pytest_stagegbo.lab.command import PATH, run
from pytest_stagegbo.lab.namespace import Namespace

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.lab.host import Host

__all__ = ["PORT", "Switch", "address"]

_BRIDGE = "lan"
_INTERFACE = "cluster0"
"""The end of the cable that a member has. The other end has the member's name."""
PORT = 8443


def address(member: str) -> str:
    """A member's address on this network. Production and stages have other subnets."""
    return f"10.99.0.{member[-1]}"


class Switch:
    """What connects the members. Every method may be repeated after a crash at any point of an earlier try."""

    def __init__(self, file: Path, log: Path) -> None:
        self._namespace = Namespace(file)
        self._log = log

    def plug_in(self, host: Host) -> None:
        """Connect a member, whose network namespace is there."""
        name, netns, own = host.name, host.paths.netns, self._namespace.file.name
        self._namespace.create(self._log)
        links = self._links()
        if _BRIDGE not in links:
            self._ip("link", "add", _BRIDGE, "type", "bridge")
        self._ip("link", "set", _BRIDGE, "up")
        if name not in links:  # both ends come and go together
            self._ip("link", "add", name, "type", "veth", "peer", "name", _INTERFACE, "netns", netns)
        self._ip("link", "set", name, "master", _BRIDGE, "up")
        for words in (
            ["address", "replace", f"{address(name)}/24", "dev", _INTERFACE],
            ["link", "set", _INTERFACE, "up"],
        ):
            run(["ip", "-n", netns, *words], log=self._log, what=f"connecting {name} to {own}")

    def cut(self, member: str) -> None:
        """Have no packet pass between a member and the others until it is plugged in again."""
        self._ip("link", "set", member, "down")

    def is_connected(self, member: str) -> bool:
        """Whether packets pass between a member and the others, as far as this switch goes."""
        return self._links().get(member, False)

    def delete(self) -> None:
        """Take it away, with all cables."""
        self._namespace.delete(self._log)

    def _links(self) -> dict[str, bool]:
        """By interface, whether it is set up."""
        if not self._namespace.exists():
            return {}
        argv = ["ip", "-n", self._namespace.file.name, "-j", "link", "show"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": PATH})
        return {str(each["ifname"]): "UP" in each["flags"] for each in json.loads(done.stdout or "[]")}

    def _ip(self, *words: str) -> None:
        name = self._namespace.file.name
        run(["ip", "-n", name, *words], log=self._log, what=f"setting up the lab's switch {name}")
