"""What `docs/cluster.md` says of a large cluster is what the model says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests import cluster_model
from tests.cluster_model import Cluster

DOCUMENT = " ".join((Path(__file__).parents[2] / "docs/cluster.md").read_text().split())
LARGE = Cluster()


@pytest.mark.parametrize(
    "sentence",
    [
        f"{LARGE.slots} slots are {LARGE.stages} stages",
        f"{LARGE.members_each} members each",
        f"{LARGE.requests:,} requests, {LARGE.writes:,} of them writes",
        f"200 x {cluster_model.SESSION_REQUESTS} requests, {LARGE.session_rate(60):.0f} a second",
        f"{LARGE.lease_rate:.0f} requests a second, {LARGE.lease_write_rate:.0f} of them writes",
        f"{LARGE.slot_requests} requests, {LARGE.slot_writes} of them writes",
        f"{LARGE.leader_slots * 60:.0f} slots a minute",
        f"{LARGE.member_slots * 60:.0f} slots a minute",
        f"{LARGE.slots_seconds / 60:.1f} minutes for all {LARGE.slots}",
        f"{LARGE.copy_seconds:.0f} s for a member",
        f"{LARGE.golden_seconds / 60:.0f} minutes for all {LARGE.members}",
    ],
)
def test_the_document_says_what_comes_out(sentence: str) -> None:
    assert sentence in DOCUMENT


@hypothesis_settings(deadline=None)  # a busy machine takes its time
@given(st.integers(1, 100), st.integers(1, 256), st.integers(1, 6))
def test_more_members_make_slots_sooner_until_the_leader_limits(members: int, slots: int, containers: int) -> None:
    found = Cluster(members=members, slots=slots, containers=containers)
    more = Cluster(members=members + 1, slots=slots, containers=containers)
    assert more.slots_seconds <= found.slots_seconds
    assert found.slots_seconds >= slots / found.leader_slots - 1e-9


@hypothesis_settings(deadline=None)  # a busy machine takes its time
@given(st.integers(1, 100), st.integers(1, 256))
def test_every_slot_is_in_a_stage_and_every_member_in_one(members: int, slots: int) -> None:
    found = Cluster(members=members, slots=slots)
    assert found.stages * 64 >= slots
    assert found.stages * found.members_each >= members
