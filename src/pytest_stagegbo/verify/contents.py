"""Checks of the stage's instances: their configuration, their data and their identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired.allowlist import violations
from pytest_stagegbo.guest import STAMP, SYSTEM_LOGS
from pytest_stagegbo.guest.place import TWIN_DEVICE
from pytest_stagegbo.guest.removal import ASIDE
from pytest_stagegbo.verify.finding import Result, Sight, Skipped, sight

if TYPE_CHECKING:
    from pytest_stagegbo.verify.context import VerifyContext

__all__ = ["addresses", "filters", "identity", "instances", "kept", "logs", "wiped"]

KEPT = ("/opt/gbo/data", "/opt/gbo/models")
"""Where General Bots keeps data."""


def instances(context: VerifyContext) -> Result:
    """Check that every instance of the project has the stage's root disk, its NIC, no other device and no privilege."""
    bad = []
    for name, instance in context.facts.clones.items():
        bad += [f"{name}: {problem}" for problem in violations(instance, context.settings)]
    seen = f"{len(context.facts.clones)} instances in the project, {len(context.clones)} of them this tool's"
    return Result(tuple(bad), seen, sight(context.names, context.clones), context.idle)


def filters(context: VerifyContext) -> Result:
    """Check that each clone's NIC may send from its own MAC and its own address only."""
    bad = []
    for name, clone in context.clones.items():
        eth0 = clone.expanded_devices.get("eth0") or {}
        wanted = {
            "security.mac_filtering": "true",
            "security.ipv4_filtering": "true",
            "ipv4.address": str(context.settings.containers[name].address),
        }
        bad += [
            f"{name}: {key} is {eth0.get(key)!r}, not {value}"
            for key, value in wanted.items()
            if eth0.get(key) != value
        ]
    seen = f"network devices of {len(context.clones)} clones"
    return Result(tuple(bad), seen, sight(context.names, context.clones), context.idle)


def addresses(context: VerifyContext) -> Result:
    """Check that each clone has its stage address, its twin address and no other, and no IPv6 address beyond its
    link."""
    bad, looked = [], []
    for name in context.running:
        container = context.settings.containers[name]
        state = context.reader.document("instances", name, "state", project=context.settings.project)
        found = {
            (interface, each["address"])
            for interface, seen in (state.get("network") or {}).items()
            for each in seen.get("addresses") or ()
            if each.get("scope") not in ({"local"} if each.get("family") == "inet" else {"local", "link"})
        }
        wanted = {("eth0", str(container.address))}
        if context.settings.network.twins and container.production_address:
            wanted.add((TWIN_DEVICE, str(container.production_address)))
        bad += [f"{name}: {interface} has {address}" for interface, address in sorted(found - wanted)]
        bad += [f"{name}: {interface} lacks {address}" for interface, address in sorted(wanted - found)]
        looked += [name] if state.get("network") else []
    return Result(tuple(bad), f"addresses of {', '.join(looked)}", sight(context.names, looked), context.idle)


def identity(context: VerifyContext) -> Result:
    """Check that each clone has its own name, and a machine id that was made for it: a copied file would be older."""
    script = 'cat /etc/machine-id; find /etc/machine-id -newerct "$1" -print; hostname'
    commands = {n: ["sh", "-c", script, "sh", context.clones[n].created_at] for n in context.running}
    bad: list[str] = []
    seen: dict[str, str] = {}
    looked: list[str] = []
    trouble = [context.idle] if context.idle else []
    for name, result in context.in_each(commands).items():
        lines = result.stdout.split()
        if result.stderr.strip():
            trouble.append(f"{name}: {result.stderr.strip()[:200]}")
        if not lines:
            continue
        looked.append(name)
        if len(lines) != 3:
            bad.append(f"{name}: /etc/machine-id was not made for this clone")
        if lines[0] in seen:
            bad.append(f"{name} and {seen[lines[0]]} have the same machine id")
        seen[lines[0]] = name
        if lines[-1] != name:
            bad.append(f"{name}: its host name is {lines[-1]}")
    shown = f"machine ids and names of {', '.join(looked)}"
    return Result(tuple(bad), shown, sight(context.names, looked), "; ".join(trouble))


def wiped(context: VerifyContext) -> Result:
    """Check that no file in a wiped folder is older than the end of the wipe, by ctime, which programs can't set."""
    containers = context.settings.containers
    return _nothing_old(context, {name: [("emptied", path) for path in each.wipe] for name, each in containers.items()})


