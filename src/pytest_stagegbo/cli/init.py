"""The command `init`: it looks at production and writes `stagegbo.toml`. Of production, it only reads."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import SettingsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.discovery.pools import PoolAdvice
    from pytest_stagegbo.discovery.proposal import Proposal
    from pytest_stagegbo.discovery.records import Survey
    from pytest_stagegbo.discovery.roles import Assigned, Question

__all__ = ["register"]

FILE = "stagegbo.toml"
KEPT = (
    *("incus.endpoint", "incus.client_cert", "incus.client_key", "incus.server_cert"),
    *("vault.unseal_file", "vault.unseal_env", "vault.unseal_command", "vault.token_env", "vault.token_file"),
)
"""Settings that production can't tell."""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    init = commands.add_parser("init", help="look at production, and write the settings that fit it to stagegbo.toml")
    init.add_argument("-o", "--output", metavar="FILE", default=FILE, help=f"file to write (default: {FILE})")
    init.add_argument("--yes", action="store_true", help="ask nothing: what can't be known gets its default")
    init.add_argument("--force", action="store_true", help="replace a file that exists")
    init.add_argument("--dry-run", action="store_true", help="print the file, and write nothing")
    init.add_argument("--vault-keys", metavar="FILE", help="file with Vault's unseal keys (vault.unseal_file)")
    init.add_argument("--json", action="store_true", help="print one JSON object")
    init.set_defaults(run=_init)


