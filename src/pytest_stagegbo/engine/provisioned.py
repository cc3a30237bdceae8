"""What provisioning did and found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.apply.await_clone import Readiness
    from pytest_stagegbo.apply.scheduler import Timing
    from pytest_stagegbo.plan.provision import Plan

__all__ = ["Provisioned"]


class Provisioned(Struct, frozen=True):
    """What provisioning did and found."""

    plan: Plan
    readiness: Mapping[str, Readiness]
    """By container."""
    timings: tuple[Timing, ...]
    seconds: float
    requests: int = 0
    """To the daemon meanwhile, those of other threads included."""

    @property
    def changed(self) -> bool:
        return bool(self.plan.changes)

    @property
    def sealed(self) -> tuple[str, ...]:
        """Containers whose Vault is up and sealed."""
        return tuple(name for name, found in self.readiness.items() if found.state == "sealed")
