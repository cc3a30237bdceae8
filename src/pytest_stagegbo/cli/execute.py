"""Commands that go into a clone: `exec`, `shell`, `logs`.

A terminal is the business of the `incus` client, which this hands over to where there is one: with the stage's
project named, and a configuration folder of its own, so that the client's current project and remotes are neither
used nor changed, and a daemon on another host is known to it by the same certificates as to this package. Without the
client, `exec` and `logs` go through the API and print what was said at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.remedies import aimed
from pytest_stagegbo.errors import MissingRequirement, SettingsError, StageMissing
from pytest_stagegbo.facts.bridge import REMEDY, find_fault
from pytest_stagegbo.settings.duration import parse_duration
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.settings import IncusSettings

__all__ = ["banner", "register", "run_inside", "shell_command"]


LOG_BYTES = 4 << 20
"""Bytes that are read of each log."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    execute = commands.add_parser("exec", help="run a command in a clone", usage="%(prog)s [options] NAME -- CMD ...")
    execute.add_argument("name", metavar="NAME")
    execute.add_argument("--user", metavar="NAME", help="run it as this user of the clone (default root)")
    execute.add_argument("--cwd", metavar="DIR", help="run it in this directory of the clone")
    execute.add_argument("--env", metavar="NAME=VALUE", action="append", type=_variable, help="set a variable for it")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD")
    execute.set_defaults(run=_exec)
    shell = commands.add_parser("shell", help="a root shell in a clone")
    shell.add_argument("name", metavar="NAME")
    shell.set_defaults(run=_shell)
    logs = commands.add_parser("logs", help="the journal of clones' units, and their log files")
    logs.add_argument("names", metavar="NAME", nargs="+")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines are written")
    logs.add_argument("-n", "--lines", type=_lines, default=100, metavar="N", help="lines of each log (default 100)")
    logs.add_argument("--since", type=_since, metavar="WHEN", help="10m, 2h, 2026-01-31T12:00: only lines from then on")
    logs.add_argument("--grep", type=_pattern, metavar="REGEX", help="only lines that match")
    logs.set_defaults(run=_logs)


def _lines(text: str) -> int:
    """How many lines; raises what argparse makes a usage error of."""
    if not re.fullmatch("[0-9]{1,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 999999")
    return int(text)


def _since(text: str) -> float:
    """Epoch seconds."""
    with contextlib.suppress(ValueError):
        return time.time() - parse_duration(text)
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a length of time (10m, 2h) nor a time") from None


def _variable(text: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*=.*", text, re.DOTALL) or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return text


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def _exec(arguments: argparse.Namespace) -> int:
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise SettingsError("exec: no command to run in the clone", remedy="exec NAME -- COMMAND [ARGUMENT ...]")
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
    client, name = _client(context, engine), arguments.name
    _running(engine, name, arguments)
    engine.mark_dirty()
    if client is not None:
        return _hand_over(client, context, name, argv)
    if terminal:
        raise _no_client(terminal)
    return _through_api(engine, name, argv)


def _logs(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.guest.logs import Wanted, fetch_script, parse, show, token

    names = tuple(dict.fromkeys(arguments.names))
    if arguments.follow and (len(names) > 1 or arguments.since is not None or arguments.grep):
        raise SettingsError(
            "logs -f follows all lines of one clone", remedy="logs -f NAME, in a terminal for each; `| grep` chooses"
        )
    context = open_context(arguments)
    engine = context.engine()
    for name in names:
        _running(engine, name, arguments)
    if arguments.follow:
        return _follow(context, engine, names[0], arguments.lines)
    wanted = Wanted(
        arguments.lines, arguments.since, arguments.grep, units=not (arguments.since or arguments.grep), size=LOG_BYTES
    )
    for name in names:
        head = token()
        script = fetch_script(context.loaded.settings.containers[name], head, wanted)
        result = engine.execute(name, ["sh", "-c", script])
        text = printable(show(parse(result.stdout, head, wanted)))
        if text:
            print("\n".join(f"{name} | {line}" for line in text.split("\n")) if len(names) > 1 else text)
        sys.stderr.write(printable(result.stderr))
    return 0


def _follow(context: Context, engine: StageEngine, name: str, lines: int) -> int:
    from pytest_stagegbo.guest.logs import follow_command

    client = _client(context, engine)
    if client is None:
        raise _no_client("logs -f")
    return _hand_over(client, context, name, follow_command(context.loaded.settings.containers[name], lines))


def _running(engine: StageEngine, name: str, arguments: argparse.Namespace) -> None:
    clone = engine.clone(name)
    if not clone.is_running:
        raise StageMissing(f"{name} is {clone.status.lower()}", remedy="run `stagegbo provision`")
    fault = find_fault(engine.reader, engine.settings, [clone])
    if fault:  # what runs in the clone may still be looked at
        print(aimed(f"{fault}; {REMEDY}", arguments), file=sys.stderr)


def _through_api(engine: StageEngine, name: str, argv: Sequence[str]) -> int:
    result = engine.execute(name, argv)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.status


def _client(context: Context, engine: StageEngine) -> list[str] | None:
    """How to call the `incus` client; None where there is none."""
    if context.lab is not None and engine.reader.is_local:
        return context.lab.exec_argv(["incus"])
    found = shutil.which("incus")
    return [found] if found else None


def _hand_over(client: Sequence[str], context: Context, name: str, argv: Sequence[str]) -> int:
    """Become the client. Returns only when that fails."""
    environment = dict(os.environ)
    remote = "local"
    reader = context.engine().reader
    if not reader.is_local:
        remote = "stage"
        environment["INCUS_CONF"] = _client_settings(context.loaded.settings.incus, remote)
    elif context.lab is None:
        environment["INCUS_SOCKET"] = reader.endpoint
        environment["INCUS_CONF"] = tempfile.mkdtemp(prefix="stagegbo-")
    environment.pop("INCUS_REMOTE", None)
    environment.pop("INCUS_PROJECT", None)
    command = [*client, "exec", "--project", context.loaded.settings.project, f"{remote}:{name}", "--", *argv]
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)


def _client_settings(incus: IncusSettings, remote: str) -> str:
    """A configuration folder for the `incus` client, in which a daemon on another host has the name `remote`."""
    folder = Path(tempfile.mkdtemp(prefix="stagegbo-"))
    entry = {"addr": incus.endpoint, "protocol": "incus", "auth_type": "tls", "public": False}
    (folder / "config.yml").write_text(json.dumps({"default-remote": remote, "remotes": {remote: entry}}))
    (folder / "servercerts").mkdir()
    links = {
        "client.crt": incus.client_cert,
        "client.key": incus.client_key,
        f"servercerts/{remote}.crt": incus.server_cert,
    }
    for name, path in links.items():
        if path:
            (folder / name).symlink_to(Path(path).absolute())
    return str(folder)


def _no_client(what: str) -> MissingRequirement:
    return MissingRequirement(
        f"`{what}` needs the incus client, for its terminal",
        seen="no `incus` in the path",
        remedy="install it (Debian: apt-get install incus-client), or use `exec NAME -- CMD`",
    )
