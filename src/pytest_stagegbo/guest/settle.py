"""POSIX shell that prepares a golden clone for being copied, before it is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.guest import removal
from pytest_stagegbo.guest.place import INTERFACES
from pytest_stagegbo.guest.units import boot_folder, release

if TYPE_CHECKING:
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["settle_script"]


def settle_script(container: ContainerSettings) -> str:
    """Return shell that removes what belongs to the golden clone only, and what each copy would have to delete.

    Its machine-id is emptied, which has systemd make one for each copy and is no first boot (machine-id(5)).
    """
    return f"""rm -f {release(boot_folder("*"), "*")}
{removal.delete_aside(container.wipe, wait=True)}[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
: >/etc/machine-id
printf 'auto lo\\niface lo inet loopback\\n' >{INTERFACES}
"""
