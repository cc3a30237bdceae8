"""What a storage pool of the stage's own would bring, and the command that creates it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from pytest_stagegbo.discovery.proposal import Proposal
    from pytest_stagegbo.discovery.records import Survey

__all__ = ["PoolAdvice", "advise"]

_LEAST = 20
"""GiB."""


class PoolAdvice(Struct, frozen=True):
    """Advice, and nothing that has to be done."""

    name: str
    """Of the pool that there may be."""
    command: str
    text: str


def advise(survey: Survey, proposal: Proposal) -> PoolAdvice | None:
    """Say what an own pool would bring; None: where production's disks are is not known."""
    sources = [each.source for each in proposal.roles.assigned]
    pools = [survey.pools[name] for name in sorted({source.pool for source in sources}) if name in survey.pools]
    if not pools:
        return None
    name = next(
        each for each in ("stage", *(f"stage{number}" for number in range(2, 100))) if each not in survey.pool_names
    )
    size = max(_LEAST, -(-3 * sum(source.used for source in sources) // 2**30))
    command = f"incus storage create {name} btrfs size={size}GiB"
    copied = [pool.name for pool in pools if not pool.copy_on_write]
    words = ", ".join(f"{pool.name} ({pool.driver}, {bytes_text(pool.free)} free)" for pool in pools)
    if copied:
        gain = (
            f"{', '.join(copied)} has no copy-on-write, so every clone there is a full copy. On a pool of its own the "
            "stage is copied in full once, and clones of that copy take seconds and little room"
        )
    else:
        gain = (
            "Clones share blocks with production, so what tests do on the disk can make production's writes wait. "
            "A pool of the stage's own ends that, for one full copy of production"
        )
    return PoolAdvice(name, command, f"Production is on pool {words}. {gain}: docs/disk.md")
