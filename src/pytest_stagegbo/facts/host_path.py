"""Why the stage is not reached: what the daemon's host itself can tell, and packets that show it.

A network of somebody else that has the way to the clones, and a packet filter that drops what the stage needs, look
like services that never start. Both are waited for in vain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import MissingRequirement, OperationFailed, ServerRefused
from pytest_stagegbo.facts import dialling
from pytest_stagegbo.facts.bridge import REMEDY, find_fault
from pytest_stagegbo.facts.legacy_filter import parse_rules
from pytest_stagegbo.facts.packetfilter import Drop, find_drop, has_extensions, with_states
from pytest_stagegbo.facts.subnets import lost_ways
from pytest_stagegbo.services import ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_stagegbo.incus import Reader, Writer
    from pytest_stagegbo.services.answer import Probe
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["HostWay", "Trouble", "find_drop_here", "find_trouble", "refuse_dropped", "way_between"]

LOOKS_AFTER = 4.0
"""Seconds of waiting before anything is looked at: most clones answer sooner, and cost nothing."""
LEGACY = "iptables-legacy"
PATIENCE = 0.5
"""For one answer."""
LOOK_AT_FILTER = (
    "see what the host's packet filter drops (`nft list ruleset`, `iptables -S FORWARD`, `sysctl net.bridge`), and let "
    "the stage's bridge through: iptables -I DOCKER-USER -i {0} -o {0} -j ACCEPT (Docker), firewall-cmd --permanent "
    "--zone=trusted --add-interface={0} && firewall-cmd --reload (firewalld), ufw route allow in on {0} out on {0} "
    "(ufw)"
)


class Trouble(Struct, frozen=True):
    """What is in the way."""

    text: str
    remedy: str


def find_trouble(reader: Reader, settings: Settings) -> Trouble | None:
    """What is in the way to the clones, or between them; None: nothing that can be seen from here."""
    fault = find_fault(reader, settings, reader.instances(settings.project).values())
    if fault:
        return Trouble(fault, REMEDY)
    view = reader.host()
    host, ways = view.networks(), view.ways(container.address for container in settings.containers.values())
    lost = "" if host is None else lost_ways(settings, host, ways)
    if lost:
        return Trouble(
            lost, "end that VPN or remove that route, or set another network.address and run `stagegbo provision`"
        )
    drop, _ = find_drop_here(reader, settings)
    if drop is None:
        return None
    doubt = "" if drop.sure else " (unless a rule before it lets them through, which can't be read from here)"
    return Trouble(f"{drop}{doubt}", f"on the daemon's host: {drop.command}")


def refuse_dropped(reader: Reader, settings: Settings) -> None:
    """Raise `MissingRequirement` when the host's packet filter is sure to drop what the stage needs."""
    drop, _ = find_drop_here(reader, settings)
    if drop is not None and drop.sure:
        raise MissingRequirement(
            f"the stage would not work: {drop.what} are dropped by the host's packet filter",
            seen=f"chain {drop.chain}, {drop.rule}",
            remedy=f"let them through, on the daemon's host: {drop.command}",
        )


def find_drop_here(reader: Reader, settings: Settings) -> tuple[Drop | None, bool]:
    """What of the host's packet filter drops what the stage needs, and whether this process may read the filter."""
    view = reader.host()
    listed = view.rules()
    if listed is None:
        return None, False
    rules = with_states(listed, view.nft("-a", "list", "ruleset") or "") if has_extensions(listed) else listed
    clones = [container.address for container in settings.containers.values()]
    stage = settings.network.name, settings.network.address.ip, clones
    called = view.bridges_call_filter()
    legacy = parse_rules(view.legacy_rules() or "")
    drops = [find_drop(rules, *stage, called=called), find_drop(legacy, *stage, called=called, tool=LEGACY)]
    found = [drop for drop in drops if drop is not None]
    return next((drop for drop in found if drop.sure), found[0] if found else None), True


class HostWay:
    """The way to a clone of this host, looked at now and then while it is waited for.

    Args:
        ran: The clone ran before, so that it has its network: nothing has to come up first.
    """

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        settings: Settings,
        container: ContainerSettings,
        *,
        ran: bool = False,
        ask: Probe = ask,
        clock: Callable[[], float] = clocks.monotonic,
    ) -> None:
        self._reader = reader
        self._ran = ran
        self._writer = writer
        self._settings = settings
        self._container = container
        self._ask = ask
        self._clock = clock
        self._began = clock()
        self._before = ""
        """What the last look found: one alone may be a network that only comes up."""
        self.remedy = ""
        """What to do; empty: nothing is known to be in the way."""

    def look(self, *, at_once: bool = False) -> str | None:
        """Why there is no hope; None while there is.

        Args:
            at_once: Say what a single look finds, however short the wait was: there is another reason to give up.
        """
        if self._clock() - self._began < LOOKS_AFTER and not at_once:
            return self._fault() if self._ran else None
        found = self._look()
        text = found.text if found is not None else ""
        if found is None or (text != self._before and not at_once):
            self._before = text
            return None
        self.remedy = found.remedy
        return text

    def _fault(self) -> str | None:
        """What is wrong with the bridge, which is no matter of time."""
        if not self._is_cut_off():
            return None
        clone = self._reader.instance(self._settings.project, self._container.name)
        fault = find_fault(self._reader, self._settings, [] if clone is None else [clone])
        self.remedy = REMEDY if fault else ""
        return fault or None

    def _look(self) -> Trouble | None:
        if self._is_cut_off():
            found = find_trouble(self._reader, self._settings)
            if found is not None:
                return found
        return way_between(self._reader, self._writer, self._settings, self._container, self._ask)

    def _is_cut_off(self) -> bool:
        host, probes = str(self._container.address), self._container.probes
        states = {self._ask(probe, host, PATIENCE).state for probe in probes}
        return bool(states) and states <= {"unreachable", "refused"}


def way_between(
    reader: Reader, writer: Writer, settings: Settings, container: ContainerSettings, ask: Probe = ask
) -> Trouble | None:
    """Why a clone does not reach those that it needs and that the host reaches: packets are sent; None: it does."""
    bridge = settings.network.name
    others = {name: settings.containers[name] for name in container.needs if name in settings.containers}
    targets = {
        dialling.Target(str(other.address), probe.port): name
        for name, other in others.items()
        for probe in other.probes
    }
    reached = [
        target
        for target, name in targets.items()
        if any(ask(p, target.host, PATIENCE).ready for p in others[name].probes if p.port == target.port)
    ]
    if not reached:
        return None
    try:
        answers = dialling.read_answers(writer.execute(container.name, dialling.command(reached), timeout=10).stdout)
    except (OperationFailed, ServerRefused):
        return None  # it is only just starting
    lost = [target for target in reached if target in answers and answers[target].state != dialling.ANSWERED]
    if not lost:
        return None
    text = f"{container.name} can't connect to {targets[lost[0]]} at {lost[0]}, which answers the host"
    found = find_trouble(reader, settings)
    if found is not None:
        return Trouble(f"{text}; {found.text}", found.remedy)
    return Trouble(text, LOOK_AT_FILTER.format(bridge))
