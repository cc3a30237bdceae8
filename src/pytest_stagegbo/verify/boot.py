"""The check `locked.boot`: what has run in each clone since it booted, as its systemd recorded it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.guest.units import OWN_UNITS, PACKAGE_UNITS, UNIT_FOLDER
from pytest_stagegbo.verify.finding import Result, sight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.settings import ContainerSettings
    from pytest_stagegbo.verify.context import VerifyContext

__all__ = ["confined"]

_PROPERTIES = ("Id", "Names", "Transient", "InactiveExitTimestampMonotonic")
_SCRIPT = f"""systemctl show --property=UnitPath --value
echo
systemctl show {" ".join(f"--property={name}" for name in _PROPERTIES)} '*.service' '*.socket' '*.timer' '*.path'
"""
"""Prints where the manager looks for units, an empty line, and each unit that it has loaded."""


def confined(context: VerifyContext) -> Result:
    """Check that each clone's systemd reads units from our folder only, and has run only those that the settings
    name."""
    bad, counts, looked, trouble = [], [], [], [context.idle] if context.idle else []
    full = [name for name, each in context.settings.containers.items() if each.boot == "full"]
    commands = {name: ["sh", "-c", _SCRIPT] for name in context.running if name not in full}
    for name, result in context.in_each(commands).items():
        path, _, shown = result.stdout.partition("\n\n")
        ran = list(_ran(shown))
        if path and ran:
            looked.append(name)
        elif result.stderr.strip():
            trouble.append(f"{name}: {result.stderr.strip()[:200]}")
        if path and path != UNIT_FOLDER:
            bad.append(f"{name}: its manager looks for units in {path}")
        container = context.settings.containers[name]
        foreign = [names[0] for names in ran if not any(_is_named(each, container) for each in names)]
        bad += [f"{name}: {unit} has run, and the settings don't name it" for unit in foreign]
        counts.append(f"{name} {len(ran)}")
    seen = f"units that have run since the boot: {', '.join(counts)}"
    if full:
        seen += f"; {', '.join(full)} boots in full, as the settings say"
    return Result(tuple(bad), seen, sight(context.names, [*looked, *full]), "; ".join(trouble))


def _ran(shown: str) -> Iterator[list[str]]:
    """Return the names of all units that have run, but for those that a test made itself (`systemd-run`)."""
    for block in shown.split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        if values.get("InactiveExitTimestampMonotonic", "0") != "0" and values.get("Transient") != "yes":
            yield [values.get("Id", ""), *values.get("Names", "").split()]


def _is_named(unit: str, container: ContainerSettings) -> bool:
    """Whether a clone may start a unit. Instances of a template count as well: `postgresql@15-main.service`."""
    stems = {each.partition(".")[0].partition("@")[0] for each in container.units}
    return unit in {*PACKAGE_UNITS, *OWN_UNITS, *container.units} or unit.partition(".")[0].partition("@")[0] in stems
