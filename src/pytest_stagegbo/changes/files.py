"""What is in the folders that resets empty, and was not left there by the service's own start: objects and files.

An S3 server keeps each object as a file, or as a folder with a file `xl.meta` (MinIO), below a folder for each bucket.
So one listing of its folder tells of all buckets without a request to the server, which would count as a use of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.changes.records import ContainerChanges, FileChange, ObjectChange
from pytest_stagegbo.resets.drive import OWN
from pytest_stagegbo.resets.listing import NOTES, inspect_script, parse_inspection
from pytest_stagegbo.resets.target import MOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_stagegbo.resets.listing import Inspection
    from pytest_stagegbo.resets.target import ResetTarget

__all__ = ["AT_BASELINE", "baseline_test", "file_changes", "object_changes", "read_files"]

SECONDS = 5.0
AT_BASELINE = "it was brought to a baseline, which its content can't be told from"
_BASELINE = "baseline"
"""Printed instead of an inspection."""
NAMED = 5
"""Objects of one bucket that are named."""
METADATA = "xl.meta"
"""What MinIO keeps of an object, in a folder of the object's name."""


def baseline_test(name: str) -> str:
    """POSIX shell that fails unless the last reset has left the service's processes alone to be seen: it went to a
    baseline."""
    return f"[ -e {NOTES}/{name}.pids ] && [ ! -e {NOTES}/{name} ]"


def read_files(target: ResetTarget) -> ContainerChanges:
    """Raises ValueError and `StageGboError`: the folders can't be looked at."""
    folders = target.container.wipe
    script = f"if {baseline_test(target.name)}; then echo {_BASELINE}; exit; fi\nexec 2>/dev/null\n"
    _, output = target.run(f"{script}{inspect_script(target.name, folders)}", SECONDS)
    if output.startswith(_BASELINE.encode()):
        return ContainerChanges(target.name, unknown=AT_BASELINE)
    inspection = parse_inspection(output, MOST)
    if target.probe.protocol != "s3":
        return ContainerChanges(
            target.name, files=tuple(file_changes(folders, inspection)), complete=inspection.complete
        )
    objects, others = object_changes(folders, inspection)
    return ContainerChanges(target.name, objects=objects, files=others, complete=inspection.complete)


def _kept(note: str) -> Mapping[str, Sequence[Any]]:
    """By path, what the service put there at its start: place and kind, and of files size and time of change."""
    try:
        found = json.loads(note) if note else {}
    except ValueError:
        return {}
    kept = found.get("kept", {}) if isinstance(found, dict) else {}
    return kept if isinstance(kept, dict) else {}


def file_changes(folders: Sequence[str], inspection: Inspection) -> Iterator[FileChange]:
    """Files that are not as the service's start left them. Folders are none."""
    kept = dict(_kept(inspection.note))
    roots = {f"{folder}/" for folder in folders}
    for entry in sorted(inspection.entries, key=lambda each: each.path):
        before = kept.pop(entry.path, None)
        if entry.kind == "d" or entry.path in roots:
            continue
        if before is None:
            yield FileChange(entry.path, "added")
        elif len(before) > 2 and list(before[2:4]) != [str(entry.size), entry.changed]:
            yield FileChange(entry.path, "changed")
    if inspection.complete:
        yield from (FileChange(path, "removed") for path, before in kept.items() if before[1] != "d")


def object_changes(
    folders: Sequence[str], inspection: Inspection
) -> tuple[tuple[ObjectChange, ...], tuple[FileChange, ...]]:
    """Objects by bucket, and files that belong to no bucket. A clean server has no bucket at all."""
    buckets: dict[str, list[str]] = {}
    others: list[FileChange] = []
    for folder in folders:
        begin = f"{folder}/"
        within = [(each, each.path.removeprefix(begin)) for each in inspection.entries if each.path.startswith(begin)]
        within = [(entry, path) for entry, path in within if path]
        own = {path.rpartition("/")[0] for entry, path in within if path.endswith(f"/{METADATA}")}
        for entry, path in sorted(within, key=lambda each: each[1]):
            bucket, _, key = path.partition("/")
            if bucket == OWN:
                continue
            if entry.kind == "d" and not key:
                buckets.setdefault(bucket, [])
            elif not key:
                others.append(FileChange(entry.path, "added"))
            elif path in own or (entry.kind != "d" and not _is_within(path, own)):
                buckets.setdefault(bucket, []).append(key)
    return tuple(
        ObjectChange(name, len(keys), tuple(keys[:NAMED]), inspection.complete) for name, keys in buckets.items()
    ), tuple(others)


def _is_within(path: str, folders: set[str]) -> bool:
    """Whether a path is below one of some folders: a part of an object, not one itself."""
    while path := path.rpartition("/")[0]:
        if path in folders:
            return True
    return False
