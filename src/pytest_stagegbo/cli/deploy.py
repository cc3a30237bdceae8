"""The command `deploy`: it runs a user's own build in the stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_report
from pytest_stagegbo.errors import SettingsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pytest_stagegbo.cli.shapes import File
    from pytest_stagegbo.plan.builds import Build, BuildStep

__all__ = ["deployed_files", "register"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    deploy = commands.add_parser(
        "deploy",
        help="run your own build in a clone, in place of production's files",
        usage="%(prog)s [options] NAME ARTEFACT=FILE ...\n       %(prog)s [options] --undo NAME\n"
        "       %(prog)s [options] --list",
    )
    deploy.add_argument("name", metavar="NAME", nargs="?", help="the container, such as `system`")
    deploy.add_argument(
        "files",
        metavar="ARTEFACT=FILE",
        nargs="*",
        help="a file of this host, and where it goes: a name of containers.NAME.deploy (`botserver`, `botui`), or a "
        "path in the container",
    )
    form = deploy.add_mutually_exclusive_group()
    form.add_argument("--list", action="store_true", help="print which files in the clones are not production's")
    form.add_argument("--undo", action="store_true", help="go back to production's files and data")
    deploy.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
    deploy.add_argument("--json", action="store_true", help="print one JSON object")
    deploy.set_defaults(run=_deploy)


def _deploy(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import console_progress

    files = _files(arguments.files)
    if arguments.list:
        if arguments.name or arguments.dry_run:
            raise SettingsError("--list takes no container and no --dry-run", remedy="stagegbo deploy --list")
        return _list(arguments)
    if not arguments.name or bool(files) == arguments.undo:
        raise SettingsError(
            "deploy needs a container, and files or --undo",
            remedy="stagegbo deploy system botserver=target/release/botserver",
        )
    context = open_context(arguments)
    name = arguments.name
    if arguments.dry_run:
        deployments = context.engine().deployments
        _print_plan(deployments.plan_undo(name) if arguments.undo else deployments.plan(name, files), arguments)
        return 0
    began = clocks.monotonic()
    with console_progress(quiet=arguments.quiet) as progress:
        engine = context.engine(progress)
        steps = engine.deployments.undo(name) if arguments.undo else engine.deployments.deploy(name, files)
        engine.close()
    seconds = clocks.monotonic() - began
    builds = engine.deployments.builds()
    if arguments.json:
        from pytest_stagegbo.cli.shapes import Deploy

        keys, files_now = [step.key for step in steps], deployed_files(builds)
        print_report(Deploy(changed=bool(steps), steps=keys, seconds=round(seconds, 3), builds=files_now))
    elif not steps:
        print(f"{name} runs production's files" if arguments.undo else f"{name} runs that build: nothing to change")
    elif arguments.undo:
        print(f"{name} runs production's files, and answers, after {seconds:.2f} s")
    else:
        print(f"{name} runs {', '.join(files)}, and answers, after {seconds:.2f} s")
    return 0


def _files(words: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not (name and equals and file):
            raise SettingsError(
                f"{word!r} does not say which file goes where", remedy="write it as botserver=target/release/botserver"
            )
        if name in found:
            raise SettingsError(f"{name} is named twice", remedy="give one file for each artefact")
        found[name] = Path(file).expanduser()
    return found


def _print_plan(steps: Sequence[BuildStep], arguments: argparse.Namespace) -> None:
    if arguments.json:
        from pytest_stagegbo.cli.shapes import DeployPlan, DeployStep

        print_report(DeployPlan(steps=[DeployStep(key=each.key, text=each.text) for each in steps]))
        return
    if not steps:
        print("nothing to change")
    for number, step in enumerate(steps, 1):
        print(f"{number:3}. {step.text}")


def _list(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import print_table

    builds = open_context(arguments).engine().deployments.builds()
    if arguments.json:
        from pytest_stagegbo.cli.shapes import Builds

        print_report(Builds(builds=deployed_files(builds)))
        return 0
    rows = [
        (name, each.name, each.path, each.sha256[:12], each.since, each.by, build.state)
        for name, build in builds.items()
        for each in build.artefacts
    ]
    if rows:
        print_table(("container", "artefact", "path", "SHA-256", "since", "by", "state"), rows)
    else:
        print("all containers run production's files")
    return 0


def deployed_files(builds: dict[str, Build]) -> list[File]:
    """Return what `--json` says of each file in the clones that is not production's."""
    from pytest_stagegbo.cli.shapes import File

    return [
        File(
            container=name,
            artefact=each.name,
            path=each.path,
            sha256=each.sha256,
            size=each.size,
            since=each.since,
            by=each.by,
            source=each.source,
            state=build.state,
        )
        for name, build in builds.items()
        for each in build.artefacts
    ]
