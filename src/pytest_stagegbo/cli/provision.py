"""The commands `provision`, `reset` and `destroy`, which change the stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET, structs

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_report
from pytest_stagegbo.cli.plans import plan_shape, print_plan, print_timings, result_shape
from pytest_stagegbo.processes import age
from pytest_stagegbo.text import count_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from pytest_stagegbo.cli.shapes import Method
    from pytest_stagegbo.resets.resetter import Outcome

__all__ = ["methods", "register"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    provision = commands.add_parser(
        "provision", help="make the stage as the settings describe it; change only what differs"
    )
    provision.add_argument("--dry-run", action="store_true", help="print the plan and change nothing")
    provision.add_argument(
        "--recreate",
        action="store_true",
        help="replace every clone by a new copy of production; with storage.pool, by a new copy of the golden copy on "
        "that pool, which --refresh updates",
    )
    provision.add_argument("--slots", metavar="N", help="number of stages, or `auto`: as many as fit (slots.count)")
    provision.add_argument(
        "--refresh",
        nargs="*",
        metavar="NAME",
        help="copy these containers from production again, into the golden copy and every slot; without a name, those "
        "that may have changed",
    )
    provision.add_argument("--vault-keys", metavar="FILE", help="file with Vault's unseal keys (vault.unseal_file)")
    provision.add_argument("--timings", action="store_true", help="print where the time went, step by step")
    provision.add_argument("--json", action="store_true", help="print one JSON object")
    provision.set_defaults(run=_provision)
    reset = commands.add_parser("reset", help="make containers clean by their configured method, and prove it")
    reset.add_argument(
        "names", nargs="+", metavar="NAME", help="containers, or `all`: those whose data the stage wipes"
    )
    reset.add_argument("--json", action="store_true", help="print one JSON object")
    reset.set_defaults(run=_reset)
    destroy = commands.add_parser(
        "destroy", help="remove the stage, its slots and its golden copy, and nothing that others made"
    )
    destroy.add_argument("--dry-run", action="store_true", help="print what would be removed")
    destroy.add_argument(
        "--pool", action="store_true", help="also remove the stage's own storage pool, if provisioning created it"
    )
    destroy.add_argument("--yes", action="store_true", help="do not ask")
    destroy.set_defaults(run=_destroy)


def _provision(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import console_progress

    context = open_context(arguments)
    settings = context.loaded.settings
    if settings.slots.count != 1 or settings.storage.own or arguments.refresh is not None:
        from pytest_stagegbo.cli.slots import provision

        return provision(context, arguments)
    if arguments.dry_run:
        plan = context.engine().plan(recreate=arguments.recreate)
        if arguments.json:
            from pytest_stagegbo.cli.shapes import ProvisionPlan

            print_report(plan_shape(plan, ProvisionPlan))
        else:
            print_plan(plan)
        return 0
    start_up = age()
    with console_progress(quiet=arguments.quiet) as progress:
        result = context.engine(progress).provision(recreate=arguments.recreate)
    if arguments.json:
        from pytest_stagegbo.cli.shapes import Provision

        print_report(Provision(**structs.asdict(result_shape(result)), start_up=round(start_up, 2)))
    else:
        done = count_text(len(result.plan.changes), "step") if result.changed else "nothing to change"
        states = ", ".join(f"{name} {found.state}" for name, found in result.readiness.items())
        print(f"{context.loaded.settings.project}: {done} in {result.seconds:.2f} s; {states}")
    if arguments.timings and not arguments.json:
        print_timings(result, start_up)
    if result.sealed:
        from pytest_stagegbo.errors import VaultSealed
        from pytest_stagegbo.services.keys import HOW_TO_GIVE_KEYS

        raise VaultSealed(f"the stage is up, and {', '.join(result.sealed)} is sealed", remedy=HOW_TO_GIVE_KEYS)
    return 0


def _reset(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import console_progress

    context = open_context(arguments)
    with console_progress(quiet=arguments.quiet) as progress:
        engine = context.engine(progress)
        outcomes = engine.reset(arguments.names)
        engine.close()
    seconds = max((outcome.ended for outcome in outcomes), default=0.0)
    names = [outcome.name for outcome in outcomes]
    if arguments.json:
        from pytest_stagegbo.cli.shapes import Reset

        print_report(Reset(reset=names, methods=methods(outcomes), seconds=round(seconds, 3)))
    else:
        print(f"{', '.join(names)}: clean and answering after {seconds:.2f} s")
    return 0


def methods(outcomes: Iterable[Outcome]) -> dict[str, Method]:
    """Return the method by which each container was reset and, if a quicker one was not enough, the reason."""
    from pytest_stagegbo.cli.shapes import Method

    return {each.name: Method(method=each.way, reason=each.doubt or UNSET) for each in outcomes}


def _destroy(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import ask, console_progress, need_answer

    asks = not (arguments.yes or arguments.dry_run)
    if asks:
        need_answer("destroy")
    context = open_context(arguments)
    project = context.loaded.settings.project
    fleet = context.fleet()
    steps = [(of, step) for of, plan in fleet.plan_destroy().items() for step in plan]
    lines = [f"{of}: {step.text}" for of, step in steps]
    pool = fleet.own_pool() if arguments.pool else ""
    if pool:
        lines.append(f"delete storage pool {pool}")
    if not lines:
        if not arguments.dry_run:
            fleet.forget_leases()  # of a stage that an earlier version removed
        print(f"there is no stage {project}: nothing to remove")
        return 0
    if not arguments.yes or arguments.dry_run:
        for line in lines:
            print(line)
    if arguments.dry_run:
        return 0
    if asks and not ask(f"remove stage {project}?"):
        print("nothing was removed")
        return 1
    with console_progress(quiet=arguments.quiet) as progress:
        fleet = context.fleet(progress)
        fleet.destroy()
        if pool:
            fleet.remove_pool()
    print(f"stage {project} is gone")
    return 0
