"""The command `doctor`: it looks at everything that provisioning needs, one by one. It writes nothing."""

from __future__ import annotations

import posixpath
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.text import bytes_text, count_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.facts.facts import Facts

__all__ = ["Finding", "examine"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `doctor` looked at, what it saw, and the remedy."""

    state: str
    """`ok`, `warning` or `failed`."""
    subject: str
    seen: str
    remedy: str = ""


def examine(arguments: argparse.Namespace) -> list[Finding]:
    """Look at everything. If one thing fails, those that depend on it are left out."""
    versions = (
        f"Python {sys.version.split()[0]}, pytest-stagegbo {version('pytest-stagegbo')}, pylxd {version('pylxd')}"
    )
    findings = [Finding("ok", "versions", versions)]
    try:
        context = open_context(arguments)
        findings.append(Finding("ok", "settings", str(context.loaded.file or "defaults and environment")))
        engine = context.engine()
        server = engine.reader.server()
        findings.append(Finding("ok", "daemon", f"Incus {server.version} at {engine.reader.endpoint}"))
        findings.append(_release(server.version))
        own = context.stage.storage.own and not context.slot
        facts = (context.fleet().golden.engine if own else engine).facts()  # the golden copy's sources are production's
    except StageGboError as error:
        findings.append(_failed("connection", error))
        return findings
    findings.append(_networks(context, facts))
    findings.append(_subnet(context, facts))
    findings.append(_filter(engine))
    findings.extend(_production(context, facts))
    findings.extend(_pools(context, facts))
    findings.extend(_left_copies(engine, facts))
    findings.extend(_plan(context, engine))
    findings.extend(_vault(context))
    findings.append(_client(context))
    return findings


def _failed(subject: str, error: StageGboError) -> Finding:
    return Finding("failed", subject, f"{error.message}: {error.seen}" if error.seen else error.message, error.remedy)


def _release(version: str) -> Finding:
    from pytest_stagegbo.incus.dialect import support_level

    found = support_level(version)
    return Finding("ok" if found.tested else "warning", f"Incus {version}", found.text, found.remedy)


def _networks(context: Context, facts: Facts) -> Finding:
    """Say whether the server accepted the staging guide's `features.networks=true`."""
    from pytest_stagegbo.desired.objects import managed_nics

    settings = context.loaded.settings
    project = facts.projects.get(settings.project)
    if project is None:
        seen = "features.networks=true is asked for when the project is made; where it is refused, false"
    elif managed_nics(dict(project.config)):
        seen = f"features.networks=false, access to {settings.network.name} alone: true was refused without OVN"
    else:
        seen = f"features.networks=true, {settings.network.name} as parent of each network device"
    return Finding("ok", f"project {settings.project}", seen)


def _subnet(context: Context, facts: Facts) -> Finding:
    """Say whether anything else uses the stage's subnet. The plan reports it too, unless an earlier error hides it."""
    from pytest_stagegbo.facts.subnets import neighbours, refuse_taken

    network = context.loaded.settings.network
    subject = f"subnet {network.subnet}"
    try:
        parent = context.stage.project if context.slot else ""
        refuse_taken(context.loaded.settings, facts.networks, facts.host, facts.ways, parent=parent)
        count = context.stage.slots.count
        if count != 1:
            context.fleet().refuse_taken(range(2 if count == "auto" else count))
    except StageGboError as error:
        return _failed(subject, error)
    wider = neighbours(context.loaded.settings, facts.host)
    if wider:
        remedy = "what is there can't be reached from this host while the stage is up: set another network.address"
        return Finding("warning", subject, "hides a part of what the host has: " + "; ".join(map(str, wider)), remedy)
    if not facts.host_seen:
        remedy = "on the daemon's host see `ip route show table all`"
        return Finding("warning", subject, "routes and VPNs of the daemon's host can't be seen from here", remedy)
    return Finding("ok", subject, f"none of {len(facts.host)} addresses and routes of the host is in it, but its own")


def _filter(engine: StageEngine) -> Finding:
    """Say whether the host's packet filter lets the stage work."""
    from pytest_stagegbo.facts.host_path import find_drop_here

    drop, seen = find_drop_here(engine.reader, engine.settings)
    if drop is not None:
        text = str(drop) if drop.sure else f"{drop}, unless a rule that can't be read from here lets them through"
        return Finding("failed" if drop.sure else "warning", "packet filter", text, f"let them through: {drop.command}")
    if not seen:
        return Finding("ok", "packet filter", "not looked at: only root on the daemon's host may")
    return Finding("ok", "packet filter", "no rule of the host drops what the stage needs")


def _production(context: Context, facts: Facts) -> Iterator[Finding]:
    settings = context.loaded.settings
    for container in settings.containers.values():
        source = facts.sources.get(container.source_name)
        where = f"{settings.source_project}/{container.source_name}"
        if source is None:
            yield Finding(
                "failed", f"source {where}", "missing", f"set containers.{container.name}.source, or leave it out"
            )
        else:
            yield Finding("ok", f"source {where}", f"{source.status.lower()}, pool {source.pool}")


def _pools(context: Context, facts: Facts) -> Iterator[Finding]:
    from pytest_stagegbo.facts.quotas import HOW_TO_SEE, blindness, burden, relief
    from pytest_stagegbo.facts.quotas import remedy as mend

    for room in facts.rooms.values():
        space = room.tightest(context.loaded.settings)
        if space.margin < 0:
            remedy = "free some space; `stagegbo provision --recreate` gives back what the stage took"
            yield Finding("failed", f"room on pool {room.pool.name}", str(space), remedy)
        if room.quotas is not None and not room.quotas.hold:
            # A pool without any limit yet has no quotas: Incus turns them on with the first one.
            state = "failed" if facts.clones else "warning"
            seen = f"limits do not hold now: {room.quotas}"
            yield Finding(state, f"limits on pool {room.pool.name}", seen, mend(room.pool, room.quotas))
        if text := blindness(room):
            yield Finding("warning", f"limits on pool {room.pool.name}", text, HOW_TO_SEE)
        if text := burden(room.pool, room.quotas, context.stage):
            yield Finding("warning", f"quotas of pool {room.pool.name}", text, relief(room.pool))
        seen = f"{room.pool.driver}, {bytes_text(room.pool.free)} of {bytes_text(room.pool.total)} free"
        if room.host_free is not None:
            seen += f", {bytes_text(room.host_free)} free on the file system below it"
        elif room.is_blind:
            remedy = "watch it on the daemon's host; only root there can have it checked before copies are made"
            yield Finding(
                "warning", f"below pool {room.pool.name}", "a file system that can't be seen from here", remedy
            )
        if room.pool.copy_on_write:
            yield Finding("ok", f"pool {room.pool.name}", seen)
        else:
            remedy = "move production to a btrfs or zfs pool; here every clone is a full copy"
            yield Finding("warning", f"pool {room.pool.name}", f"{seen}; no copy-on-write", remedy)


def _left_copies(engine: StageEngine, facts: Facts) -> Iterator[Finding]:
    """Name snapshots that a daemon left when it was killed while copying to another pool. They may not be this tool's,
    so only the administrator removes them."""
    host = engine.reader.host()
    for name in sorted(facts.production_pools | facts.rooms.keys()):
        left = host.left_copies(engine.reader.pool(name))
        if left and not engine.reader.is_at_work():
            commands = "; ".join(f"btrfs subvolume delete {path} && rmdir {posixpath.dirname(path)}" for path in left)
            seen = f"the daemon ended while it copied to another pool, and left {', '.join(left)}"
            yield Finding("warning", f"left in pool {name}", seen, f"as root on the daemon's host: `{commands}`")


def _plan(context: Context, engine: StageEngine) -> Iterator[Finding]:
    from pytest_stagegbo.facts.reach import how_to_reach

    try:
        own = context.stage.storage.own and not context.slot
        plans = context.fleet().plans(1).values() if own else (engine.plan(),)
    except StageGboError as error:
        yield _failed("stage", error)
        return
    changes = sum(len(plan.changes) for plan in plans)
    if changes:
        found = f"{count_text(changes, 'step')} to do"
        yield Finding(
            "warning", "stage", found, "run `stagegbo provision`; `stagegbo provision --dry-run` shows the steps"
        )
        return
    status = engine.status()
    for container in status.containers:
        state = "ok" if container.is_well else "warning"
        remedy = "" if state == "ok" else f"read `stagegbo logs {container.name}`, then run `stagegbo provision`"
        if container.state == "failed" and not engine.reader.is_here and engine.way.is_direct:
            way = how_to_reach(engine.settings, engine.settings.containers[container.name], engine.reader.endpoint)
            remedy = f"{remedy}; where only this machine can't reach it, {way}"
        yield Finding(state, f"clone {container.name}", f"{container.state} at {container.address}", remedy)


def _vault(context: Context) -> Iterator[Finding]:
    from pytest_stagegbo.services.keys import HOW_TO_GIVE_KEYS, read_keys

    try:
        keys = read_keys(context.loaded.settings.vault)
    except StageGboError as error:
        yield _failed("unseal keys", error)
        return
    if keys is None:
        yield Finding("warning", "unseal keys", "none given: Vault stays sealed", HOW_TO_GIVE_KEYS)
    else:
        yield Finding("ok", "unseal keys", f"{len(keys)} from {keys.source}", "; ".join(keys.warnings))


def _client(context: Context) -> Finding:
    client = shutil.which("incus")
    if client or context.lab is not None:
        return Finding("ok", "incus client", client or "the lab's own")
    return Finding(
        "warning",
        "incus client",
        "not installed",
        "`stagegbo shell NAME` and `stagegbo logs -f NAME` need it (Debian: incus-client)",
    )
