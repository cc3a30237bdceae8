"""What a large Incus cluster would do with this tool: arithmetic on what was counted and measured on a small one.

`docs/cluster.md` says what comes out, and `tests/unit/test_cluster_model.py` that it does. On a real cluster,
`tests/lab/test_cluster_slots.py` counts whether the requests are half to one and a half times as many as this says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_stagegbo.leases.host import LOOKS, RENEWALS
from pytest_stagegbo.settings import TimeoutSettings
from pytest_stagegbo.settings.checks import MOST_SLOTS

LEASE_SECONDS = TimeoutSettings().lease
RENEWAL = 4
"""Requests that renew a lease: a look, the next entry, a look, and the deletion of the entry before."""
RENEWAL_WRITES = 2
SESSION_REQUESTS = 92
"""Of one process of pytest with two tests in a slot, from its start to its end: 184 were counted of two."""
GOLDEN, COPY, SLOT = 43, 30, 80
"""Requests to make a golden copy, its copy on one more member, and a slot, with one container each."""
GOLDEN_WRITES, COPY_WRITES, SLOT_WRITES = 21, 8, 16
CONTAINER, CONTAINER_WRITES = 16, 5
"""For each further container of any of them."""
WRITE_SECONDS = 0.0085
"""For the leader of the database to create a named object: 7 to 10 ms were measured."""
BANDWIDTH = 1e9 / 8.5
"""Bytes a second of a copy to another member: 1 GB took 8 to 9 s."""


@dataclass(frozen=True)
class Cluster:
    """A cluster of members that are alike, with stages whose slots are on all of them, or each on some of them.

    Args:
        containers: Of each slot.
        golden_bytes: Of a golden copy.
        slot_seconds: To make one slot from a golden copy on the same member: `provision` makes as many at once as there
            are members.
    """

    members: int = 20
    slots: int = 200
    containers: int = 6
    golden_bytes: float = 8e9
    slot_seconds: float = 10.0

    @property
    def stages(self) -> int:
        """A stage has at most 64 slots."""
        return math.ceil(self.slots / MOST_SLOTS)

    @property
    def members_each(self) -> int:
        """Members of each stage (`slots.members`), so that each member needs one golden copy only. The first copy of
        every stage is on production's member."""
        return math.ceil(self.members / self.stages)

    # -- what is sent

    def _of(self, golden: int, copy: int, slot: int, container: int) -> int:
        more = (self.containers - 1) * container
        copies = self.members - 1
        return self.stages * (golden + more) + copies * (copy + more) + self.slots * (slot + more)

    @property
    def requests(self) -> int:
        """Of a provisioning from nothing, all stages together."""
        return self._of(GOLDEN, COPY, SLOT, CONTAINER)

    @property
    def writes(self) -> int:
        return self._of(GOLDEN_WRITES, COPY_WRITES, SLOT_WRITES, CONTAINER_WRITES)

    @property
    def slot_requests(self) -> int:
        return SLOT + (self.containers - 1) * CONTAINER

    @property
    def slot_writes(self) -> int:
        return SLOT_WRITES + (self.containers - 1) * CONTAINER_WRITES

    def session_rate(self, within: float) -> float:
        """Requests a second while a session begins in every slot within so many seconds."""
        return self.slots * SESSION_REQUESTS / within

    @property
    def lease_rate(self) -> float:
        """Requests a second for leases, with each slot used from a host of its own."""
        looks = LOOKS - RENEWALS
        return self.slots * (RENEWALS * RENEWAL + looks) / LEASE_SECONDS

    @property
    def lease_write_rate(self) -> float:
        return self.slots * RENEWALS * RENEWAL_WRITES / LEASE_SECONDS

    # -- how long it takes

    @property
    def leader_slots(self) -> float:
        """Slots a second that the leader's writes allow."""
        return 1 / (self.slot_writes * WRITE_SECONDS)

    @property
    def member_slots(self) -> float:
        """Slots a second that the members allow: one at a time on each."""
        return self.members / self.slot_seconds

    @property
    def slots_seconds(self) -> float:
        """To make all slots, once the golden copies are there."""
        return self.slots / min(self.leader_slots, self.member_slots)

    @property
    def copy_seconds(self) -> float:
        """To move one golden copy."""
        return self.golden_bytes / BANDWIDTH

    @property
    def golden_seconds(self) -> float:
        """To bring golden copies to all members: one after the other in each stage, and all from production's member,
        whose network and disk the stages share."""
        return (self.members - 1) * self.copy_seconds

    @property
    def first_test_seconds(self) -> float:
        """Until the first test on the last member, from nothing but production."""
        return self.golden_seconds + self.slot_seconds
