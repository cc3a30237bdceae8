"""`forward`: ports of this machine that lead to the stage's services, for as long as the command runs."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_hint, print_report, print_variables
from pytest_stagegbo.cli.streams import end_like_ctrl_c
from pytest_stagegbo.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.forward.forwarder import Forwarder
    from pytest_stagegbo.settings import ContainerSettings, Settings
    from pytest_stagegbo.settings.addresses import Endpoint

__all__ = ["register"]

HIGHEST = 65535
Target = tuple[str, int]
"""A container, and a port of it."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    forward = commands.add_parser(
        "forward",
        help="ports of this machine that lead to services of the stage, until Ctrl-C",
        usage="%(prog)s [options] [NAME[:PORT] ...]",
        description="Open ports on this machine's loopback that lead to services of the stage, and keep them open "
        "until Ctrl-C. Connections are carried by the Incus daemon, so no route to the stage's network is needed.",
    )
    forward.add_argument(
        "names",
        metavar="NAME[:PORT]",
        nargs="*",
        type=_target,
        help="containers whose ports to forward, or one port of a container (default: all services)",
    )
    forward.add_argument(
        "--port",
        metavar="NAME[:PORT]=LOCAL",
        action="append",
        type=_wanted,
        help="the local port for a container's first port, or for the port that is named (default: any free port)",
    )
    form = forward.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--env", action="store_true", help="print lines for a shell: NAME=value")
    forward.set_defaults(run=_forward)


def _target(text: str) -> tuple[str, int]:
    """Name and port; 0: all ports of the container."""
    name, colon, port = text.partition(":")
    if not name or (colon and not _is_port(port)):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME:PORT")
    return name, int(port or 0)


def _wanted(text: str) -> tuple[tuple[str, int], int]:
    target, _, own = text.rpartition("=")
    if not target or not _is_port(own):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LOCAL or NAME:PORT=LOCAL (ports: 1 to {HIGHEST})")
    return _target(target), int(own)


def _is_port(text: str) -> bool:
    return bool(re.fullmatch("[0-9]{1,5}", text)) and 1 <= int(text) <= HIGHEST


def _forward(arguments: argparse.Namespace) -> int:
    context = open_context(arguments)
    settings = context.loaded.settings
    own = {_first(settings, target): port for target, port in arguments.port or ()}
    targets = list(dict.fromkeys(_chosen(settings, arguments.names, own)))
    from pytest_stagegbo.forward.published import publish, withdraw

    engine = context.engine()
    for name in dict.fromkeys(name for name, _ in targets):
        engine.running_clone(name)
    engine.mark_dirty()
    forwarder, lock = engine.way.forwarder(_say), engine.lock()
    lock.make_folder()
    folder = lock.folder
    try:
        found = _listen(settings, forwarder, targets, own)
        publish(folder, {target: each.port for target, each in zip(targets, found, strict=True)})
        if arguments.json:
            from pytest_stagegbo.cli.shapes import Endpoint as Shape
            from pytest_stagegbo.cli.shapes import Endpoints, shaped

            print_report(Endpoints(endpoints=[shaped(Shape, each) for each in found]))
        elif arguments.env:
            print_variables(found)
        else:
            from pytest_stagegbo.cli.console import print_table

            rows = [(name, str(port), each.url) for (name, port), each in zip(targets, found, strict=True)]
            print_table(("container", "port", "here"), rows)
        sys.stdout.flush()
        print_hint("forwarding until Ctrl-C", arguments)
        _wait()
    finally:
        withdraw(folder)
        forwarder.close()
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _wait() -> None:
    """Until a signal asks for the end."""
    end_like_ctrl_c()
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return


def _chosen(settings: Settings, named: Sequence[Target], own: Mapping[Target, int]) -> list[Target]:
    """Containers and ports to forward. Raises `SettingsError` for a container that there is not."""
    found: list[Target] = []
    for name, port in named or [(name, 0) for name in settings.containers]:
        ports = [port] if port else [probe.port for probe in _container(settings, name).probes]
        if not ports and named:
            raise _portless(name, f"forward {name}:PORT")
        found += [(name, each) for each in ports]
    for name, _ in [*found, *own]:
        _container(settings, name)
    return [*found, *own]


def _first(settings: Settings, target: Target) -> Target:
    """A target with a port: of a container that is named without one, its first."""
    name, port = target
    if port:
        return target
    probes = _container(settings, name).probes
    if not probes:
        raise _portless(name, f"--port {name}:PORT=LOCAL")
    return name, probes[0].port


def _portless(name: str, remedy: str) -> SettingsError:
    return SettingsError(f"forward: {name} has no probe, so its port is not known", remedy=remedy)


def _container(settings: Settings, name: str) -> ContainerSettings:
    if name not in settings.containers:
        raise SettingsError.unknown("forward: no container", [name], settings.containers)
    return settings.containers[name]


def _listen(
    settings: Settings, forwarder: Forwarder, targets: Sequence[Target], own: Mapping[Target, int]
) -> list[Endpoint]:
    """Open the ports; where each leads."""
    from pytest_stagegbo.settings.addresses import endpoint
    from pytest_stagegbo.settings.model import ProbeSettings

    found = []
    for target in targets:
        name, port = target
        container = settings.containers[name]
        try:
            here = forwarder.listen(name, port, own.get(target, 0))
        except OSError as error:
            raise SettingsError(
                f"forward: no port {own.get(target) or ''} for {name} can be opened here".replace("  ", " "),
                seen=str(error),
                remedy=f"name a port that nobody uses: --port {name}:{port}=LOCAL",
            ) from None
        probe = next((each for each in container.probes if each.port == port), ProbeSettings("tcp", port))
        found.append(endpoint(container, probe, partial(_here, here)))
    return found


def _here(port: int, _host: str, _port: int) -> tuple[str, int]:
    from pytest_stagegbo.forward.forwarder import LOOPBACK

    return LOOPBACK, port
