"""The command `expose`: it publishes one port of the stage for a limited time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.cli.console import ask, need_answer
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_report
from pytest_stagegbo.errors import SettingsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.desired.exposure import Exposure

__all__ = ["register"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    expose = commands.add_parser(
        "expose",
        help="publish one port of a clone at an address of the host, for a limited time",
        usage="%(prog)s CONTAINER[:PORT] --listen ADDRESS[:PORT] --for TIME | --close [ADDRESS]",
    )
    expose.add_argument(
        "target", nargs="?", metavar="CONTAINER[:PORT]", help="what to publish: system, system:5858 or system:http"
    )
    expose.add_argument(
        "--listen", metavar="ADDRESS[:PORT]", help="an address of the host; without a port, the clone's port"
    )
    expose.add_argument(
        "--for", dest="length", metavar="TIME", help="how long, such as 30m or 2h; at most expose.longest"
    )
    expose.add_argument(
        "--close", nargs="?", const="", metavar="ADDRESS", help="close the port at this address, or all ports"
    )
    expose.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
    expose.add_argument("--yes", action="store_true", help="do not ask")
    expose.add_argument("--json", action="store_true", help="print one JSON object")
    expose.set_defaults(run=_expose)


def _expose(arguments: argparse.Namespace) -> int:
    wants = [arguments.target, arguments.listen, arguments.length]
    if arguments.close is not None and any(each is not None for each in wants):
        raise SettingsError(
            "--close takes an address of the host or nothing, and no other option of expose",
            remedy="`stagegbo expose --close` closes every exposed port; `stagegbo status` lists them",
        )
    context = open_context(arguments)
    if arguments.close is not None:
        return _close(arguments, context)
    if any(each is None for each in wants):
        raise SettingsError(
            "expose needs a container, an address of the host and a time: CONTAINER[:PORT] --listen ADDRESS[:PORT] "
            "--for TIME",
            remedy="for example `stagegbo expose system:5858 --listen 198.51.100.7:8443 --for 2h`; `stagegbo status` "
            "lists what is open",
        )
    return _open(arguments, context)


def _open(arguments: argparse.Namespace, context: Context) -> int:
    from pytest_stagegbo.cli.console import console_progress
    from pytest_stagegbo.plan.exposure_request import new_exposure

    settings = context.loaded.settings
    wanted = new_exposure(settings, arguments.target, arguments.listen, arguments.length)
    with console_progress(quiet=arguments.quiet) as progress:
        engine = context.engine(progress)
        engine.exposures.open(wanted, dry_run=True)
    if arguments.dry_run:
        return _tell(arguments, "would expose", (wanted,))
    if not arguments.yes:
        need_answer("expose")
        if not ask(f"expose {wanted} to everybody who reaches {wanted.listen}?"):
            print("nothing was exposed")
            return 1
    with console_progress(quiet=arguments.quiet) as progress:
        context.engine(progress).exposures.open(wanted)
    return _tell(arguments, "exposed", (wanted,))


def _close(arguments: argparse.Namespace, context: Context) -> int:
    from pytest_stagegbo.cli.console import console_progress

    with console_progress(quiet=arguments.quiet) as progress:
        closed = context.engine(progress).exposures.close(arguments.close, dry_run=arguments.dry_run)
    return _tell(arguments, "would close" if arguments.dry_run else "closed", closed)


def _tell(arguments: argparse.Namespace, what: str, found: Sequence[Exposure]) -> int:
    if arguments.json:
        from pytest_stagegbo.cli.shapes import Expose, Port, shaped

        print_report(Expose(action=what, ports=[shaped(Port, each) for each in found]))
    elif not found:
        print("nothing is exposed")
    for each in found if not arguments.json else ():
        print(f"{what}: {each}")
    return 0
