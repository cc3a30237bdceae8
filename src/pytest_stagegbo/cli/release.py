"""The command `release`: it ends a lease of the stage that a host has left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context

if TYPE_CHECKING:
    import argparse

__all__ = ["register"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    release = commands.add_parser(
        "release", help="end the stage's lease, if no process of this host uses it; --force: also that of a dead host"
    )
    release.add_argument("--force", action="store_true", help="take the lease from another host, which must be dead")
    release.set_defaults(run=_release)


def _release(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import print_loudly
    from pytest_stagegbo.engine.leasing import release
    from pytest_stagegbo.leases.about import holder_text

    engine = open_context(arguments).engine()
    project = engine.settings.project
    taken = release(engine, force=arguments.force)
    if taken is None:
        print(f"{project} is leased by nobody")
    elif engine.lease is not None and not engine.lease.is_own(taken):
        print_loudly(
            f"took the lease of {project} from {holder_text(taken)}. If that host is alive, it may write to the stage "
            "until it looks at its lease, within seconds"
        )
    else:
        print(f"{project} is free")
    return 0
