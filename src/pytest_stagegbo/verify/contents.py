"""What the stage's instances are: their configuration, their data, their limits."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.engine.allowlist import unsafe
from pytest_stagegbo.guest import STAMP
from pytest_stagegbo.guest.place import TWIN_DEVICE
from pytest_stagegbo.settings import parse_size
from pytest_stagegbo.text import bytes_text
from pytest_stagegbo.verify.finding import Result, Skipped

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.verify.scene import Scene

__all__ = ["addresses", "filters", "identity", "instances", "kept", "limits", "logs", "wiped"]

KEPT = ("/opt/gbo/data", "/opt/gbo/models")
"""Where General Bots keeps data."""
BEYOND = 16 << 20
"""Bytes past a limit that are asked for."""


def instances(scene: Scene) -> Result:
    """Every instance of the project, whoever made it, has the stage's root disk, its NIC, and no privilege."""
    bad = []
    for name, instance in scene.facts.clones.items():
        bad += [f"{name}: {problem}" for problem in unsafe(instance, scene.settings)]
    ours = len(scene.clones)
    return Result(tuple(bad), f"{len(scene.facts.clones)} instances in the project, {ours} of them this tool's")


def filters(scene: Scene) -> Result:
    """Each clone's NIC may send from its own MAC and its own address only."""
    bad = []
    for name, clone in scene.clones.items():
        eth0 = clone.expanded_devices.get("eth0") or {}
        wanted = {
            "security.mac_filtering": "true",
            "security.ipv4_filtering": "true",
            "ipv4.address": str(scene.settings.containers[name].address),
        }
        bad += [
            f"{name}: {key} is {eth0.get(key)!r}, not {value}"
            for key, value in wanted.items()
            if eth0.get(key) != value
        ]
    return Result(tuple(bad), f"network devices of {len(scene.clones)} clones")


def addresses(scene: Scene) -> Result:
    """The daemon sees on each clone its stage address, its twin's, and no other."""
    bad = []
    for name in scene.running:
        container = scene.settings.containers[name]
        state = scene.reader.document("instances", name, "state", project=scene.settings.project)
        found = {
            (interface, each["address"])
            for interface, seen in (state.get("network") or {}).items()
            for each in seen.get("addresses") or ()
            if each.get("family") == "inet" and each.get("scope") != "local"
        }
        wanted = {("eth0", str(container.address))}
        if scene.settings.network.twins and container.production_address:
            wanted.add((TWIN_DEVICE, str(container.production_address)))
        bad += [f"{name}: {interface} has {address}" for interface, address in sorted(found - wanted)]
        bad += [f"{name}: {interface} lacks {address}" for interface, address in sorted(wanted - found)]
    return Result(tuple(bad), f"addresses of {', '.join(scene.running)}")


def identity(scene: Scene) -> Result:
    """Each clone has a machine id of its own, made for it: production's file would be older than the clone."""
    script = 'cat /etc/machine-id; find /etc/machine-id -newerct "$1" -print; hostname'
    commands = {n: ["sh", "-c", script, "sh", scene.clones[n].created_at] for n in scene.running}
    bad: list[str] = []
    seen: dict[str, str] = {}
    for name, result in scene.in_each(commands).items():
        lines = result.stdout.split()
        if len(lines) != 3:
            bad.append(f"{name}: /etc/machine-id was not made for this clone")
        if lines and lines[0] in seen:
            bad.append(f"{name} and {seen[lines[0]]} have the same machine id")
        seen[lines[0] if lines else ""] = name
        if lines[-1:] != [name]:
            bad.append(f"{name}: its host name is {lines[-1:] and lines[-1]}")
    return Result(tuple(bad), f"machine ids and names of {', '.join(scene.running)}")


def wiped(scene: Scene) -> Result:
    """No file in a wiped folder is older than the end of the wipe; times of change can't be set by programs."""
    folders = {name: scene.settings.containers[name].wipe for name in scene.running}
    return _nothing_old(scene, {name: paths for name, paths in folders.items() if paths}, "emptied")


def logs(scene: Scene) -> Result:
    """No log file is older than the end of the wipe."""
    folders = {name: scene.settings.containers[name].logs for name in scene.running}
    return _nothing_old(scene, {name: paths for name, paths in folders.items() if paths}, "cleared")


