"""The commands `exec` and `shell`, which run something in a clone.

The `incus` client has the terminal where it is installed (`incus_client.py`). Without it, `exec` goes through the API
and prints the output at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.incus_client import hand_over, incus_client, need_running, no_client
from pytest_stagegbo.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.stage import StageEngine

__all__ = ["banner", "register", "run_inside", "shell_command"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    execute = commands.add_parser("exec", help="run a command in a clone", usage="%(prog)s [options] NAME -- CMD ...")
    execute.add_argument("name", metavar="NAME")
    execute.add_argument("--user", metavar="NAME", help="run it as this user of the clone (default root)")
    execute.add_argument("--cwd", metavar="DIR", help="run it in this folder of the clone")
    execute.add_argument("--env", metavar="NAME=VALUE", action="append", type=_variable, help="set a variable for it")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD")
    execute.set_defaults(run=_exec)
    shell = commands.add_parser("shell", help="open a root shell in a clone")
    shell.add_argument("name", metavar="NAME")
    shell.set_defaults(run=_shell)


def _variable(text: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*=.*", text, re.DOTALL) or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return text


def _exec(arguments: argparse.Namespace) -> int:
    argv = arguments.argv
    if not argv:
        raise SettingsError(
            "exec: no command to run in the clone",
            remedy="for example `stagegbo exec cache -- systemctl status valkey`",
        )
    context = open_context(arguments)
    engine = context.engine()
    return run_inside(arguments, context, engine, [*_manner(arguments), *argv])


def _manner(arguments: argparse.Namespace) -> list[str]:
    """What changes user, directory and environment, in the clone: the same with the `incus` client and without."""
    user = ["runuser", "-u", arguments.user, "--"] if arguments.user else []
    directory = ["-C", arguments.cwd] if arguments.cwd else []
    variables = arguments.env or []
    return [*user, *(["env", *directory, *variables] if directory or variables else [])]


def _shell(arguments: argparse.Namespace) -> int:
    context = open_context(arguments)
    engine = context.engine()
    label, coloured = context.loaded.settings.project, not os.environ.get("NO_COLOR")
    if sys.stderr.isatty():
        address = context.loaded.settings.containers[arguments.name].address if _known(context, arguments) else ""
        print(banner(label, f"{arguments.name} at {address}", coloured=coloured), file=sys.stderr)
    inside = shell_command(label, arguments.name, coloured=coloured)
    return run_inside(arguments, context, engine, inside, terminal="shell")


def _known(context: Context, arguments: argparse.Namespace) -> bool:
    return arguments.name in context.loaded.settings.containers


def banner(label: str, what: str, *, coloured: bool) -> str:
    """A line that says that what follows is not production."""
    mark = f"\x1b[1;30;43m[{label}]\x1b[0m" if coloured else f"[{label}]"
    return f"{mark} {what}: a clone. Nothing that you do here reaches production."


def shell_command(label: str, name: str, *, coloured: bool) -> list[str]:
    """A root shell whose prompt and title say where it is, by its environment alone: no file of the clone changes.

    A login shell sets its prompt from files of the clone, so bash puts the mark before it when it is about to show it.
    """
    mark = f"\\[\\e[1;30;43m\\][{label}]\\[\\e[0m\\] " if coloured else f"[{label}] "
    plain = f"[{label}] {name}# "
    title = f"printf '\\033]0;[{label}] {name}\\007'; " if coloured else ""
    prompt = f'{title}case $PS1 in *"[{label}]"*) ;; *) PS1="{mark}$PS1" ;; esac'
    script = "command -v bash >/dev/null && PROMPT_COMMAND=$1 exec bash -l; PS1=$2 exec sh"
    return ["sh", "-c", script, "sh", prompt, plain]


def run_inside(
    arguments: argparse.Namespace, context: Context, engine: StageEngine, argv: Sequence[str], *, terminal: str = ""
) -> int:
    """Run a command in the clone that `arguments` name, with the terminal where the `incus` client is there; else its
    exit status.

    Args:
        terminal: The command of this tool that is of no use without a terminal; empty: it is.

    Raises:
        MissingRequirement: it needs the `incus` client, which is not there.
        StageMissing: the clone does not run.
    """
    client, name = incus_client(context, engine), arguments.name
    need_running(engine, name, arguments)
    engine.mark_dirty()
    if client is not None:
        return hand_over(client, context, name, argv)
    if terminal:
        raise no_client(terminal)
    return _through_api(engine, name, argv)


def _through_api(engine: StageEngine, name: str, argv: Sequence[str]) -> int:
    result = engine.execute(name, argv)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.status
