"""What the checks look at: facts about the stage and its host, each read once for all checks."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from functools import cached_property
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pytest_stagegbo import clocks
from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.facts import dialling
from pytest_stagegbo.facts.bridge import find_fault
from pytest_stagegbo.facts.dialling import SILENT, Answer, Target
from pytest_stagegbo.facts.facts import member_addresses
from pytest_stagegbo.facts.guests import Guest, find_guests
from pytest_stagegbo.services.dial import is_on_host
from pytest_stagegbo.verify.event_monitor import EventMonitor, is_productions
from pytest_stagegbo.verify.finding import Unseen
from pytest_stagegbo.verify.packets import PacketListener
from pytest_stagegbo.workers import at_once

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import CommandResult, Instance, Reader, Writer
    from pytest_stagegbo.incus.localhost import LocalHost
    from pytest_stagegbo.settings import Settings

__all__ = ["VerifyContext"]

OUTSIDE = ("192.0.2.1", "2001:db8::1")
"""Addresses that are nobody's (RFC 5737 and 3849), and on the way to the internet."""
PAUSE = 3.0
"""Seconds without a packet, after which the kernel answers again (measured with Linux 6.18)."""
MORE_TRIES = 2
"""How often they are dialled again when nothing was heard of it."""
HOST_PORTS = (22, 53, 8443)
"""What hosts listen on: ssh, a resolver, Incus's API."""
PATIENCE = 2.0
"""Seconds for the host to reach a container of its own."""
SPARE_PORTS = range(20000, 30000)
"""Where listeners are put: below the ports that the kernel gives to outgoing connections."""


class Dialled(Struct, frozen=True):
    """The connections that each container of the stage tried, with their results."""

    targets: tuple[Target, ...]
    answers: Mapping[str, Mapping[Target, Answer]]
    """By container. What is missing was not tried, or nobody knows what became of it."""
    trouble: Mapping[str, str]
    """What Perl said on standard error, by container."""
    production: tuple[str, ...]
    """Production's addresses, those of its bridges on the host included."""
    host: tuple[str, ...]
    """The host's addresses."""
    host_port: int | None
    """Where this process listened on all addresses of the host; None: it is not on that host."""
    intruders: tuple[str, ...]
    """From where it was connected to."""
    names: Mapping[str, str]
    """What each container's listener says."""
    port: int
    """Port of the containers' listeners."""
    leaked: Mapping[str, int]
    """Packets for that port that were on network interfaces of the host which are not the stage's."""
    listen_error: str
    """Why such packets can't be heard from here; empty: they were listened for."""
    heard_own: bool
    """Whether a packet of this process's own was heard, so that others would have been."""


