"""What production has, noted before and after provisioning, as short digests.

Kept in the stage's own project (`user.stagegbo.production`): whoever may use the daemon finds it there, from any host,
and it goes with the stage. A digest says that a thing changed, and nothing of what is in it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pytest_stagegbo import clocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.settings import Settings

__all__ = ["MARK", "Record", "differences", "read", "take", "text"]

MARK = "user.stagegbo.production"
DIGITS = 10
"""Hexadecimal ones of a digest: enough to see a change by, and few, since the whole is one value of a project."""


class Record(Struct, frozen=True):
    """What provisioning noted."""

    at: str
    """When it ended, ISO 8601, UTC."""
    things: Mapping[str, str]
    """Digests by `kind name`, at the end."""
    changed: tuple[str, ...]
    """What differed from the beginning."""


def take(reader: Reader, settings: Settings, facts: Facts) -> dict[str, str]:
    """Production as the facts have it, and what they leave out: profiles, volumes and snapshots as they are now."""
    found: dict[str, str] = {}
    project = settings.source_project
    for name, each in facts.production_instances.items():
        config = {key: value for key, value in each.config.items() if not key.startswith("volatile.")}
        found[f"config {name}"] = _digest([config, list(each.profiles), each.created_at])
        found[f"devices {name}"] = _digest(each.devices)
    for profile in reader.documents("profiles", project=project):
        found[f"profile {profile['name']}"] = _digest([profile.get("config"), profile.get("devices")])
    for name in facts.production_networks & facts.networks.keys():
        found[f"network {name}"] = _digest(facts.networks[name].config)
    for pool in {each.pool for each in facts.production_instances.values() if each.pool}:
        for volume in reader.documents("storage-pools", pool, "volumes", project=project):
            kind = "snapshot" if "/" in volume["name"] else "volume"
            config = {k: v for k, v in (volume.get("config") or {}).items() if not k.startswith("volatile.")}
            found[f"{kind} {volume['type']}/{volume['name']}"] = _digest(config)
    found[f"project {project}"] = _digest(dict(facts.projects[project].config))
    return found


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What is new, gone or different. Pure."""
    found = [f"{name} is gone" for name in sorted(before.keys() - after.keys())]
    found += [f"{name} is new" for name in sorted(after.keys() - before.keys())]
    return found + [f"{name} changed" for name in sorted(before.keys() & after.keys()) if before[name] != after[name]]


def text(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The value of `MARK`."""
    at = clocks.utc_text("%Y-%m-%dT%H:%M:%S+00:00")
    return json.dumps({"at": at, "things": dict(after), "changed": differences(before, after)}, separators=(",", ":"))


def read(value: str) -> Record | None:
    """The record in a value of `MARK`; None: there is none that can be read."""
    try:
        entry = json.loads(value)
        return Record(str(entry["at"]), dict(entry["things"]), tuple(entry["changed"]))
    except (ValueError, KeyError, TypeError):
        return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]
