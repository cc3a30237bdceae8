"""The command `report`: one page of the sessions that were recorded, on one or several runners."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.output import print_report
from pytest_stagegbo.text import count_text

if TYPE_CHECKING:
    import argparse

__all__ = ["register"]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser(
        "report", help="join what sessions of pytest have recorded (--stage-report) to one page"
    )
    report.add_argument("folders", metavar="DIR", nargs="+", help="a folder with records, in it or below it")
    report.add_argument("-o", "--output", metavar="FILE", help="the page; default: stage-report.html in the first DIR")
    report.add_argument("--json", action="store_true", help="print one JSON object")
    report.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from pytest_stagegbo.cli.capsule_shapes import SessionReport
    from pytest_stagegbo.session_report.page import write_report

    folders = [Path(name) for name in arguments.folders]
    page = Path(arguments.output) if arguments.output else folders[0] / "stage-report.html"
    timeline = write_report(page, folders)
    if arguments.json:
        print_report(SessionReport(page=str(page), sessions=len(timeline.runs), tests=len(timeline.cases)))
    else:
        sessions, tests = count_text(len(timeline.runs), "session"), count_text(len(timeline.cases), "test")
        print(f"{page}: {sessions}, {tests}")
    return 0
