"""A clone's first boot, which makes it safe: what it wrote down as done, and the boot of its own that a full one needs.

A clone whose boots are confined to the units of the settings does it in the same boot that starts these. One with
`boot = "full"` must not start production's units before it is done, so its first boot is confined, does nothing else
and ends; then the keys that confine it are taken away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import NotReady, ServerRefused
from pytest_stagegbo.guest import CONFINED, PLACE, STAMP, identity, shown_stamp
from pytest_stagegbo.guest.units import FOLDER
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Instance, Reader, Writer
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["make_safe", "own_identity", "own_stamp"]


def own_identity(clone: Instance) -> str:
    """What the stamp of a clone's first boot names; empty for a clone without one."""
    return identity(clone.config.get(f"environment.{PLACE}", ""))


def own_stamp(reader: Reader, clone: Instance) -> str:
    """What the clone's own first boot wrote down as done; empty before that, whatever stamp came with its source."""
    text = shown_stamp(reader.console(clone.project, clone.name), own_identity(clone)) if clone.is_running else ""
    if not text:
        try:
            content = reader.file(clone.project, clone.name, STAMP)
        except ServerRefused:
            return ""  # between two states of a container the daemon can't reach its files
        text = (content or b"").decode("utf-8", "replace")
    return text if f"placed {own_identity(clone)}" in text.splitlines() else ""


def make_safe(reader: Reader, writer: Writer, settings: Settings, container: ContainerSettings) -> bool:
    """Run the first boot of a clone with a full boot to its end, and whether it did; the clone is stopped then.

    May be repeated after a kill at any point. Does nothing for other clones.

    Raises:
        NotReady: it did not end in time, or without what it has to do; the clone is stopped.
    """
    if container.boot != "full":
        return False
    name = container.name
    clone = reader.instance(settings.project, name)
    if clone is None or not any(clone.config.get(key) for key in CONFINED):
        return False
    if not clone.is_running:
        writer.set_state(name, "start")
    deadline = clocks.monotonic() + settings.timeouts.ready
    while (clone := reader.instance(settings.project, name)) is not None and clone.is_running:
        if clocks.monotonic() > deadline:
            writer.set_state(name, "stop", force=True)
            break
        clocks.sleep(0.05)  # a poll with a deadline: a container that ends by itself makes no operation to wait for
    if clone is None or not own_stamp(reader, clone):
        log = reader.file(settings.project, name, f"{FOLDER}/prepare.log") or b""
        raise NotReady(
            f"{name}: its first boot did not make it safe, so it stays stopped",
            seen=mask(log.decode("utf-8", "replace").strip()[-1000:])
            or f"no stamp after {settings.timeouts.ready:g} s",
            remedy=f"see timeouts.ready and containers.{name}.wipe, then run `stagegbo provision` again",
        )
    writer.set_instance_config(name, dict.fromkeys(CONFINED, ""))
    return True
