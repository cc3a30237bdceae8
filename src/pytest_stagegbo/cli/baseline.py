"""The command `baseline`: named states of several containers."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pytest_stagegbo import clocks
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_report
from pytest_stagegbo.errors import SettingsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from pytest_stagegbo.plan.baselines import Found

__all__ = ["register"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    baseline = commands.add_parser(
        "baseline",
        help="save the state of containers under a name, and go back to it",
        usage="%(prog)s [options] save NAME [--containers NAMES] [--replace]\n       %(prog)s [options] use NAME\n"
        "       %(prog)s [options] delete NAME\n       %(prog)s [options] list",
    )
    baseline.add_argument(
        "action",
        choices=("save", "use", "delete", "list"),
        help="save: keep what the containers hold at this moment. use: bring them to that state. delete, list: what "
        "they say",
    )
    baseline.add_argument("name", metavar="NAME", nargs="?", help="the baseline")
    baseline.add_argument(
        "--containers",
        metavar="NAMES",
        action="append",
        help="of save: such as tables,cache; default: all that resets bring back (tables, cache, drive and system)",
    )
    baseline.add_argument("--replace", action="store_true", help="of save: replace the baseline of that name")
    baseline.add_argument("--json", action="store_true", help="print one JSON object")
    baseline.set_defaults(run=_baseline)


def _baseline(arguments: argparse.Namespace) -> int:
    action = arguments.action
    if bool(arguments.name) == (action == "list"):
        raise SettingsError(
            f"baseline {action} takes {'no' if arguments.name else 'a'} name",
            remedy="`stagegbo baseline list`" if arguments.name else f"name one: stagegbo baseline {action} NAME",
        )
    if action != "save" and (arguments.containers or arguments.replace):
        raise SettingsError(
            f"baseline {action} takes no --containers and no --replace",
            remedy="these are for `stagegbo baseline save NAME`",
        )
    run = {"save": _save, "use": _use, "delete": _delete, "list": _list}[action]
    return run(arguments)


def _save(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import console_progress

    names = [name for text in arguments.containers or () for name in text.split(",") if name]
    context, began = open_context(arguments), clocks.monotonic()
    with console_progress(quiet=arguments.quiet) as progress:
        engine = context.engine(progress)
        about = engine.baselines.save(arguments.name, names, replace=arguments.replace)
        engine.close()
    seconds = clocks.monotonic() - began
    if arguments.json:
        _report(about.name, about.containers, seconds)
    else:
        print(f"baseline {about.name} has {', '.join(about.containers)}, after {seconds:.2f} s")
    return 0


def _use(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import console_progress

    context, began = open_context(arguments), clocks.monotonic()
    with console_progress(quiet=arguments.quiet) as progress:
        engine = context.engine(progress)
        names = engine.baselines.use(arguments.name)
        engine.close()
    seconds = clocks.monotonic() - began
    if arguments.json:
        _report(arguments.name, names, seconds)
    else:
        print(f"{', '.join(names)}: at baseline {arguments.name} and answering after {seconds:.2f} s")
    return 0


def _report(name: str, containers: Iterable[str], seconds: float) -> None:
    from pytest_stagegbo.cli.shapes import Baseline

    print_report(Baseline(name=name, containers=list(containers), seconds=round(seconds, 3)))


def _delete(arguments: argparse.Namespace) -> int:
    engine = open_context(arguments).engine()
    engine.baselines.delete(arguments.name)
    engine.close()
    if arguments.json:
        from pytest_stagegbo.cli.shapes import BaselineDeleted

        print_report(BaselineDeleted(deleted=arguments.name))
    else:
        print(f"baseline {arguments.name} is deleted")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import print_table
    from pytest_stagegbo.text import age_text, bytes_text

    engine = open_context(arguments).engine()
    found = engine.baselines.found(sizes=True)
    engine.close()
    rows = _rows(found)
    if arguments.json:
        from pytest_stagegbo.cli.shapes import Baselines, SavedBaseline

        print_report(Baselines(baselines=[SavedBaseline(**row) for row in rows]))
        return 0
    if not rows:
        print("there is no baseline: `stagegbo baseline save NAME` makes one")
        return 0
    columns = ("baseline", "bytes", "age", "containers", "build", "production copied", "state")
    shown = []
    for row in rows:
        age = max(0.0, clocks.now() - datetime.fromisoformat(row["since"]).timestamp()) if row["since"] else None
        shown.append(
            (
                row["name"],
                bytes_text(row["bytes"]),
                "" if age is None else age_text(age),
                ", ".join(row["containers"]),
                ", ".join(row["build"]) or "production's",
                row["production_copied"][:19],
                f"can't be used: {row['reason']}"
                if row["reason"]
                else "of one run of pytest"
                if row["run"]
                else "whole",
            )
        )
    print_table(columns, shown)
    return 0


def _rows(found: Found) -> list[dict[str, Any]]:
    """What is shown of each baseline, whether it can be used or not."""
    rows = []
    for name in sorted(found.folders):
        about = found.whole.get(name)
        rows.append(
            {
                "name": name,
                "bytes": found.sizes.get(name, 0),
                "since": about.since if about else "",
                "by": about.by if about else "",
                "containers": list(about.containers if about else found.folders[name]),
                "build": list(about.build) if about else [],
                "production_copied": about.copied if about else "",
                "run": about.run if about else "",
                "reason": found.broken.get(name, ""),
            }
        )
    return rows
