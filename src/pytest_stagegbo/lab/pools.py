"""The lab's storage pools, and how btrfs counts what each volume uses there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import LabError
from pytest_stagegbo.incus.localhost import btrfs_id, enable_simple_quotas
from pytest_stagegbo.lab import api

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.lab.host import Host

__all__ = ["POOL", "SIZE", "STAGE_POOL", "add_stage_pool", "count_simply", "pools"]

POOL = "pool"
"""Production's."""
STAGE_POOL = "stage"
"""A second one, in another file: `lab up --pool-layout own`."""
SIZE = "12GiB"


def count_simply(host: Host, pool: str, *, required: bool) -> None:
    """Have a new pool count for each volume what it wrote itself (Linux 6.7).

    Incus turns ordinary quotas on with the first limit on a pool that has none; it leaves these alone, and limits with
    them. With ordinary quotas a deleted clone keeps a core busy for seconds, and every `fsync` on the pool waiting.

    Args:
        required: Whether a kernel that does not know them is an error; otherwise its pool gets ordinary quotas.

    Raises:
        LabError: the kernel does not know them.
    """
    descriptor = os.open(_folder(host, pool), os.O_RDONLY | os.O_DIRECTORY)
    try:
        enable_simple_quotas(descriptor)
    except OSError as error:
        if required:
            raise LabError(
                f"pool {pool} can't have simple quotas",
                seen=f"Linux {os.uname().release}: {error.strerror}",
                remedy="use Linux 6.7 or newer, or `stagegbo lab up --quota ordinary`",
            ) from error
    finally:
        os.close(descriptor)


def add_stage_pool(hosts: Sequence[Host], *, simple: bool) -> None:
    """Make the pool for stages, in a file of its own on each member of the lab, unless it is there."""
    first, *others = hosts
    what = f"creating pool {STAGE_POOL}"
    words = ["storage", "create", STAGE_POOL, "btrfs"]
    listed = {each["name"]: each["status"] for each in api.get(first.paths.socket, "/1.0/storage-pools?recursion=1")}
    if others and listed.get(STAGE_POOL) == "Pending":  # its maker was killed
        first.incus("storage", "delete", STAGE_POOL, what=f"removing what is left of pool {STAGE_POOL}")
        del listed[STAGE_POOL]
    if STAGE_POOL not in listed:
        for host in hosts if others else ():
            first.incus(*words, f"size={SIZE}", "--target", host.name, what=what)
        first.incus(*words, *([] if others else [f"size={SIZE}"]), what=what)
    for host in hosts:
        if simple and kind_of_quota(host, STAGE_POOL) == "off":  # new, or its maker was killed
            count_simply(host, STAGE_POOL, required=True)


def pools(host: Host) -> dict[str, str]:
    """The kind of quotas of each of the lab's own pools that there is; not of those that somebody added."""
    listed = api.get(host.paths.socket, "/1.0/storage-pools") or ()  # null before there is any
    found = {str(each).rpartition("/")[2] for each in listed}
    return {name: kind_of_quota(host, name) for name in (POOL, STAGE_POOL) if name in found}


def kind_of_quota(host: Host, pool: str) -> str:
    """`simple`, `ordinary`, or `off`: Incus turns ordinary ones on with the first limit. Empty: nobody can tell."""
    try:
        groups = Path("/sys/fs/btrfs") / btrfs_id(_folder(host, pool)) / "qgroups"
        if not groups.is_dir():
            return "off"
        mode = groups / "mode"  # Linux 6.7
        return "simple" if mode.exists() and mode.read_text().strip() == "squota" else "ordinary"
    except OSError:
        return ""


def _folder(host: Host, pool: str) -> Path:
    """Where the lab's mount namespace has a pool."""
    return Path(f"/proc/{host.namespace.init()}/root/var/lib/incus/storage-pools/{pool}")
