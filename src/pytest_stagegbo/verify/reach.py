"""Who reaches whom: connections that were tried."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from pytest_stagegbo.verify.dialling import ANSWERED, SILENT, Answer, Target
from pytest_stagegbo.verify.finding import Result, Skipped
from pytest_stagegbo.verify.scene import OUTSIDE, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.verify.scene import Dialled, Scene

__all__ = ["host", "host_to_stage", "internet", "production", "twins"]


def production(scene: Scene) -> Result:
    """What has no twin is unreachable at once; what has one is answered by the stage, or refused by its clone."""
    dialled = scene.dialled
    owned = _owners(scene) if scene.settings.network.twins else {}
    bad, count = [], 0
    for name, target, answer in _answers(dialled):
        if target.host not in dialled.production:
            continue
        count += 1
        if target.host in owned:
            if target.name and answer.state == ANSWERED and answer.name not in dialled.names.values():
                bad.append(f"{name}: {target.host} is answered by something that is not of the stage")
        elif answer.state == ANSWERED:
            bad.append(f"{name} connects to {target.host}:{target.port}, which has no twin")
        elif answer.state == SILENT and scene.settings.network.twins:
            bad.append(f"{name}: packets to {target.host}:{target.port} vanish instead of being turned back at once")
    bad += [
        f"{packets} packets were on {bridge}, a bridge of production"
        for bridge, packets in dialled.leaked.items()
        if packets
    ]
    bridges = ", ".join(dialled.leaked)
    packets = f"packets were not listened for ({dialled.deaf})" if dialled.deaf else f"no packet of them on {bridges}"
    addresses = len(dialled.production)
    return Result(tuple(bad), f"{count} connections tried from {_names(dialled)} to {addresses} addresses; {packets}")


def twins(scene: Scene) -> Result:
    """At each twin's address, and at each stage address, the clone that it belongs to answers, by name."""
    if not scene.settings.network.twins:
        raise Skipped("network.twins is off")
    dialled = scene.dialled
    wanted = {address: dialled.names[name] for address, name in _owners(scene).items() if name in dialled.names}
    wanted |= {str(scene.settings.containers[name].address): dialled.names[name] for name in dialled.names}
    bad, count = [], 0
    for name, target, answer in _answers(dialled):
        if not target.name or target.host not in wanted:
            continue
        count += 1
        if answer.name != wanted[target.host]:
            whose = next((other for other, said in dialled.names.items() if said == answer.name), answer.state)
            bad.append(f"{name}: at {target.host} should be its clone, and was {whose}")
    return Result(tuple(bad), f"{count} connections, each answered by the clone whose address it is")


def host(scene: Scene) -> Result:
    """No port of the host is reached, at none of its addresses: known ones, and one that this process listened on.

    A stage that may use the internet has Incus's resolver on its bridge.
    """
    dialled, network = scene.dialled, scene.settings.network
    resolver = Target(str(network.address.ip), 53) if network.internet else None
    bad, count = [], 0
    for name, target, answer in _answers(dialled):
        if target.host in dialled.host and not target.name:
            count += 1
            if answer.state == ANSWERED and target != resolver:
                bad.append(f"{name} connects to the host at {target.host}:{target.port}")
    bad += [f"a connection from {peer} arrived on the host" for peer in sorted(set(dialled.intruders))]
    listened = f"this process listened on port {dialled.host_port}" if dialled.host_port else "nobody listened there"
    listened += f"; network.internet: the resolver at {resolver} is the stage's" if resolver else ""
    return Result(tuple(bad), f"{count} connections tried to {', '.join(dialled.host)}; {listened}")


def internet(scene: Scene) -> Result:
    """A packet for an address outside is turned back at once."""
    if scene.settings.network.internet:
        raise Skipped("network.internet is on")
    dialled = scene.dialled
    bad = []
    for name, target, answer in _answers(dialled):
        if target.host == OUTSIDE and answer.state in {ANSWERED, SILENT}:
            bad.append(f"{name}: a packet to {OUTSIDE} was not turned back ({answer.state})")
    return Result(tuple(bad), f"packets to {OUTSIDE} from {_names(dialled)} came back as unreachable")


def host_to_stage(scene: Scene) -> Result:
    """The host reaches each clone, and it is that clone."""
    dialled = scene.dialled
    bad = []
    for name, said in dialled.names.items():
        address = str(scene.settings.containers[name].address)
        try:
            with socket.create_connection((address, dialled.port), PATIENCE) as connection:
                heard = connection.recv(100).decode("ascii", "replace").strip()
        except OSError as error:
            bad.append(f"{name} at {address}: {error}")
            continue
        if heard != said:
            bad.append(f"{name}: somebody else answers at {address}")
    return Result(tuple(bad), f"connected to {_names(dialled)} from here")


def _answers(dialled: Dialled) -> Iterator[tuple[str, Target, Answer]]:
    for name, answers in dialled.answers.items():
        for target, answer in answers.items():
            yield name, target, answer


def _owners(scene: Scene) -> dict[str, str]:
    """Production addresses that belong to a clone."""
    return {
        str(container.production_address): name
        for name, container in scene.settings.containers.items()
        if container.production_address
    }


def _names(dialled: Dialled) -> str:
    return ", ".join(dialled.answers)


def in_stage(scene: Scene, text: str) -> bool:
    """Whether a text is, or begins with, an address of the stage's subnet: `tcp:10.0.3.11:80`, `10.0.3.11`."""
    for part in text.replace("/", ":").split(":"):
        try:
            if ip_address(part) in scene.settings.network.subnet:
                return True
        except ValueError:
            continue
    return False
