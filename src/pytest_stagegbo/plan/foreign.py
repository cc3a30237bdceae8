"""Finds things that others made inside the stage, and that its removal would remove. It reads, and never writes."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from msgspec import Struct

from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.exposure import read_forward
from pytest_stagegbo.errors import NotOurs
from pytest_stagegbo.plan.steps import RemoveClone

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_stagegbo.incus import Instance, Network, Project, Reader
    from pytest_stagegbo.plan.steps import Step
    from pytest_stagegbo.settings import Settings

__all__ = ["Foreign", "forwards", "in_clones", "in_project", "on_bridge", "refuse", "refuse_to_lose", "uses_acl"]

KINDS = {
    "instances": ("instance", "delete --force"),
    "images": ("image", "image delete"),
    "profiles": ("profile", "profile delete"),
    "networks": ("network", "network delete"),
    "network-acls": ("access list", "network acl delete"),
    "network-zones": ("network zone", "network zone delete"),
    "network-address-sets": ("address set", "network address-set delete"),
    "volumes": ("volume", "storage volume delete"),
    "buckets": ("bucket", "storage bucket delete"),
}
"""Kinds of objects by their name in the API's paths: what people call one, and the `incus` client's words."""


class Foreign(Struct, frozen=True, order=True):
    """Something that this tool did not make."""

    text: str
    command: str
    """Removes it, or takes it out of the way."""


def refuse(found: Iterable[Foreign], what: str, then: str) -> None:
    """Raise `NotOurs` when something was found.

    Args:
        what: What can't be done because of it.
        then: What to run once it is gone.
    """
    each = sorted(set(found))
    if each:
        raise NotOurs(
            f"{what}: pytest-stagegbo did not make {', '.join(one.text for one in each)}",
            seen="nothing was removed",
            remedy="\n".join(
                ["move what you need elsewhere, and remove it yourself:", *(f"  {one.command}" for one in each), then]
            ),
        )


def refuse_to_lose(reader: Reader, settings: Settings, steps: Iterable[Step]) -> None:
    """Raise `NotOurs` when one of the steps would remove a clone that somebody took snapshots of."""
    removed = [step.subject for step in steps if isinstance(step, RemoveClone)]
    refuse(in_clones(reader, settings, removed), f"{', '.join(removed)} can't be replaced", "then run this again")


def in_project(project: Project, settings: Settings, clones: Mapping[str, Instance]) -> list[Foreign]:
    """Return everything in the stage's project but its clones and its default profile.

    Args:
        clones: All instances of the project, by name.
    """
    found = []
    for url in project.used_by:
        kind, names = _parts(url)
        name = names[-1]
        own_clone = kind == "instances" and name in clones and marks.is_clone(clones[name], settings)
        if not own_clone and not (kind == "profiles" and name == "default"):
            found.append(_of_url(url, settings.project))
    return found


def in_clones(reader: Reader, settings: Settings, names: Iterable[str]) -> list[Foreign]:
    """Return snapshots and backups of clones that others made. They would be deleted with the clones."""
    project, found = settings.project, []
    for name in names:
        for snapshot in sorted(reader.snapshots(project, name) - {marks.SNAPSHOT}):
            command = _command("snapshot", "delete", name, snapshot, project=project)
            found.append(Foreign(f"snapshot {name}/{snapshot}", command))
        for backup in reader.documents("instances", name, "backups", project=project):
            own_name = str(backup["name"]).rpartition("/")[2]
            url = f"/1.0/instances/{name}/backups/{own_name}?project={project}"
            found.append(Foreign(f"backup {name}/{own_name}", f"incus query -X DELETE {shlex.quote(url)}"))
    return found


def on_bridge(
    reader: Reader, network: Network, settings: Settings, *, in_stage: bool = False, is_ours: bool = True
) -> list[Foreign]:
    """Return what is on the stage's bridge and not in the stage's project. Incus's own list is not complete: it lacks
    instances that name the bridge as the parent of their device.

    Args:
        in_stage: Also what is in the stage's project, but for the clones and the default profile.
        is_ours: Whether the project of that name is the stage's. All that is in somebody else's is foreign.
    """
    found = []
    for instance in reader.instances_of_all_projects():
        own_project = is_ours and instance.project == settings.project
        if own_project and (not in_stage or marks.is_clone(instance, settings)):
            continue
        for device, config in instance.expanded_devices.items():
            if config.get("type") == "nic" and network.name in {config.get("network"), config.get("parent")}:
                verb = "remove" if device in instance.devices else "override"
                words = ["config", "device", verb, instance.name, device]
                command = _command(*words, *(["type=none"] if verb == "override" else []), project=instance.project)
                found.append(
                    Foreign(f"instance {instance.name} of project {instance.project} on {network.name}", command)
                )
    own = ("profiles", ["default"]) if in_stage else None
    others = [
        url
        for url in network.used_by
        if _parts(url)[0] != "instances"
        and (not is_ours or _project_of(url) != settings.project or (in_stage and _parts(url) != own))
    ]
    return found + [_of_url(url, "") for url in others]


def uses_acl(acl: Mapping[str, object], settings: Settings, *, is_ours: bool = True) -> list[Foreign]:
    """Return what uses the stage's access list beside its bridge. `is_ours` is that of `on_bridge`."""
    used_by = acl.get("used_by")
    urls = [str(url) for url in used_by] if isinstance(used_by, list) else []
    own = ("networks", [settings.network.name])
    others = [url for url in urls if _parts(url) != own and not (is_ours and _project_of(url) == settings.project)]
    found = (_of_url(url, "") for url in others)
    return [Foreign(f"{each.text}, which uses {acl['name']}", each.command) for each in found]


def forwards(reader: Reader, settings: Settings) -> tuple[list[str], list[Foreign]]:
    """Return the listen addresses of the bridge's forwards that this tool made, and the forwards that it did not
    make."""
    own, found = [], []
    for each in reader.forwards(settings.network.name):
        listen = str(each["listen_address"])
        if read_forward(each) is not None:
            own.append(listen)
        else:
            command = _command("network", "forward", "delete", settings.network.name, listen)
            found.append(Foreign(f"forward {listen} of {settings.network.name}", command))
    return own, found


def _parts(url: str) -> tuple[str, list[str]]:
    """Return the kind and the names of an object: `/1.0/storage-pools/pool/volumes/custom/x` is `volumes`, `[pool,
    x]`."""
    parts = [unquote(part) for part in urlsplit(url).path.split("/") if part][1:]
    if parts[0] == "storage-pools" and len(parts) > 3:
        return parts[2], [parts[1], *parts[3:]][:: 2 if parts[2] == "volumes" else 1]
    return parts[0], parts[1:]


def _project_of(url: str) -> str:
    return parse_qs(urlsplit(url).query).get("project", ["default"])[0]


def _of_url(url: str, inside: str) -> Foreign:
    """Return the foreign object that a URL of the daemon names.

    Args:
        inside: The project that people know it is in; any other is said.
    """
    kind, names = _parts(url)
    project = _project_of(url)
    where = "" if project == inside else f" of project {project}"
    if kind not in KINDS:
        return Foreign(url, f"incus query -X DELETE {shlex.quote(url)}")
    text, words = KINDS[kind]
    return Foreign(f"{text} {'/'.join(names)}{where}", _command(*words.split(), *names, project=project))


def _command(*words: str, project: str = "default") -> str:
    return shlex.join(["incus", *words, *([] if project == "default" else ["--project", project])])
