"""Writes annotations and a job summary about the stage in pipelines of GitHub, Gitea and Forgejo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.plugin.changes import changed
from pytest_stagegbo.plugin.running import is_of_stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.session.summary import Summary

__all__ = ["annotation", "in_pipeline", "job_summary", "pipeline_lines"]

VARIABLES = ("GITHUB_ACTIONS", "FORGEJO_ACTIONS", "GITEA_ACTIONS")
PIPE = "\\|"
"""A `|` in a cell of a table."""
LONGEST_REASON = 2000
"""Characters of why a test failed."""
ANNOTATES_TESTS = ("pytest-github-actions-annotate-failures", "pytest_github_actions_annotate_failures")
"""A plugin that annotates every failed test, whatever it uses."""


def in_pipeline(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether pytest runs in a pipeline whose runner turns printed lines into annotations."""
    return any(environ.get(name) == "true" for name in VARIABLES)


def annotation(kind: str, title: str, text: str, file: str = "", line: int = 0) -> str:
    """Return a line that the runner turns into an annotation. `kind` is `error` or `warning`."""
    place = f"file={_property(file)},line={line}," if file else ""
    return f"::{kind} {place}title={_property(title)}::{_data(text)}"


def pipeline_lines(reporter: pytest.TerminalReporter, summary: Summary) -> list[str]:
    """Return annotations for failed tests that used the stage, for broken isolation, and for other trouble."""
    found = []
    if not any(reporter.config.pluginmanager.has_plugin(name) for name in ANNOTATES_TESTS):
        for report in failed(reporter):
            text = "\n".join(part for part in (_reason(report), changed(report)) if part)
            found.append(annotation("error", report.nodeid, text, *_place(report)))
    found += [annotation("error", "stage-gbo: isolation", text) for text in summary.broken]
    return [*found, *(annotation("warning", "stage-gbo", text) for text in summary.trouble)]


def failed(reporter: pytest.TerminalReporter) -> list[pytest.TestReport]:
    """Reports of failed tests that used the stage."""
    reports = [*reporter.stats.get("failed", ()), *reporter.stats.get("error", ())]
    return [
        each
        for each in reports
        if isinstance(each, pytest.TestReport) and any(is_of_stage(title) for title, _ in each.sections)
    ]


def job_summary(lines: Sequence[str], reporter: pytest.TerminalReporter, summary: Summary) -> None:
    """Append to the job's summary, if the runner has one."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    text = "### stage-gbo\n\n" + "".join(f"- {line}\n" for line in lines)
    for title, entries in (("Isolation is broken", summary.broken), ("Trouble", summary.trouble)):
        text += f"\n**{title}**\n\n" + "".join(f"- {entry}\n" for entry in entries) if entries else ""
    reports = failed(reporter)
    if reports:
        text += "\n| failed test | | changed |\n| --- | --- | --- |\n"
        text += "".join(
            f"| `{each.nodeid.replace('|', PIPE)}` | {_cell(_reason(each))} | {_cell(changed(each), '<br>')} |\n"
            for each in reports
        )
    with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def _place(report: pytest.TestReport) -> tuple[str, int]:
    """Return file and line of the failure if it is in the test's own file, and those of the test otherwise."""
    path, line, _ = report.location
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None and str(crash.path).endswith(path):
        return path, int(crash.lineno)
    return path, (line or 0) + 1


def _reason(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr)
    from pytest_stagegbo.services.masking import Masker

    return Masker().mask(text[: 2 * LONGEST_REASON])[:LONGEST_REASON]  # a secret that is cut can't be found


def _cell(text: str, joint: str = "") -> str:
    """The first line, or all of them with something in between."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [_plain(line) for line in (lines if joint else lines[:1])]
    return joint.join(lines)


def _plain(text: str) -> str:
    """Text of others in a cell of a table: a table of the database may be named like a tag."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", PIPE)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