def logs(context: VerifyContext) -> Result:
    """Check that no log file is older than the end of the wipe. Older system logs must be empty."""
    folders = {
        name: [("cleared", path) for path in each.logs]
        + [("truncated", path) for path in SYSTEM_LOGS if each.system_logs]
        for name, each in context.settings.containers.items()
    }
    return _nothing_old(context, folders)


_OLD = """stamp=$1 aside=$2; shift 2
cat "$stamp" || exit 1; echo
[ -z "$(find / /usr /usr/lib /usr/share /bin/sh -maxdepth 0 ! -cnewer "$stamp" -print -quit)" ] || echo "looked for old"
for each; do
  path=${each#* }
  if [ -d "$path" ]; then
    case ${each%% *} in
    cleared) set -- ! -type d ;;
    truncated) set -- -type f -size +0 ;;
    *)
      set --
      rm -rf -- "$path$aside" 2>/dev/null || echo "left $path$aside"
      ;;
    esac
    old=$(find "$path/" -mindepth 1 "$@" ! -cnewer "$stamp" -print -quit) || continue
    [ -z "$old" ] || echo "old $old"
    [ "$(find "$path/" -maxdepth 0 -print)" = "$path/" ] || continue
  fi
  echo "looked at $path"
done
"""
"""Prints the stamp, an empty line, what is older than it, and what was looked at. The control is production's own
system, which is older than every clone: a `find` that does not find it would not find anything else that is old."""


def _nothing_old(context: VerifyContext, folders: dict[str, list[tuple[str, str]]]) -> Result:
    """Check folders, given by container, each with the word that the first boot recorded for it."""
    folders = {name: paths for name, paths in folders.items() if paths}
    if not folders:
        raise Skipped("the settings name no such folder")
    bad, sights = [], {name: Sight(len(paths), 0) for name, paths in folders.items()}
    trouble = [context.idle] if context.idle else []
    commands = {
        n: ["sh", "-c", _OLD, "sh", STAMP, ASIDE, *map(" ".join, folders[n])] for n in context.running if n in folders
    }
    for name, result in context.in_each(commands).items():
        said, _, found = result.stdout.partition("\n\n")
        lines, looked = set(said.splitlines()), found.splitlines()
        for verb, path in folders[name]:
            if not lines & {f"{verb} {path}", f"absent {path}"}:
                bad.append(f"{name}: its first boot did not say that {path} was {verb}")
        olds = [line.removeprefix("old ") for line in looked if line.startswith("old ")]
        bad += [f"{name}: {path} is older than the wipe" for path in olds]
        lefts = [line.removeprefix("left ") for line in looked if line.startswith("left ")]
        bad += [f"{name}: {path} was moved aside by a reset, and can't be deleted" for path in lefts]
        if "looked for old" in looked:
            sights[name] = Sight(len(folders[name]), sum(f"looked at {path}" in looked for _, path in folders[name]))
        if result.stderr.strip():
            trouble.append(f"{name}: {result.stderr.strip()[:200]}")
    shown = ", ".join(f"{name} {' '.join(path for _, path in paths)}" for name, paths in folders.items())
    seen = f"files older than the clone's first boot looked for in {shown}"
    return Result(tuple(bad), seen, sights, "; ".join(trouble))


def kept(context: VerifyContext) -> Result:
    """Check that containers whose data is kept have production's files, which are older than the first boot."""
    names = [name for name, container in context.settings.containers.items() if not container.wipe]
    if not names:
        raise Skipped("the settings wipe every container")
    found = " ".join(KEPT)
    script = f"ls -d {found} 2>/dev/null | head -n1; find {found} -type f ! -cnewer {STAMP} 2>/dev/null | wc -l"
    bad, counts = [], {}
    commands = {name: ["sh", "-c", script] for name in names if name in context.running}
    for name, result in context.in_each(commands).items():
        *folder, count = result.stdout.split() or [""]
        if not count.isdigit():
            continue
        if not folder:
            bad.append(f"{name}: none of {', '.join(KEPT)} is there")
        elif count == "0":
            bad.append(f"{name}: no file of production is left in {', '.join(KEPT)}")
        counts[name] = count
    shown = ", ".join(f"{name} {count}" for name, count in counts.items())
    seen = f"files from production in {', '.join(KEPT)}: {shown}"
    return Result(tuple(bad), seen, sight(names, counts), context.idle)
