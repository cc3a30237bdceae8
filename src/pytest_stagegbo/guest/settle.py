"""What a golden clone is told before it is stopped, for its copies: to leave out what a boot need not do in them.

All of it saves time and nothing else: a copy whose golden clone was not told does it all, as production would.
"""

from __future__ import annotations

from pytest_stagegbo.guest.files import RELEASE
from pytest_stagegbo.guest.place import INTERFACES

__all__ = ["settle_script"]

GENERATORS = (
    "cryptsetup",
    "debug",
    "getty",
    "gpt-auto",
    "hibernate-resume",
    "integritysetup",
    "rc-local",
    "run",
    "system-update",
    "veritysetup",
)
"""They look for disks, consoles and words on a kernel's command line. Those for fstab, init scripts and PostgreSQL's
clusters stay."""
UNITS = (
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "ifupdown-pre.service",
    "modprobe@.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-modules-load.service",
    "systemd-remount-fs.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-update-utmp.service",
)
"""They are about modules, devices and mounts, which an unprivileged container can't change, or were done by an earlier
boot."""


def settle_script(*, lean: bool) -> str:
    """POSIX shell for a golden clone that is about to be stopped.

    Its machine-id is emptied, which has systemd make one for each copy and is no first boot (machine-id(5)).

    Args:
        lean: Mask systemd's work for machines in later boots: about a third of their processor time (systemd 252).
    """
    own = f"""rm -f {RELEASE}
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
: >/etc/machine-id
printf 'auto lo\\niface lo inet loopback\\n' >{INTERFACES}
"""
    return own + (_lean_script() if lean else "")


def _lean_script() -> str:
    return f"""set -eu
mkdir -p /etc/systemd/system-generators
for name in {" ".join(GENERATORS)}; do
    ln -sf /dev/null /etc/systemd/system-generators/systemd-$name-generator
done
for name in {" ".join(UNITS)}; do
    [ -e /etc/systemd/system/$name ] || ln -sf /dev/null /etc/systemd/system/$name
done
"""
