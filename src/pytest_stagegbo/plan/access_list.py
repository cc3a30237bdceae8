"""Builds the stage's access list: the rules of its isolation, and those for ports that are exposed now. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired import objects
from pytest_stagegbo.desired.exposure import ingress_rule

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pytest_stagegbo.desired.exposure import Exposure
    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.settings import Settings

__all__ = ["access_list"]


def access_list(
    facts: Facts, settings: Settings, exposed: Iterable[Exposure] | None = None, *, parent: str = ""
) -> dict[str, Any]:
    """Return the stage's access list in the form of Incus's API. Pure, but for the clock.

    Args:
        exposed: The exposures to let through; None: those of the facts that are open.
        parent: The stage that this one is a slot or the golden copy of.
    """
    acl = objects.acl(settings, facts.kept_out(settings), parent)
    open_now = [each for each in facts.exposed if each.state == "open"] if exposed is None else exposed
    kept_out = ",".join(map(str, facts.production_sources(settings)))
    rules = []
    for rule in map(ingress_rule, open_now):
        rules += [{**rule, "action": "reject", "source": kept_out}, rule]
    return {**acl, "ingress": [*acl["ingress"], *rules]}
