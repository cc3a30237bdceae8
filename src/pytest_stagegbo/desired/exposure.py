"""The exception to the stage's isolation: one port of one clone under one address of the host, for a while.

It is a network forward on the stage's bridge, and a rule in the bridge's access list. The forward carries what it
exposes and until when, so that whoever may use the daemon sees it, and so that `verify` can tell it from others. It is
open while both are there: opening makes the forward first, closing takes the rule first, and a forward without its
rule, which lets nothing through, is what a killed run left.
"""

from __future__ import annotations

import re
import time
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from pytest_stagegbo import clocks
from pytest_stagegbo.desired import marks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


__all__ = ["MARK", "Exposure", "exposures", "forward_body", "ingress_rule", "over", "read_forward"]

MARK = "user.stagegbo.expose"
"""Key of a forward; its value is `CONTAINER:PORT expires=SECONDS`, in seconds since the epoch."""
_MARK_TEXT = re.compile(r"(?P<container>[^:\s]+):(?P<port>\d{1,5}) expires=(?P<until>\d{1,12})")


class Exposure(Struct, frozen=True):
    """A port of a clone that others than the host may reach."""

    container: str
    address: str
    """Address of the clone."""
    port: int
    listen: str
    """The host's address. There is one exposure for each."""
    listen_port: int
    until: int
    """Seconds since the epoch."""
    complete: bool = True
    """Whether the access list lets it through; if not, a run that opened or closed it was killed."""

    @property
    def state(self) -> str:
        """`open`, `expired` or `unfinished`. The last two are closed by the next run that writes."""
        if clocks.now() >= self.until:
            return "expired"
        return "open" if self.complete else "unfinished"

    def __str__(self) -> str:
        end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.until))
        return f"{self.container}:{self.port} at {self.listen}:{self.listen_port} until {end}"


def over(exposed: Iterable[Exposure]) -> tuple[Exposure, ...]:
    """Those that are to be closed: expired ones, and what killed runs left. Pure, but for the clock."""
    return tuple(each for each in exposed if each.state != "open")


def exposures(forwards: Iterable[Mapping[str, Any]], acl: Mapping[str, Any] | None) -> tuple[Exposure, ...]:
    """Those of this stage, whatever their state. Pure.

    Args:
        forwards: Of the stage's bridge.
        acl: The stage's access list; None: there is none.
    """
    rules = (acl or {}).get("ingress") or []
    found = [exposure for forward in forwards if (exposure := read_forward(forward)) is not None]
    found.sort(key=lambda each: IPv4Address(each.listen))
    return tuple(replace(each, complete=ingress_rule(each) in rules) for each in found)


def read_forward(forward: Mapping[str, Any]) -> Exposure | None:
    """The exposure that a network forward is; None: it is another's, or does more than its mark says. Pure."""
    config, ports = forward.get("config") or {}, forward.get("ports") or []
    mark = _MARK_TEXT.fullmatch(config.get(MARK, ""))
    if mark is None or not marks.is_ours(config) or len(ports) != 1 or config.get("target_address"):
        return None
    port = ports[0]
    if port.get("protocol") != "tcp" or str(port.get("target_port") or port.get("listen_port")) != mark["port"]:
        return None
    if not str(port.get("listen_port", "")).isdigit():
        return None  # a range, or a list
    return Exposure(
        container=mark["container"],
        address=str(port.get("target_address", "")),
        port=int(mark["port"]),
        listen=str(forward["listen_address"]),
        listen_port=int(port["listen_port"]),
        until=int(mark["until"]),
    )


def forward_body(wanted: Exposure) -> dict[str, Any]:
    """The network forward of an exposure."""
    port = {
        "protocol": "tcp",
        "listen_port": str(wanted.listen_port),
        "target_address": wanted.address,
        "target_port": str(wanted.port),
    }
    mark = f"{wanted.container}:{wanted.port} expires={wanted.until}"
    return {
        "listen_address": wanted.listen,
        "description": "Made by `stagegbo expose`; removed by `stagegbo expose --close`",
        "config": {marks.OWNER: marks.OWNER_VALUE, MARK: mark},
        "ports": [port],
    }


def ingress_rule(exposed: Exposure) -> dict[str, str]:
    """The rule that lets an exposure through. The host forwards a packet before it asks the list, so the rule names the
    clone."""
    return {
        "action": "allow",
        "destination": f"{exposed.address}/32",
        "destination_port": str(exposed.port),
        "protocol": "tcp",
        "description": f"exposed: {exposed.container}",
        "state": "enabled",
    }
