"""The commands `status`, `endpoints` and `doctor`, which change nothing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.output import print_report, print_variables
from pytest_stagegbo.cli.remedies import aimed
from pytest_stagegbo.cli.sight import look, parts, shape_of

if TYPE_CHECKING:
    import argparse

__all__ = ["register"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = commands.add_parser(
        "status", help="show each clone's state, address, port and age, and who uses the stage"
    )
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--wide", action="store_true", help="also show answers, disk use, and what changed in production")
    status.add_argument(
        "--watch",
        action="store_true",
        help="keep looking until Ctrl-C: drawn again on a terminal, elsewhere (and with --json) a line for each change",
    )
    status.set_defaults(run=_status)
    endpoints = commands.add_parser("endpoints", help="show addresses and ports of the services, without credentials")
    form = endpoints.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--env", action="store_true", help="print lines for a shell: NAME=value")
    endpoints.set_defaults(run=_endpoints)
    doctor = commands.add_parser("doctor", help="check what provisioning needs, and name a remedy for each fault")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)


def _status(arguments: argparse.Namespace) -> int:
    context = open_context(arguments)
    if arguments.watch:
        from pytest_stagegbo.cli.watch import watch

        return watch(context, arguments)
    sight = look(context, whole=arguments.json or arguments.wide)
    if arguments.json:
        print_report(shape_of(sight))
    else:
        from pytest_stagegbo.cli.console import print_parts

        print_parts(parts(sight, context, arguments))
    return 0 if sight.status.ready else 1


def _endpoints(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.settings.addresses import endpoints

    context = open_context(arguments)
    settings = context.loaded.settings
    found = endpoints(settings)
    if arguments.json:
        from pytest_stagegbo.cli.shapes import Endpoint, Endpoints, shaped

        print_report(Endpoints(endpoints=[shaped(Endpoint, each) for each in found]))
    elif arguments.env:
        print_variables(found)
    else:
        from pytest_stagegbo.cli.console import print_table

        rows = [(e.container, e.protocol, e.host, str(e.port), e.url) for e in found]
        print_table(("container", "protocol", "host", "port", "url"), rows)
    if settings.project not in context.engine().reader.projects():
        text = f"there is no stage {settings.project}, so nothing answers there: `stagegbo provision` makes it"
        print(aimed(text, arguments), file=sys.stderr)
        return 1
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.doctor import examine

    findings = examine(arguments)
    if arguments.json:
        from pytest_stagegbo.cli.shapes import Doctor, Examined, shaped

        print_report(Doctor(findings=[shaped(Examined, each) for each in findings]))
    else:
        from pytest_stagegbo.cli.console import print_table

        rows = [
            (finding.state, finding.subject, finding.seen, aimed(finding.remedy, arguments)) for finding in findings
        ]
        print_table(("", "what", "seen", "what to do"), rows)
    return 1 if any(finding.state == "failed" for finding in findings) else 0
