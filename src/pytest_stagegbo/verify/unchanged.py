"""The check `production.unchanged`: provisioning left production as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.facts import inventory
from pytest_stagegbo.verify.finding import Result, Unseen, sight

if TYPE_CHECKING:
    from pytest_stagegbo.verify.context import VerifyContext

__all__ = ["unchanged"]


def unchanged(context: VerifyContext) -> Result:
    """Check that nothing of production changed during provisioning. Later changes are shown, and are not red."""
    text = context.facts.projects[context.settings.project].config.get(inventory.MARK, "")
    record = inventory.read(text)
    if record is None:
        raise Unseen("the last provisioning noted nothing of production: `stagegbo provision --recreate` does")
    now = inventory.take(context.reader, context.settings, context.facts)
    since = inventory.differences(record.things, now)
    seen = f"{len(record.things)} things of production noted at {record.at}"
    if since:
        seen += f"; production changed since, by others (Incus does not keep by whom): {', '.join(since)}"
    bad = tuple(f"changed while the stage was provisioned: {each}" for each in record.changed)
    sources = [f"config {each.source_name}" for each in context.settings.containers.values()]
    return Result(bad, seen, sight(sources, record.things))