class VerifyContext:
    """One stage, and everything that its checks need to know about it."""

    def __init__(
        self, settings: Settings, facts: Facts, reader: Reader, writer: Writer, monitor: EventMonitor | None = None
    ) -> None:
        self.settings = settings
        self.facts = facts
        self.reader = reader
        self.writer = writer
        self.monitor = monitor
        """Listens to what happens to production."""

    def listen(self) -> EventMonitor:
        """Listen from now on. Close it in the end. Raises `Unseen`, `ChannelBroken`, `OperationFailed`."""
        if not self.running:
            raise Unseen("no container of the stage is running, to cause an event in")
        monitor = EventMonitor(self.reader.events(), lambda event: is_productions(event, self.settings, self.facts))
        try:
            monitor.sentinel(self.sentinel)
        except BaseException:
            monitor.close()
            raise
        return monitor

    def sentinel(self, word: str) -> None:
        """Cause an event that contains this word, by a command in a clone that does nothing."""
        self.execute(self.running[0], ["true", word])

    @cached_property
    def clones(self) -> Mapping[str, Instance]:
        """The instances that this tool made and that the settings name."""
        return {
            name: clone
            for name, clone in self.facts.clones.items()
            if name in self.settings.containers and marks.is_clone(clone, self.settings)
        }

    @cached_property
    def running(self) -> list[str]:
        """Names of the clones that run."""
        return [name for name, clone in self.clones.items() if clone.is_running]

    @property
    def idle(self) -> str:
        """Why some containers of the stage can't be looked into. Empty: all of them run."""
        found = {name: self.clones[name].status.lower() if name in self.clones else "missing" for name in self.names}
        return ", ".join(f"{name} is {state}" for name, state in found.items() if name not in self.running)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all containers that the stage has to have."""
        return tuple(self.settings.containers)

    def place(self, path: str) -> str | None:
        """Return the path under which this process finds a file of the daemon's host. None: it can't see it."""
        found = self.reader.host().place(path)
        return None if found is None else str(found)

    @cached_property
    def host(self) -> LocalHost:
        """The daemon's machine, as far as this process may look at it."""
        return self.reader.host()

    def execute(self, name: str, command: list[str]) -> CommandResult:
        return self.writer.execute(name, command, timeout=60)

    def in_each(self, commands: Mapping[str, list[str]]) -> dict[str, CommandResult]:
        """Run a command in each container, all at once."""
        results = at_once(lambda name: self.execute(name, commands[name]), commands, "stagegbo verify")
        return dict(zip(commands, results, strict=True))

    @cached_property
    def states(self) -> Mapping[str, Mapping[str, Any]]:
        """The state of each network interface of the host, as the daemon reports it."""
        names = [each["name"] for each in self.reader.documents("networks", project="default")]
        found = {name: self.reader.link(name) for name in names}
        return {name: state for name, state in found.items() if state is not None}

    @cached_property
    def host_addresses(self) -> tuple[str, ...]:
        """Every IPv4 address of the host, but for loopback, and those of the cluster's other members."""
        found = set(self.reader.host().addresses() or ())
        found |= set(member_addresses(self.facts.members))
        found |= {
            each["address"]
            for state in self.states.values()
            for each in state.get("addresses") or ()
            if each.get("family") == "inet" and not IPv4Address(each["address"]).is_loopback
        }
        return tuple(sorted(found, key=IPv4Address))

    @cached_property
    def bridge_fault(self) -> str:
        """What is wrong with the stage's bridge, or keeps clones off it. Empty: nothing is known to be wrong."""
        with contextlib.suppress(StageGboError):
            return find_fault(self.reader, self.settings, self.clones.values())
        return ""

    @cached_property
    def guests(self) -> tuple[Guest, ...]:
        """Instances that are not part of the stage."""
        return find_guests(self.reader, self.facts.projects) if self.facts.guests is None else self.facts.guests

    @cached_property
    def production_addresses(self) -> tuple[str, ...]:
        """Those that production's containers have now, on all of their network devices, that their configuration and
        the settings give them, its bridges', and those of all other instances that are no stage's."""
        found = {str(c.production_address) for c in self.settings.containers.values() if c.production_address}
        found |= {str(address) for guest in self.guests for address in guest.addresses}
        for name in self.facts.production_networks:
            found.update(_global((self.states.get(name) or {}).get("addresses") or ()))
        return tuple(str(each) for each in sorted(map(ip_address, found), key=lambda each: (each.version, int(each))))

    @cached_property
    def dialled(self) -> Dialled:
        """Connections from every running container to everything of interest, made once."""
        running = self.running
        if not running:
            raise Unseen(self.idle)
        port = secrets.choice(SPARE_PORTS)
        names = {name: secrets.token_hex(8) for name in running}
        started = self.in_each({name: dialling.listener(port, names[name]) for name in running})
        trouble = {name: result.stderr.strip() for name, result in started.items() if result.status}
        own = {self.settings.network.name, *self.host_ends.values()}
        here = self.reader.is_here and is_on_host(self.settings.network.name)
        away = "" if here else self.reader.elsewhere or "another host"
        targets = self._targets(port, None)
        with (
            _Sentry(here) as sentry,
            PacketListener({target.host for target in targets}, port, elsewhere=away) as ears,
        ):
            targets = self._targets(port, sentry.port)
            results = self.in_each({name: dialling.command(targets) for name in running})
            leaked = {name: count for name, count in sorted(ears.heard().items()) if name not in own}
            for name in running:  # whether one would have been heard
                address = str(self.settings.containers[name].address)
                with contextlib.suppress(OSError):
                    if here:
                        socket.create_connection((address, port), PATIENCE).close()
                    break
            heard_own = bool(own & ears.heard().keys())
        trouble |= {name: result.stderr.strip() for name, result in results.items() if result.stderr.strip()}
        answers = {name: dialling.read_answers(result.stdout) for name, result in results.items()}
        self._ask_again(answers)
        return Dialled(
            targets=tuple(targets),
            answers=answers,
            trouble=trouble,
            production=self.production_addresses,
            host=self.host_addresses,
            host_port=sentry.port,
            intruders=tuple(sentry.seen),
            names=names,
            port=port,
            leaked=leaked,
            listen_error=ears.listen_error,
            heard_own=heard_own,
        )

    @cached_property
    def host_ends(self) -> Mapping[str, str]:
        """By clone, the name of its network device's end on the host."""
        return {name: clone.config.get("volatile.eth0.host_name", "") for name, clone in self.facts.clones.items()}

    def _ask_again(self, answers: dict[str, dict[Target, Answer]]) -> None:
        """Dial again, alone, what has to be turned back and was not heard of. The kernel says "unreachable" to one peer
        some times, and then once in a while (net.ipv4.icmp_ratelimit): a check just before may have used these up, and
        it counts from the last packet, so nothing is sent for a moment."""
        for _ in range(0 if self.settings.network.internet else MORE_TRIES):
            silent = {
                name: [each for each, answer in found.items() if each.host in OUTSIDE and answer.state == SILENT]
                for name, found in answers.items()
            }
            commands = {name: dialling.command(targets) for name, targets in silent.items() if targets}
            if not commands:
                return
            clocks.sleep(PAUSE)
            for name, result in self.in_each(commands).items():
                answers[name].update(dialling.read_answers(result.stdout))

    def _targets(self, port: int, sentry: int | None) -> list[Target]:
        host_ports = [*HOST_PORTS, *([sentry] if sentry else [])]
        services = {probe.port for container in self.settings.containers.values() for probe in container.probes}
        # The kernel limits how often it says "unreachable" to one peer: what must hear it comes first.
        found = [Target(address, 443) for address in OUTSIDE]
        found += [Target(address, each) for address in self.production_addresses for each in sorted(services)]
        found += [Target(address, port, name=True) for address in self.production_addresses]
        found += [Target(str(self.settings.containers[name].address), port, name=True) for name in self.running]
        found += [Target(address, each) for address in self.host_addresses for each in host_ports]
        return list(dict.fromkeys(found))


def _global(addresses: Any) -> Iterator[str]:
    for each in addresses:
        if each.get("scope") == "global":
            yield each["address"]


class _Sentry:
    """Listens on all addresses of the host while the block runs, to see who gets there."""

    def __init__(self, local: bool) -> None:
        self._socket = socket.socket() if local else None
        self.port: int | None = None
        self.seen: list[str] = []

    def __enter__(self) -> _Sentry:
        if self._socket is not None:
            self._socket.bind(("0.0.0.0", 0))
            self._socket.listen(64)
            self.port = self._socket.getsockname()[1]
            threading.Thread(target=self._listen, args=(self._socket,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _listen(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, peer = listening.accept()
            except OSError:
                return
            self.seen.append(peer[0])
            connection.close()
