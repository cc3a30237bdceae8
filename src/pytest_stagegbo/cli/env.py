"""The command `env`: it prints variables with which programs find the stage's services, in several formats."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_hint, print_report
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.text import did_you_mean

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.stage.environment import Variable

__all__ = ["FORMATS", "chosen", "masked", "register", "write_private"]

HIDDEN = "***"
_PASSWORD = re.compile(r"(://[^/@:]*:)[^/@]+@")
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")
"""Values that every reader takes as they are."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    env = commands.add_parser(
        "env",
        help="print variables for programs that use the stage: addresses and credentials",
        description="Print variables with which programs find the stage's services. Credentials are shown as ***, "
        "unless --secrets asks for them.",
    )
    env.add_argument("names", metavar="NAME", nargs="*", help="only these variables, or those about these containers")
    env.add_argument("--export", action="store_true", help="begin each line with `export` (sh and dotenv)")
    env.add_argument(
        "--format", choices=[*FORMATS, "json"], default="sh", help="the program that reads them (default sh)"
    )
    env.add_argument("--secrets", action="store_true", help="show credentials; only on a terminal or in a file")
    env.add_argument(
        "-o", "--output", metavar="FILE", help="write to this file, which only its owner may read (mode 0600)"
    )
    env.set_defaults(run=_env)


def _env(arguments: argparse.Namespace) -> int:
    if arguments.export and arguments.format not in {"sh", "dotenv"}:
        raise SettingsError(f"env: --export means nothing in the format {arguments.format}", remedy="leave it out")
    if arguments.secrets and not arguments.output:
        _refuse_pipe()
    from pytest_stagegbo.stage import Stage
    from pytest_stagegbo.stage.environment import by_container

    context = open_context(arguments)
    engine = context.engine()
    if not engine.way.is_direct:
        from pytest_stagegbo.forward.published import published

        engine.way.borrow(published(engine.lock().folder))
    stage = Stage(engine)
    found = chosen(by_container(stage, stage.credentials, None), arguments.names, stage.settings)
    shown = found if arguments.secrets else {name: masked(name, value) for name, value in found.items()}
    hidden = [name for name in found if shown[name] != found[name]]
    if arguments.format == "json" and not arguments.output:
        print_report(shown)
    else:
        text = _text(shown, arguments.format, export=arguments.export)
        if arguments.output:
            write_private(Path(arguments.output), text)
        else:
            sys.stdout.write(text)
    if hidden:
        count = "1 credential is" if len(hidden) == 1 else f"{len(hidden)} credentials are"
        print_hint(f"{count} masked ({', '.join(hidden)}); --secrets shows them", arguments)
    return 0


def chosen(variables: Iterable[Variable], names: Sequence[str], settings: Settings) -> dict[str, str]:
    """Return the variables with these names, and those about containers with these names. Without names, return all.

    Raises:
        SettingsError: there is neither such a variable nor such a container.
    """
    every = list(variables)
    known = {name for _, name, _ in every} | set(settings.containers)
    if unknown := [name for name in names if name not in known]:
        raise SettingsError(
            f"env: no variable and no container {', '.join(unknown)}{did_you_mean(unknown, known)}",
            seen="containers: " + ", ".join(settings.containers),
            remedy="`stagegbo env` shows all variables; one without credentials is left out",
        )
    return {name: value for container, name, value in every if not names or {container, name} & set(names)}


def masked(name: str, value: str) -> str:
    """Return a variable's value with its secret masked. In a URL with a password, only the password is masked."""
    from pytest_stagegbo.credentials.secret import Hidden

    if not isinstance(value, Hidden):
        return value
    return _PASSWORD.sub(rf"\1{HIDDEN}@", value) if name.endswith("_URL") else HIDDEN


def _sh(value: str) -> str:
    return shlex.quote(value)


def _dotenv(value: str) -> str:
    """Quote a value for dotenv libraries: in single quotes if nothing in it has a special meaning there."""
    if _PLAIN.fullmatch(value):
        return value
    if not re.search(r"['\n\r]|\\$", value):
        return f"'{value}'"
    return '"' + re.sub(r'(["\\$`])', r"\\\1", value).replace("\n", "\\n").replace("\r", "\\r") + '"'


def _docker(value: str) -> str:
    """Return a value as Docker reads it: the rest of the line, quotes included."""
    if "\n" in value or "\r" in value:
        raise SettingsError(
            "env: a value has several lines, which docker's --env-file can't have",
            remedy="name the variables to write, or use another --format",
        )
    return value


def _systemd(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else '"' + re.sub(r'(["\\$`])', r"\\\1", value) + '"'


FORMATS: Mapping[str, Callable[[str], str]] = {"sh": _sh, "dotenv": _dotenv, "docker": _docker, "systemd": _systemd}
"""How each reader wants values quoted. A value of letters, digits and `_@%+=:,./-` is the same in all of them."""


def _text(variables: Mapping[str, str], form: str, *, export: bool) -> str:
    if form == "json":
        import json

        return json.dumps(variables, indent=2, ensure_ascii=False) + "\n"
    prefix, quote = "export " if export else "", FORMATS[form]
    return "".join(f"{prefix}{name}={quote(value)}\n" for name, value in variables.items())


def _refuse_pipe() -> None:
    """Raise an error unless standard output is a terminal, or a file that can be made private.

    A pipe may end in a log that many people read. A file that the shell has just made for us gets the mode that -o
    gives; one that has something in it is somebody's log.
    """
    problem = ""
    try:
        found = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):  # a test's own standard output
        found = None
    if found is None or stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode):
        problem = "standard output is a pipe, which may end in a log"
    elif stat.S_ISREG(found.st_mode):
        if found.st_size == 0:
            with contextlib.suppress(OSError):
                os.fchmod(sys.stdout.fileno(), 0o600)
                found = os.fstat(sys.stdout.fileno())
        if found.st_mode & 0o077:
            problem = "others may read the file that standard output goes to"
    if problem:
        raise SettingsError(
            "env: --secrets writes credentials to a terminal or to a private file only",
            seen=problem,
            remedy="`stagegbo env --secrets -o FILE`; `stagegbo run -- COMMAND` gives them to a command without a file",
        )


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600, as a whole or not at all. If the path is a link, its target is written.

    Raises:
        SettingsError: there is something else than a file.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise SettingsError(f"env: {path} is not a file", remedy="name a file, or leave -o out")
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