def _init(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.console import need_answer
    from pytest_stagegbo.cli.context import open_context

    asks = not (arguments.yes or arguments.dry_run)
    if asks:
        need_answer("init")
    file = Path(arguments.output).expanduser().absolute()
    if not arguments.dry_run:
        _refuse_existing(file, may_replace=arguments.force or asks)
    context = open_context(arguments)
    survey = _survey(context)
    proposal, answers = _conclude(context, arguments, survey, asks=asks and not arguments.json)
    text, advice = _document(survey, proposal)
    if arguments.dry_run:
        if arguments.json:
            _print_json(file, text, proposal, advice, answers)
        else:
            print(text, end="")
        return 0
    if not arguments.json:
        _show(proposal, text)
    if asks and not _may_write(file, force=arguments.force):
        print("nothing was written", file=sys.stderr)
        return 1
    write_whole(file, text)
    return _doctor(arguments, file, text, proposal, advice, answers)


def _refuse_existing(file: Path, *, may_replace: bool) -> None:
    """Raise before anything is looked at that takes time."""
    from pytest_stagegbo.settings.sources import locate

    if file.exists():
        if not may_replace:
            raise SettingsError(
                f"{file} exists, and is not replaced without being asked",
                remedy="--force replaces it; --output FILE writes another; --dry-run prints it",
            )
    elif file.name == FILE and file.parent.is_dir():
        found = locate(None, file.parent, {})
        if found is not None and found.parent == file.parent.resolve():
            raise SettingsError(
                f"{found} has settings already, and a folder has one file of them",
                remedy="take [tool.stagegbo] out of it, or name another file: --output FILE",
            )
    if not file.parent.is_dir():
        raise SettingsError(f"there is no folder {file.parent}", remedy="make it, or name another file: --output FILE")


def _survey(context: Context) -> Survey:
    from pytest_stagegbo.discovery.survey import survey
    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.incus.connection import Connection

    return survey(Reader(Connection(context.loaded.settings.incus)))


def _conclude(
    context: Context, arguments: argparse.Namespace, survey: Survey, *, asks: bool
) -> tuple[Proposal, dict[str, str]]:
    """Conclude, and ask until there is no question left."""
    from pytest_stagegbo.discovery.proposal import Asked, propose
    from pytest_stagegbo.discovery.roles import Question

    more = dict(_given(context))
    answers: dict[str, str] = {}
    while True:
        asked = Asked(arguments.source_project or "", arguments.project or "", arguments.network or "", more)
        proposal = propose(survey, asked, answers)
        left = [each for each in proposal.questions if each.key not in answers]
        if not asks or not left:
            break
        answers[left[0].key] = _answer(left[0])
    if asks and any(each.name == "vault" for each in proposal.roles.assigned) and not _has_keys(context):
        keys = _answer(Question("unseal", "file with Vault's unseal keys (empty: Vault stays sealed)", ""))
        if keys:
            path = keys if keys.startswith(("/", "~")) else str(Path(keys).absolute())
            more["vault.unseal_file"] = (path, "you named it")
            proposal = propose(survey, Asked(asked.source_project, asked.project, asked.bridge, more), answers)
    return proposal, answers


def _given(context: Context) -> Iterator[tuple[str, tuple[Any, str]]]:
    """What the command line or an earlier file says of the connection and of Vault's keys. What the environment says
    holds for the next command, too."""
    for key in KEPT:
        origin = context.loaded.origins.get(key, "default")
        if origin != "default" and not origin.startswith(("$", "--lab")):
            table, _, name = key.partition(".")
            value = getattr(getattr(context.loaded.settings, table), name)
            yield key, (list(value) if isinstance(value, tuple) else value, f"{origin} says so")


def _has_keys(context: Context) -> bool:
    vault = context.loaded.settings.vault
    return bool(vault.unseal_file or vault.unseal_env or vault.unseal_command)


def _answer(question: Question) -> str:
    """Ask on standard error until the answer is one of the choices; nothing, or the end of input, is the default."""
    while True:
        choices = f" ({'/'.join(question.choices)})" if question.choices else ""
        print(f"{question.text}{choices} [{question.default}] ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        answer = line.strip() or question.default
        if not line or not question.choices or answer in question.choices:
            return answer


def _document(survey: Survey, proposal: Proposal) -> tuple[str, PoolAdvice | None]:
    from pytest_stagegbo.discovery.document import document
    from pytest_stagegbo.discovery.pools import advise

    advice = advise(survey, proposal)
    return document(proposal, advice), advice


def _show(proposal: Proposal, text: str) -> None:
    from pytest_stagegbo.cli.console import print_table

    rows = [_row(each) for each in proposal.roles.assigned]
    rows += [("-", source.name, "", "", reason, "") for source, reason in proposal.roles.left_out]
    print_table(("clone", "of", "address", "answers", "because", "sure"), rows)
    print(f"\n{text}")


def _row(each: Assigned) -> tuple[str, ...]:
    services = [f"{one.protocol} {one.port}{' tls' if one.tls else ''}" for one in each.source.services]
    found = ", ".join(services) or "not seen"
    return (
        each.name,
        each.source.name,
        ", ".join(str(one.ip) for one in each.source.addresses),
        found,
        each.why,
        each.sure,
    )


def _may_write(file: Path, *, force: bool) -> bool:
    from pytest_stagegbo.cli.console import ask

    return ask(f"replace {file}?" if file.exists() and not force else f"write {file}?")


def write_whole(file: Path, text: str) -> None:
    """Write a file under another name, then give it its own: it is there as a whole or not at all. Who may read it
    stays as it was."""
    file = file.resolve()  # a link stays one
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if file.exists():  # `vault.unseal_command` may be a secret
            partial.touch(mode=0o600)
            partial.chmod(stat.S_IMODE(file.stat().st_mode))
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _doctor(
    arguments: argparse.Namespace,
    file: Path,
    text: str,
    proposal: Proposal,
    advice: PoolAdvice | None,
    answers: dict[str, str],
) -> int:
    import dataclasses

    from pytest_stagegbo.cli.console import print_table
    from pytest_stagegbo.cli.doctor import examine
    from pytest_stagegbo.cli.remedies import aimed
    from pytest_stagegbo.settings.sources import CONFIG_VARIABLE

    is_nearest = file == Path.cwd() / FILE and CONFIG_VARIABLE not in os.environ
    arguments.config = None if is_nearest else str(file)
    for name in ("source_project", "project", "network", "endpoint", "vault_keys"):
        setattr(arguments, name, None)  # the file has them
    findings = examine(arguments)
    if arguments.json:
        found = [dataclasses.asdict(finding) for finding in findings]
        _print_json(file, text, proposal, advice, answers, written=True, doctor=found)
    else:
        print(f"wrote {file}\n")
        rows = [(each.state, each.subject, each.seen, aimed(each.remedy, arguments)) for each in findings]
        print_table(("", "what", "seen", "what to do"), rows)
    return 1 if any(finding.state == "failed" for finding in findings) else 0


def _print_json(
    file: Path,
    text: str,
    proposal: Proposal,
    advice: PoolAdvice | None,
    answers: dict[str, str],
    **more: Any,
) -> None:
    from msgspec import to_builtins

    from pytest_stagegbo.cli.init_shapes import Init
    from pytest_stagegbo.cli.output import print_report
    from pytest_stagegbo.cli.shapes import shaped

    containers = [
        {
            "name": each.name,
            "source": each.source.name,
            "why": each.why,
            "sure": each.sure,
            "looked_at": each.source.sight,
            "addresses": [str(one) for one in each.source.addresses],
            "services": [
                {"protocol": one.protocol, "port": one.port, "tls": one.tls, "program": one.program, "unit": one.unit}
                for one in each.source.services
            ],
        }
        for each in proposal.roles.assigned
    ]
    found = {
        "file": str(file),
        "written": False,
        "text": text,
        "source_project": proposal.source_project,
        "containers": containers,
        "left_out": [{"name": source.name, "reason": reason} for source, reason in proposal.roles.left_out],
        "settings": to_builtins(proposal.conclusions),
        "questions": [{**to_builtins(each), "answer": answers.get(each.key)} for each in proposal.questions],
        "doubts": list(proposal.doubts),
        "own_pool": None if advice is None else advice.command,
        "doctor": None,
    }
    print_report(shaped(Init, {**found, **more}))
