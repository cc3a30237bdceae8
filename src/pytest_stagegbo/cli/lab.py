"""The command `lab` with its own commands `up`, `status`, `exec`, `member` and `down`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_stagegbo.lab import Lab

__all__ = ["register"]

LAYOUTS = ("own", "shared")
QUOTAS = ("ordinary", "simple")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `lab` with its own commands."""
    lab = subparsers.add_parser(
        "lab",
        help="a small production to copy, on this machine: a real Incus with six containers; needs root",
        description="A small production to copy: a real Incus with six containers, in network and mount namespaces of "
        "its own. Needs root.",
    )
    commands = lab.add_subparsers(dest="lab_command", required=True, metavar="COMMAND")
    up = _add(commands, "up", "start the lab; the first time, this downloads Debian packages and wheels", _up)
    up.add_argument(
        "--fresh", action="store_true", help="replace production by a new one, made from the images that are there"
    )
    up.add_argument(
        "--quota",
        choices=QUOTAS,
        default="",
        help="quotas of the btrfs pools: ordinary ones, as Incus turns them on, or simple ones; a new lab gets simple "
        "ones if the kernel has them (Linux 6.7)",
    )
    up.add_argument(
        "--pool-layout",
        choices=LAYOUTS,
        default="",
        help="own: add a second pool, `stage`, in a file of its own, for `storage.pool`; shared: add none (default)",
    )
    up.add_argument(
        "--members",
        type=int,
        choices=range(1, 6),
        default=0,
        metavar="N",
        help="make the lab an Incus cluster of N daemons, 5 at most, with production on the first; it stays one",
    )
    status = _add(commands, "status", "show what runs, and where the lab's socket and network namespace are", _status)
    status.add_argument("--json", action="store_true", help="print one JSON object")
    execute = _add(commands, "exec", "run a command in the lab's network, with the lab's Incus", _exec)
    _add_member(execute, "--member", help="run it at this member of the lab's cluster; the first one is the default")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command, with its arguments")
    member = _add(commands, "member", "stop, cut off or start one member of the lab's cluster", _member)
    member.add_argument(
        "action",
        choices=("stop", "start", "cut"),
        help="stop: kill the daemon and its containers, as a power cut would; cut: let no packet pass between it and "
        "the others; start: bring it back from either",
    )
    _add_member(member, "member", help="member1 is the one with production")
    down = _add(commands, "down", "stop the lab; images and production's data stay", _down)
    down.add_argument("--purge", action="store_true", help="also delete images and production's data")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, run: object
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--incus", metavar="VERSION", help="version of the lab's Incus: 6.0 (default) or 7.0")
    parser.set_defaults(run=run)
    return parser


def _add_member(parser: argparse.ArgumentParser, name: str, help: str) -> None:
    parser.add_argument(name, metavar="MEMBER", help=help)


def _find(args: argparse.Namespace) -> Lab:
    from pytest_stagegbo.lab import Lab
    from pytest_stagegbo.lab.command import require_root

    require_root()  # the lab's files are root's alone: to anybody else a lab that is up would look like none
    return Lab.find(args.incus)


def _up(args: argparse.Namespace) -> int:
    lab = _find(args)
    from pytest_stagegbo.cli.console import console_progress

    with console_progress(quiet=args.quiet) as progress:
        lab.up(progress, fresh=args.fresh, quota=args.quota, pool_layout=args.pool_layout, members=args.members)
    print(f"lab {lab.paths.name} is up: {lab.socket}")
    from pytest_stagegbo.cli.output import print_hint

    print_hint("next: `stagegbo --lab provision` clones its production; `pytest --stage-lab` runs tests on it", args)
    return 0


def _status(args: argparse.Namespace) -> int:
    status = _find(args).status()
    if args.json:
        from pytest_stagegbo.cli.output import print_report
        from pytest_stagegbo.cli.shapes import Lab, shaped

        print_report(shaped(Lab, status))
        return 0
    state = "up" if status.ready else "running, not ready" if status.running else "down"
    print(f"lab {status.name}: {state}, Incus {status.incus_version}")
    if status.members:
        print("members: " + ", ".join(f"{name} {state}" for name, state in status.members.items()))
    if status.running:
        print(f"socket: {status.socket}\nnetwork namespace: {status.netns}")
        print("pools: " + ", ".join(f"{name} (quotas: {kind or 'unknown'})" for name, kind in status.pools.items()))
        for name, container in sorted(status.production.items()):
            print(f"  {name:8} {container:8} {status.services.get(name, '')}")
    return 0


def _exec(args: argparse.Namespace) -> int:
    argv = args.argv
    lab = _find(args)
    command = (lab.at(args.member) if args.member else lab).exec_argv(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)


def _member(args: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import console_progress

    lab = _find(args)
    with console_progress(quiet=args.quiet) as progress:
        lab.change_member(args.member, args.action, progress)
    print(f"{args.member} of lab {lab.paths.name}: {lab.status().members[args.member]}")
    return 0


def _down(args: argparse.Namespace) -> int:
    lab = _find(args)
    lab.down(purge=args.purge)
    print(f"lab {lab.paths.name} is down{' and deleted' if args.purge else ''}")
    return 0
