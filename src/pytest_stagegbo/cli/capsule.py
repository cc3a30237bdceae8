"""The command `capsule`: what failed tests left in the containers that they used."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_stagegbo import clocks
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_report
from pytest_stagegbo.cli.remedies import aimed
from pytest_stagegbo.errors import CapsuleMissing, SettingsError
from pytest_stagegbo.settings.duration import parse_duration

if TYPE_CHECKING:
    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.capsules import Capsules
    from pytest_stagegbo.engine.opening import Opening
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plan.capsules import Capsule
    from pytest_stagegbo.progress import Progress

__all__ = ["register"]

TAKES: dict[str, tuple[int, int | None]] = {
    "list": (0, 0),
    "show": (1, 1),
    "open": (1, 1),
    "diff": (1, 1),
    "export": (1, 2),
    "drop": (1, None),
    "prune": (0, 0),
}
"""By action, how many words it takes at least and at most."""
USAGE = (
    "list",
    "show ID",
    "open ID [--start]",
    "diff ID",
    "export ID [FOLDER] [--data]",
    "drop ID...",
    "prune [--older-than AGE]",
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    capsule = commands.add_parser(
        "capsule",
        help="show and open what failed tests left (pytest --stage-capsule=failed)",
        usage="\n       ".join(f"%(prog)s [options] {words}" for words in USAGE),
    )
    capsule.add_argument(
        "action",
        choices=tuple(TAKES),
        help="list: all capsules of the stage and its slots. show: one of them, with report and logs. open: make it a "
        "stage of its own. diff: compare it with a clean stage. export: write it to a folder. drop: delete capsules, "
        "and what they are open as. prune: delete what the settings don't allow any more",
    )
    capsule.add_argument("names", metavar="ID", nargs="*", help="a capsule, or the beginning of its identifier")
    capsule.add_argument(
        "--older-than", metavar="AGE", type=_age, help="of prune: also delete those that are older: 12h, 7d"
    )
    capsule.add_argument("--start", action="store_true", help="of open: start the services, which changes the evidence")
    capsule.add_argument(
        "--data",
        action="store_true",
        help="of export: also the folders of the containers, which hold production's data",
    )
    capsule.add_argument("--json", action="store_true", help="print one JSON object")
    capsule.set_defaults(run=_capsule)


def _age(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is {error}") from None


def _capsule(arguments: argparse.Namespace) -> int:
    action, count = arguments.action, len(arguments.names)
    least, most = TAKES[action]
    if count < least or (most is not None and count > most):
        wanted = {0: "no ID", 1: "one ID", 2: "one ID and a folder", None: "one ID or more"}[most]
        raise SettingsError(f"capsule {action} takes {wanted}", remedy="`stagegbo capsule list` shows the capsules")
    for option, of in (("older_than", "prune"), ("start", "open"), ("data", "export")):
        if getattr(arguments, option) and action != of:
            name = option.replace("_", "-")
            raise SettingsError(f"capsule {action} takes no --{name}", remedy=f"--{name} is an option of capsule {of}")
    run = {
        "list": _list,
        "show": _show,
        "open": _open,
        "diff": _diff,
        "export": _export,
        "drop": _drop,
        "prune": _prune,
    }[action]
    return run(arguments)


def _stages(context: Context) -> list[StageEngine]:
    """The stage, and each of its slots that is there; with `--slot` that one alone."""
    if context.slot:
        return [context.engine()]
    fleet = context.fleet()
    return [context.engine(), *(fleet.engine(number) for number in fleet.members() if number > 0)]


def _find(context: Context, word: str) -> tuple[Capsules, Capsule]:
    """The capsule that an identifier means, with those of its stage. Raises `CapsuleMissing`."""
    from pytest_stagegbo.engine.capsules import Capsules
    from pytest_stagegbo.plan.capsules import chosen

    stages = [Capsules(engine) for engine in _stages(context)]
    found = {each.key: (of, each) for of in stages for each in of.found()}
    return found[chosen([capsule for _, capsule in found.values()], word).key]


def _list(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.capsule_shapes import Capsules, KeptCapsule
    from pytest_stagegbo.cli.console import print_table
    from pytest_stagegbo.engine import capsules
    from pytest_stagegbo.text import age_text, bytes_text

    found = [each for engine in _stages(open_context(arguments)) for each in capsules.Capsules(engine).found()]
    if arguments.json:
        print_report(Capsules(capsules=[KeptCapsule(**_fields(each)) for each in found]))
        return 0
    if not found:
        print("there is no capsule: `pytest --stage-capsule=failed` keeps one of each failed test")
        return 0
    columns = ("capsule", "age", "at most", "slot", "containers", "test")
    rows = []
    for each in found:
        about = each.about
        age = age_text(max(0.0, clocks.now() - about.moment))
        kept = ", ".join(f"{name} (lost)" if name in each.lost else name for name in about.containers)
        rows.append((each.key, age, bytes_text(about.size), str(about.slot), kept, about.test))
    print_table(columns, rows)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.capsule_shapes import Capsule
    from pytest_stagegbo.text import bytes_text, printable

    capsules, capsule = _find(open_context(arguments), arguments.names[0])
    report, logs = capsules.text(capsule, "report"), capsules.text(capsule, "logs")
    if arguments.json:
        print_report(Capsule(**_fields(capsule), report=report, logs=logs))
        return 0
    about = capsule.about
    rows = [
        ("capsule", about.key),
        ("test", about.test + (f" ({about.phase})" if about.phase else "")),
        ("moment", f"{datetime.fromisoformat(about.since).astimezone():%Y-%m-%d %H:%M:%S %z}, by {about.by}"),
        ("containers", ", ".join(f"{name} {bytes_text(size)}" for name, size in about.sizes.items())),
        ("lost", ", ".join(capsule.lost)),
        ("left out", "; ".join(f"{name}: {why}" for name, why in about.left_out.items())),
        ("slot", str(about.slot)),
        ("build", ", ".join(about.build) or "production's"),
        ("production copied", about.copied[:19]),
        ("markers", ", ".join(about.marks)),
        ("random seed", about.seed),
    ]
    for name, text in rows:
        if text:
            print(f"{name + ':':<19}{printable(text)}")
    for title, text in (("report", report), ("logs", logs)):
        if text:
            print(f"\n--- {title} ---\n{printable(text)}")
    return 0


def _open(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.capsule_shapes import CapsuleOpened
    from pytest_stagegbo.cli.console import console_progress

    context, began = open_context(arguments), clocks.monotonic()
    with console_progress(quiet=arguments.quiet) as progress:
        engine = _opened(context, arguments.names[0], progress)
        if arguments.start:
            engine.provision()
    project, seconds = engine.settings.project, clocks.monotonic() - began
    if arguments.json:
        print_report(CapsuleOpened(project=project, started=arguments.start, seconds=round(seconds, 3)))
        return 0
    state = "its services answer" if arguments.start else "its services wait (--start starts them)"
    print(f"open as stage {project} after {seconds:.2f} s; {state}")
    first = next(iter(engine.settings.containers))
    there = argparse.Namespace(**{**vars(arguments), "project": project, "slot": None})
    for command in (f"`stagegbo shell {first}`", "`stagegbo destroy`"):
        print("  " + aimed(command, there).strip("`"))
    return 0


def _opening(context: Context, progress: Progress | None = None) -> Opening:
    from pytest_stagegbo.engine.opening import Opening
    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.progress import Silent

    return Opening(context.stage, Connection(context.stage.incus), progress or Silent())


def _opened(context: Context, word: str, progress: Progress) -> StageEngine:
    capsules, capsule = _find(context, word)
    return _opening(context, progress).open(capsules.engine, capsules.whole(capsule.key))


def _diff(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.capsule_shapes import CapsuleDiff, Difference
    from pytest_stagegbo.cli.console import console_progress
    from pytest_stagegbo.cli.shapes import shaped
    from pytest_stagegbo.engine.capsule_diff import diff
    from pytest_stagegbo.text import printable_name

    context = open_context(arguments)
    capsules, capsule = _find(context, arguments.names[0])
    with console_progress(quiet=arguments.quiet) as progress:
        found = diff(_opening(context, progress), capsules.engine, capsules.whole(capsule.key))
    if arguments.json:
        print_report(CapsuleDiff(id=capsule.key, differences=[shaped(Difference, each) for each in found]))
    else:
        print("\n".join(printable_name(str(each)) for each in found) or "nothing differs from a clean stage")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.capsule_shapes import CapsuleExported
    from pytest_stagegbo.cli.console import console_progress, print_loudly
    from pytest_stagegbo.engine.capsule_files import write_data, write_texts

    context = open_context(arguments)
    capsules, capsule = _find(context, arguments.names[0])
    folder = Path(arguments.names[1] if arguments.names[1:] else f"capsule-{capsule.key}")
    texts = {name: capsules.text(capsule, name) for name in ("report", "logs")}
    write_texts(folder, _fields(capsule), texts)
    if arguments.data:
        with console_progress(quiet=arguments.quiet) as progress:
            write_data(folder, _opened(context, capsule.key, progress), capsule)
        print_loudly(f"{folder} holds production's data, with its secrets", beside=arguments.json)
    if arguments.json:
        print_report(CapsuleExported(folder=str(folder), data=arguments.data))
    else:
        print(f"capsule {capsule.key} is in {folder}")
    return 0


def _drop(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.capsule_shapes import CapsulesDropped

    context = open_context(arguments)
    found, missing = {}, []
    for word in arguments.names:
        try:
            capsules, capsule = _find(context, word)
            found[capsule.key] = capsules
        except CapsuleMissing as error:
            missing.append(error)
    opening = _opening(context)
    for key, capsules in found.items():
        opening.close_all(capsules.engine.reader, key)  # first: whoever is killed here can still name the capsule
        capsules.drop([key])
    if arguments.json:
        print_report(CapsulesDropped(dropped=list(found)))
    else:
        for key in found:
            print(f"capsule {key} is deleted")
    if missing:
        raise missing[0]
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.capsule_shapes import CapsulesDropped
    from pytest_stagegbo.engine.capsules import Capsules

    context = open_context(arguments)
    gone: list[str] = []
    left: list[str] = []
    stages = _stages(context)
    for engine in stages:
        capsules = Capsules(engine)
        gone += capsules.prune(age=arguments.older_than)
        left += [each.key for each in capsules.found()]
    if not context.slot:  # else capsules of other slots are not known
        _opening(context).close_left(stages[0].reader, left)
    if arguments.json:
        print_report(CapsulesDropped(dropped=gone))
    else:
        print("\n".join(f"capsule {key} is deleted" for key in gone) or "no capsule had to go")
    return 0


def _fields(capsule: Capsule) -> dict[str, Any]:
    """What programs read about a capsule: see `capsule_shapes.KeptCapsule`."""
    about = capsule.about
    return {
        "id": about.key,
        "test": about.test,
        "phase": about.phase,
        "since": about.since,
        "by": about.by,
        "containers": list(about.containers),
        "bytes": about.size,
        "lost": list(capsule.lost),
        "left_out": about.left_out,
        "slot": about.slot,
        "build": list(about.build),
        "production_copied": about.copied,
        "markers": list(about.marks),
        "seed": about.seed,
    }
