"""Commands that go into a clone: `exec`, `shell`, `logs`.

A terminal is the business of the `incus` client, which this hands over to where there is one: with the stage's
project named, and a configuration folder of its own, so that the client's current project and remotes are neither
used nor changed, and a daemon on another host is known to it by the same certificates as to this package. Without the
client, `exec` and `logs` go through the API and print what was said at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.errors import MissingRequirement, SettingsError, StageMissing
from pytest_stagegbo.incus.channel import MARK
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.settings import IncusSettings

__all__ = ["register"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    execute = commands.add_parser("exec", help="run a command in a clone", usage="%(prog)s [options] NAME -- CMD ...")
    execute.add_argument("name", metavar="NAME")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD")
    execute.set_defaults(run=_exec)
    shell = commands.add_parser("shell", help="a root shell in a clone")
    shell.add_argument("name", metavar="NAME")
    shell.set_defaults(run=_shell)
    logs = commands.add_parser("logs", help="the journal of a clone's units, and its log files")
    logs.add_argument("name", metavar="NAME")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines are written")
    logs.add_argument("-n", "--lines", type=_lines, default=100, metavar="N", help="lines of each log (default 100)")
    logs.set_defaults(run=_logs)


def _lines(text: str) -> int:
    """How many lines; raises what argparse makes a usage error of."""
    if not re.fullmatch("[0-9]{1,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 999999")
    return int(text)


def _exec(arguments: argparse.Namespace) -> int:
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise SettingsError("exec: no command to run in the clone", remedy="exec NAME -- COMMAND [ARGUMENT ...]")
    context = open_context(arguments)
    engine = context.engine()
    client = _client(context, engine)
    _running(engine, arguments.name)
    engine.soil()
    if client is None:
        return _through_api(engine, arguments.name, argv)
    return _hand_over(client, context, arguments.name, argv)


def _shell(arguments: argparse.Namespace) -> int:
    context = open_context(arguments)
    engine = context.engine()
    client = _client(context, engine)
    _running(engine, arguments.name)
    engine.soil()
    if client is None:
        raise _no_client("shell")
    return _hand_over(
        client, context, arguments.name, ["sh", "-c", "command -v bash >/dev/null && exec bash -l; exec sh"]
    )


def _logs(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.engine.journal import follow_script, script

    context = open_context(arguments)
    engine = context.engine()
    container = context.loaded.settings.containers.get(arguments.name)
    _running(engine, arguments.name)
    assert container is not None  # the line above refuses unknown names
    if not arguments.follow:
        result = engine.execute(arguments.name, ["sh", "-c", script(container, arguments.lines)])
        sys.stdout.write(printable(result.stdout))
        sys.stderr.write(printable(result.stderr))
        return result.status
    client = _client(context, engine)
    if client is None:
        raise _no_client("logs -f")
    following = shlex.quote(follow_script(container, arguments.lines))
    marked = f"{MARK}=1 exec sh -c {following}"  # a reset lets it be
    return _hand_over(client, context, arguments.name, ["sh", "-c", marked])


def _running(engine: StageEngine, name: str) -> None:
    clone = engine.clone(name)
    if not clone.is_running:
        raise StageMissing(f"{name} is {clone.status.lower()}", remedy="run `python -m pytest_stagegbo provision`")


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
