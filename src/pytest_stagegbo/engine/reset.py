"""The staging guide's reset: stop the service, clear its data, start it, wait until it answers."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pytest_stagegbo.engine import marks
from pytest_stagegbo.engine.steps import Step
from pytest_stagegbo.errors import CommandFailed, NotOurs, SettingsError, StageMissing
from pytest_stagegbo.guest import clearing
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.incus import Instance, Writer
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["ClearClone", "chosen", "clear", "clear_script", "our_clone"]


@dataclass(frozen=True, kw_only=True)
class ClearClone(Step):
    verb: ClassVar[str] = "clear"
    container: ContainerSettings

    @property
    def text(self) -> str:
        return f"stop {self.subject}, clear {', '.join(self.container.wipe)}, start it"


def chosen(settings: Settings, names: Sequence[str]) -> list[ContainerSettings]:
    """The containers that a reset of `names` means; `all` means those whose data the settings wipe.

    Raises:
        SettingsError: a name is unknown, or the container keeps its data.
    """
    if "all" in names:
        return [container for container in settings.containers.values() if container.wipe]
    unknown = [name for name in names if name not in settings.containers]
    if unknown:
        raise SettingsError(
            "no container " + ", ".join(unknown), remedy="choose from " + ", ".join(settings.containers)
        )
    keeping = [name for name in names if not settings.containers[name].wipe]
    if keeping:
        raise SettingsError(
            ", ".join(keeping) + ": keeps its data by the staging guide, so there is nothing to clear",
            seen=f"containers.{keeping[0]}.wipe is empty",
            remedy="name folders in that setting, or take production's data anew with `provision --recreate`",
        )
    return [settings.containers[name] for name in dict.fromkeys(names)]


def our_clone(clone: Instance | None, settings: Settings, name: str) -> Instance:
    """The clone, if it is there and this tool's.

    Raises:
        StageMissing: it is not there, or was never finished.
        NotOurs: it carries no ownership mark.
    """
    if clone is None or clone.config.get(marks.STATE, marks.PREPARED) != marks.PREPARED:
        raise StageMissing(
            f"{settings.project} has no {'finished ' if clone else ''}container {name}",
            remedy="run `python -m pytest_stagegbo provision`",
        )
    if not marks.is_ours(clone.config):
        raise NotOurs(f"{name} in {settings.project} was not made by pytest-stagegbo, so it is left alone")
    return clone


def clear_script(container: ContainerSettings) -> str:
    """POSIX shell to run in the clone: units that it lacks are passed over.

    The daemon runs it to its end even when who asked for it was killed, so the next one waits for that.
    """
    units = " ".join(shlex.quote(unit) for unit in container.units)
    return f"""set -eu
export LC_ALL=C
exec 9>/run/stagegbo-reset
if command -v flock >/dev/null; then flock 9; fi
known=
for unit in {units}; do
    if systemctl cat "$unit" >/dev/null 2>&1; then known="$known $unit"; fi
done
[ -z "$known" ] || systemctl stop $known
{clearing.functions()}
{clearing.empty_folders(container.wipe)}
if [ -n "$known" ]; then systemctl reset-failed $known || true; systemctl start --no-block $known; fi
"""


def clear(writer: Writer, container: ContainerSettings) -> None:
    """Stop, clear, start in a running clone; the caller waits for the answer.

    Raises:
        CommandFailed: something could not be cleared or started; says what.
    """
    result = writer.execute(container.name, ["sh", "-c", clear_script(container)])
    if result.status != 0:
        raise CommandFailed(
            f"resetting {container.name} failed with status {result.status}",
            seen=mask((result.stderr or result.stdout).strip()[-1000:]),
            remedy=f"look inside with `python -m pytest_stagegbo shell {container.name}`, or make the clone anew with "
            "`provision --recreate`",
        )