def _nothing_old(scene: Scene, folders: dict[str, tuple[str, ...]], verb: str) -> Result:
    if not folders:
        raise Skipped("the settings name no such folder")
    which = "-mindepth 1 ! -type d" if verb == "cleared" else "-mindepth 1"

    def script(paths: tuple[str, ...]) -> list[str]:
        finds = "; ".join(
            f"[ ! -d {path} ] || find {path}/ {which} ! -cnewer {STAMP} -print -quit"
            for path in map(shlex.quote, paths)
        )
        return ["sh", "-c", f"cat {STAMP} || exit 1; echo; {finds}"]

    bad = []
    for name, result in scene.in_each({name: script(paths) for name, paths in folders.items()}).items():
        said, _, old = result.stdout.partition("\n\n")
        lines = set(said.splitlines())
        for path in folders[name]:
            if not lines & {f"{verb} {path}", f"absent {path}"}:
                bad.append(f"{name}: its first boot did not say that {path} was {verb}")
        bad += [f"{name}: {path} is older than the wipe" for path in old.splitlines() if path]
    shown = ", ".join(f"{name} {' '.join(paths)}" for name, paths in folders.items())
    return Result(tuple(bad), f"nothing older than the clone's first boot in {shown}")


def kept(scene: Scene) -> Result:
    """Where nothing is wiped, production's files are there: files of data folders, older than the first boot."""
    names = [name for name in scene.running if not scene.settings.containers[name].wipe]
    if not names:
        raise Skipped("the settings wipe every container")
    found = " ".join(KEPT)
    script = f"ls -d {found} 2>/dev/null | head -n1; find {found} -type f ! -cnewer {STAMP} 2>/dev/null | wc -l"
    bad, counts = [], []
    for name, result in scene.in_each({name: ["sh", "-c", script] for name in names}).items():
        *folder, count = result.stdout.split() or ["0"]
        if not folder:
            bad.append(f"{name}: none of {', '.join(KEPT)} is there")
        elif count == "0":
            bad.append(f"{name}: no file of production is left in {', '.join(KEPT)}")
        counts.append(f"{name} {count}")
    return Result(tuple(bad), f"files from production in {', '.join(KEPT)}: {', '.join(counts)}")


def limits(scene: Scene) -> Result:
    """A file that goes past the limit is refused. It has no name, so that it is gone whatever happens."""
    bad, tried, reported = [], [], []
    for name in scene.running:
        clone, limit = scene.clones[name], scene.settings.containers[name].disk_limit or scene.settings.disk_limit
        size = parse_size(limit)
        used = scene.reader.volume_usage(clone.pool, scene.settings.project, name) or 0
        wanted = size - used + BEYOND
        if _room(scene, clone) < wanted:
            total = _reported(scene, clone)
            reported.append(name)
            if total is None or abs(total - size) > 4096:
                bad.append(f"{name}: the driver reports a limit of {total}, and {limit} is set")
            continue
        script = (
            "f=/var/tmp/.stagegbo-limit.$$; exec 3>$f; rm -f $f; "
            f"LC_ALL=C fallocate -l {wanted} /proc/$$/fd/3 2>&1 && echo ALLOWED"
        )
        said = scene.execute(name, ["sh", "-c", script]).stdout.strip()
        if "ALLOWED" in said:
            bad.append(f"{name}: {bytes_text(wanted)} more could be taken, past its limit of {limit}")
        elif "quota" not in said and "No space left" not in said:
            reported.append(name)
            if _reported(scene, clone) is None:
                bad.append(f"{name}: its limit can't be tried ({said}) and the driver reports none")
        else:
            tried.append(name)
    parts = []
    if tried:
        parts.append(f"refused to write past the limit: {', '.join(tried)}")
    if reported:
        parts.append(f"as the driver reports it, since the pool has too little room to try: {', '.join(reported)}")
    return Result(tuple(bad), "; ".join(parts) or "nothing tried")


def _room(scene: Scene, clone: Instance) -> int:
    """What may be taken of the pool, and of the host below it, should the limit not hold."""
    floor = parse_size(scene.settings.disk_floor)
    pool = scene.reader.pool(clone.pool)
    host = scene.host_free(pool)
    return min(pool.free, pool.free if host is None else host) - floor


def _reported(scene: Scene, clone: Instance) -> int | None:
    path = ("storage-pools", clone.pool, "volumes", "container", clone.name, "state")
    usage = scene.reader.document(*path, project=scene.settings.project).get("usage") or {}
    total = usage.get("total")
    return int(total) if total else None
