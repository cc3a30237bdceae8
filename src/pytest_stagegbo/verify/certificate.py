"""Runs all checks on one stage, and collects what they found in a certificate."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import IsolationBroken, NotOurs, SettingsError, StageGboError, StageMissing
from pytest_stagegbo.facts.bridge import REMEDY
from pytest_stagegbo.progress import task
from pytest_stagegbo.verify.context import VerifyContext
from pytest_stagegbo.verify.event_monitor import no_production_events
from pytest_stagegbo.verify.finding import Check, Finding, Skipped, Unseen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.verify.event_monitor import EventMonitor

__all__ = ["AT_REST", "Certificate", "chosen", "listen", "verify"]

AT_REST = (
    "exposure.devices",
    "exposure.networks",
    "exposure.host-rules",
    "locked.project",
    "locked.instances",
    "locked.filters",
    "production.unchanged",
)
"""What can be tried of clones that are stopped, as those of a golden copy are: nothing in them dials or is read, and
their bridge has no ports, so that whoever is on it reaches nothing."""

OF_THE_BRIDGE = ("reach.", "exposure.", "locked.project")
"""Lines that are red, whatever they are about, while the stage's bridge is gone."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What all checks of one stage found."""

    project: str
    findings: tuple[Finding, ...]

    @property
    def red(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.state == "red")

    @property
    def holds(self) -> bool:
        """Whether no line is red. A skipped line is not red, and says why it was skipped."""
        return not self.red

    def check(self) -> None:
        """Raise `IsolationBroken` with every red line, if there is one."""
        if self.red:
            raise IsolationBroken(
                f"stage {self.project} is not isolated: " + ", ".join(finding.id for finding in self.red),
                seen="\n".join(f"{finding.id}: {line}" for finding in self.red for line in finding.evidence),
                remedy="; ".join(dict.fromkeys(finding.remedy for finding in self.red)),
            )


def chosen(names: Sequence[str] | None) -> Sequence[Check] | None:
    """Return the checks with these ids. Without ids, return None, which means all checks.

    Raises:
        SettingsError: there is no such check.
    """
    from pytest_stagegbo.verify.table import CHECKS

    known = {check.id: check for check in CHECKS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise SettingsError.unknown("no check", unknown, known)
    return [known[name] for name in dict.fromkeys(names)] if names else None


def listen(engine: StageEngine) -> EventMonitor:
    """Listen to what happens to production from now on, for a later `verify`. Close it in the end.

    Raises:
        StageGboError: there is no stage to send a sentinel to, or the daemon lets nobody listen.
    """
    try:
        with engine.freezer.none():
            return _context(engine, None).listen()
    except Unseen as why:
        raise StageMissing(str(why), remedy="run `stagegbo provision`") from None


def verify(
    engine: StageEngine, checks: Sequence[Check] | None = None, *, monitor: EventMonitor | None = None
) -> Certificate:
    """Run the checks, one after the other. Changes nothing: connections are tried and closed, files are removed.

    Args:
        checks: Instead of all.
        monitor: What has been heard of production so far. None: it is listened to while the checks run.

    Raises:
        StageMissing: there is no stage.
        NotOurs: the project is not this tool's.
        StageGboError: the daemon does not answer.
    """
    from pytest_stagegbo.verify.table import CHECKS

    wanted = CHECKS if checks is None else checks
    with engine.freezer.none(), _listening(context := _context(engine, monitor), wanted):
        findings = []
        for check in wanted:
            with task(engine.progress, f"verify:{check.id}", check.title):
                findings.append(run(check, context))
    return Certificate(engine.settings.project, tuple(findings))


@contextlib.contextmanager
def _listening(context: VerifyContext, checks: Sequence[Check]) -> Iterator[None]:
    """Listen during the block if a check needs events and nobody listens yet. Errors are reported by the check."""
    if context.monitor is not None or not any(check.look is no_production_events for check in checks):
        yield
        return
    with contextlib.suppress(Unseen, StageGboError):
        context.monitor = context.listen()
    try:
        yield
    finally:
        if context.monitor is not None:
            context.monitor.close()


def _context(engine: StageEngine, monitor: EventMonitor | None) -> VerifyContext:
    facts = engine.facts()
    project = facts.projects.get(engine.settings.project)
    if project is None:
        raise StageMissing(f"there is no stage {engine.settings.project} to verify", remedy="run `stagegbo provision`")
    if not marks.is_ours(project.config):
        raise NotOurs(f"project {project.name} was not made by pytest-stagegbo, so nothing is tried in it")
    return VerifyContext(engine.settings, facts, engine.reader, engine.writer(facts), monitor)


def run(check: Check, context: VerifyContext) -> Finding:
    """Run one check, and return its line of the certificate."""

    def red(*evidence: str) -> Finding:
        if check.id.startswith(OF_THE_BRIDGE) and context.bridge_fault:
            return Finding(check.id, check.title, "red", (context.bridge_fault, *evidence), check.means, REMEDY)
        return Finding(check.id, check.title, "red", evidence, check.means, check.remedy)

    try:
        result = check.look(context)
    except Skipped as why:
        return Finding(check.id, check.title, "skipped", (str(why),))
    except Unseen as why:
        return red(f"nothing was looked at: {why}")
    except StageGboError as error:
        text = f"{error.message}: {error.seen}" if error.seen else error.message
        return red(f"could not be checked: {text}")
    if result.bad or result.unseen:
        return red(*result.bad, *result.unseen, result.seen)
    return Finding(check.id, check.title, "green", (result.seen,))
