"""Checks of who reaches whom, by connections that are tried."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_stagegbo.facts.dialling import ANSWERED, SILENT, Answer, Target
from pytest_stagegbo.facts.host_path import find_trouble
from pytest_stagegbo.services.dial import way_to
from pytest_stagegbo.verify.context import OUTSIDE, PATIENCE
from pytest_stagegbo.verify.finding import Result, Sight, Skipped, sight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_stagegbo.verify.context import Dialled, VerifyContext

__all__ = ["host", "host_to_stage", "internet", "production", "twins"]


def production(context: VerifyContext) -> Result:
    """Check that production's addresses are unreachable, or belong to a twin: then the twin's clone answers or
    refuses."""
    dialled = context.dialled
    owned = _owners(context) if context.settings.network.twins else {}
    targets = [target for target in dialled.targets if target.host in dialled.production]
    bad = []

    def near(address: str) -> bool:
        """Whether the clones have a route of their own that leads nowhere."""
        return context.settings.network.twins and ip_address(address) in context.settings.network.production

    for name, target, answer in _answers(dialled, targets):
        if target.host in owned:
            if target.name and answer.state == ANSWERED and answer.name not in dialled.names.values():
                bad.append(f"{name}: {target.host} is answered by something that is not of the stage")
        elif answer.state == ANSWERED:
            bad.append(f"{name} connects to {target}, which has no twin")
        # Elsewhere the access list turns packets back, and the kernel limits how often it says so.
        elif answer.state == SILENT and near(target.host):
            bad.append(f"{name}: packets to {target} vanish instead of being turned back at once")
    for interface, packets in dialled.leaked.items():
        whose = (
            "a bridge of production" if interface in context.facts.production_networks else "which is not the stage's"
        )
        bad.append(f"{packets} packets were on {interface}, {whose}")
    listening = {} if dialled.listen_error else {"packets on the host": Sight(1, int(dialled.heard_own))}
    packets_seen = (
        f"packets were not listened for ({dialled.listen_error})"
        if dialled.listen_error
        else "no packet of them left it"
    )
    seen = f"from {_names(dialled)} to {', '.join(dialled.production)}; {packets_seen}"
    unknown = ", ".join(str(guest) for guest in context.guests if guest.unknown and not guest.addresses)
    seen += f"; no address is known of {unknown}, which does not run or has none" if unknown else ""
    looked = {guest.name for guest in context.guests if guest.project == context.settings.source_project}
    listening |= {f"addresses of {name}": Sight(1, int(name in looked)) for name in context.facts.production_instances}
    return _result(context, bad, targets, f"connections tried {seen}", listening)


def twins(context: VerifyContext) -> Result:
    """Check that the right clone answers, by its name, at each twin address and each stage address."""
    if not context.settings.network.twins:
        raise Skipped("network.twins is off")
    dialled = context.dialled
    wanted = {address: dialled.names[name] for address, name in _owners(context).items() if name in dialled.names}
    wanted |= {str(context.settings.containers[name].address): dialled.names[name] for name in dialled.names}
    targets = [target for target in dialled.targets if target.name and target.host in wanted]
    bad = []
    for name, target, answer in _answers(dialled, targets):
        if answer.name != wanted[target.host]:
            whose = next((other for other, said in dialled.names.items() if said == answer.name), answer.state)
            bad.append(f"{name}: at {target.host} should be its clone, and was {whose}")
    why = find_trouble(context.reader, context.settings) if bad and not context.bridge_fault else None
    bad += [f"{why.text}; {why.remedy}"] if why is not None else []
    return _result(context, bad, targets, "connections, each answered by the clone whose address it is")


def host(context: VerifyContext) -> Result:
    """Check that no port of the host is reached at any of its addresses: known ports, and one that `verify` listens on.

    A stage that may use the internet has Incus's resolver on its bridge.
    """
    dialled, network = context.dialled, context.settings.network
    resolver = Target(str(network.address.ip), 53) if network.internet else None
    targets = [target for target in dialled.targets if target.host in dialled.host and not target.name]
    bad = [
        f"{name} connects to the host at {target}"
        for name, target, answer in _answers(dialled, targets)
        if answer.state == ANSWERED and target != resolver
    ]
    bad += [f"a connection from {peer} arrived on the host" for peer in sorted(set(dialled.intruders))]
    listened = f"this process listened on port {dialled.host_port}" if dialled.host_port else "nobody listened there"
    listened += f"; network.internet: the resolver at {resolver} is the stage's" if resolver else ""
    return _result(context, bad, targets, f"connections tried to {', '.join(dialled.host)}; {listened}")


def internet(context: VerifyContext) -> Result:
    """Check that packets to addresses on the internet are turned back at once."""
    if context.settings.network.internet:
        raise Skipped("network.internet is on")
    dialled = context.dialled
    targets = [target for target in dialled.targets if target.host in OUTSIDE]
    bad = [
        f"{name}: a packet to {target.host} was not turned back ({answer.state})"
        for name, target, answer in _answers(dialled, targets)
        if answer.state in {ANSWERED, SILENT}
    ]
    seen = f"packets to {' and '.join(OUTSIDE)} from {_names(dialled)} came back as unreachable"
    return _result(context, bad, targets, seen)


def host_to_stage(context: VerifyContext) -> Result:
    """Check that this machine reaches each clone, directly or through the daemon, and that it is the right clone."""
    dialled = context.dialled
    bad = []
    for name, said in dialled.names.items():
        address = str(context.settings.containers[name].address)
        try:
            with _connected(address, dialled.port) as connection:
                heard = connection.recv(100).decode("ascii", "replace").strip()
        except OSError as error:
            bad.append(f"{name} at {address}: {error}")
            continue
        if heard != said:
            bad.append(f"{name}: somebody else answers at {address}")
    why = find_trouble(context.reader, context.settings) if bad and not context.bridge_fault else None
    bad += [f"{why.text}; {why.remedy}"] if why is not None else []
    seen = f"connected to {_names(dialled)} from here"
    return Result(tuple(bad), seen, sight(context.names, dialled.names), context.idle)


def _connected(address: str, port: int) -> socket.socket:
    way = way_to(address)
    if way is None:
        return socket.create_connection((address, port), PATIENCE)
    connection, _ = way.connect(address, port, PATIENCE)
    connection.settimeout(PATIENCE)
    return connection


def _result(
    context: VerifyContext,
    bad: list[str],
    targets: Sequence[Target],
    seen: str,
    more: Mapping[str, Sight] = MappingProxyType({}),
) -> Result:
    """Make a result. Each container must have tried every target and reached itself, or else it proves nothing."""
    dialled = context.dialled
    counts = {name: sum(target in found for target in targets) for name, found in dialled.answers.items()}
    sights = {name: Sight(len(targets), counts.get(name, 0)) for name in context.names}
    why = [context.idle] if context.idle else []
    for name, answers in dialled.answers.items():
        own = Target(str(context.settings.containers[name].address), dialled.port, name=True)
        if answers.get(own, Answer(SILENT)).name != dialled.names[name]:
            sights[name] = Sight(len(targets), 0)
            why.append(f"{name} did not even reach itself")
    why += [f"{name}: perl, which every Debian has, said {text[:200]}" for name, text in dialled.trouble.items()]
    if any(each.looked < each.expected for each in sights.values()):
        why.append("see `stagegbo exec NAME -- perl -v`")
    return Result(tuple(bad), f"{sum(counts.values())} {seen}", {**sights, **more}, "; ".join(why))


def _answers(dialled: Dialled, targets: Iterable[Target]) -> Iterator[tuple[str, Target, Answer]]:
    wanted = set(targets)
    for name, answers in dialled.answers.items():
        for target, answer in answers.items():
            if target in wanted:
                yield name, target, answer


def _owners(context: VerifyContext) -> dict[str, str]:
    """Return the production addresses that belong to a clone, with the clone's name."""
    return {
        str(container.production_address): name
        for name, container in context.settings.containers.items()
        if container.production_address
    }


def _names(dialled: Dialled) -> str:
    return ", ".join(dialled.answers)


def in_stage(context: VerifyContext, text: str) -> bool:
    """Whether a text is, or begins with, an address of the stage's subnet: `tcp:10.0.3.11:80`, `10.0.3.11`."""
    for part in text.replace("/", ":").split(":"):
        try:
            if ip_address(part) in context.settings.network.subnet:
                return True
        except ValueError:
            continue
    return False
