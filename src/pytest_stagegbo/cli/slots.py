"""The command `provision` for a stage with several slots, on a pool of its own, or with --refresh."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.output import print_report
from pytest_stagegbo.cli.plans import plan_shape, print_plan, print_timings, result_shape
from pytest_stagegbo.text import count_text

if TYPE_CHECKING:
    import argparse

    from pytest_stagegbo.cli.context import Context

__all__ = ["provision"]


def provision(context: Context, arguments: argparse.Namespace) -> int:
    """Provision every slot, and return the exit status."""
    from pytest_stagegbo.cli.console import console_progress
    from pytest_stagegbo.errors import VaultSealed
    from pytest_stagegbo.services.keys import HOW_TO_GIVE_KEYS

    fleet = context.fleet()
    found = fleet.capacity(os.cpu_count() or 1)
    count = max(found.count, fleet.count_there()) if arguments.refresh is not None else found.count
    to_replace = fleet.to_refresh(arguments.refresh) if arguments.refresh is not None else ()
    if not arguments.json:
        for line in found.explanation if count > 1 else ():
            print(line)
        if arguments.refresh is not None:
            print(
                "to copy again from production: "
                + (", ".join(to_replace) or "nothing, since nothing has changed there")
            )
    if arguments.dry_run:
        own = context.loaded.settings.storage.own
        if arguments.recreate and not own:
            to_replace = tuple(context.loaded.settings.containers)
        plans = fleet.plans(count, recreate=arguments.recreate, to_replace=to_replace)
        if arguments.json:
            from pytest_stagegbo.cli.shapes import Plan, SlotsPlan

            shown = {project: plan_shape(plan, Plan) for project, plan in plans.items()}
            print_report(SlotsPlan(slots=shown, arithmetic=list(found.explanation), renewed=list(to_replace)))
            return 0
        for project, plan in plans.items():
            print(f"{project}:")
            print_plan(plan)
        return 0
    with console_progress(quiet=arguments.quiet) as progress:
        working = context.fleet(progress)
        if arguments.refresh is None:
            working.places = found.members
        result = working.provision(count, recreate=arguments.recreate, to_replace=to_replace)
    names = {number: fleet.engine(number).settings.project for number in result.slots}
    if arguments.json:
        from pytest_stagegbo.cli.shapes import Slots

        print_report(
            Slots(
                golden=None if result.golden is None else result_shape(result.golden),
                slots={names[number]: result_shape(each) for number, each in result.slots.items()},
                renewed=list(to_replace),
                seconds=round(result.seconds, 3),
            )
        )
    else:
        for number, each in result.slots.items():
            done = count_text(len(each.plan.changes), "step") if each.changed else "nothing to change"
            states = ", ".join(f"{name} {ready.state}" for name, ready in each.readiness.items())
            print(f"{names[number]}: {done} in {each.seconds:.2f} s; {states}")
            if arguments.timings:
                print_timings(each)
        print(f"{count_text(len(result.slots), 'slot')} in {result.seconds:.2f} s")
    sealed = [f"{names[n]}/{name}" for n, each in result.slots.items() for name in each.sealed]
    if sealed:
        raise VaultSealed(f"the slots are up, and {', '.join(sealed)} is sealed", remedy=HOW_TO_GIVE_KEYS)
    return 0
