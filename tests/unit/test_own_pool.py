"""A storage pool of the stage's own: what is planned for it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import bare_host, clone, pool
from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.own_pool import foreign_users, is_own, pool_config
from pytest_stagegbo.errors import MissingRequirement, NoRoom, NotOurs, ProductionProtected, SettingsError
from pytest_stagegbo.facts.space import Room
from pytest_stagegbo.plan.pool_objections import refuse_elsewhere
from pytest_stagegbo.plan.provision import make_plan
from pytest_stagegbo.plan.steps import CopyClone, CreatePool, RefreshClone, RemoveClone
from pytest_stagegbo.settings import Settings, StorageSettings

PLAIN = Settings(disk_floor="5GiB")
OWN = replace(PLAIN, storage=StorageSettings("stage"))
CREATE = replace(PLAIN, storage=StorageSettings("stage", "20GiB"))
FAMILY = "STAGE"


def room(**values: Any) -> Room:
    return Room(pool("stage", **values), None)


def planned(settings: Settings, **changes: Any) -> list[Any]:
    return list(make_plan(bare_host(settings, **changes), settings, parent=FAMILY).steps)


def test_a_missing_pool_is_created_before_what_is_on_it() -> None:
    steps = planned(CREATE, rooms={})
    (create,) = (step for step in steps if isinstance(step, CreatePool))
    copies = [step for step in steps if isinstance(step, CopyClone)]
    assert (create.subject, create.size) == ("stage", "20GiB")
    assert {step.pool for step in copies} == {"stage"}
    assert all(create.key in step.after for step in copies)


def test_the_golden_copy_has_no_limit_but_the_pool() -> None:
    assert {step.limit for step in planned(OWN, rooms={"stage": room()}) if isinstance(step, CopyClone)} == {""}


def test_without_permission_a_missing_pool_is_an_error_with_the_command() -> None:
    with pytest.raises(MissingRequirement, match="incus storage create stage btrfs"):
        planned(OWN, rooms={})


def test_a_cluster_s_pool_is_not_created() -> None:
    server = replace(bare_host(CREATE).server, clustered=True)
    with pytest.raises(MissingRequirement, match="--target MEMBER"):
        planned(CREATE, rooms={}, server=server)


def test_a_pool_that_would_fill_the_file_system_below_is_not_created() -> None:
    with pytest.raises(NoRoom, match="20GiB"):
        planned(CREATE, rooms={}, new_pool_free=24 << 30)
    assert planned(CREATE, rooms={}, new_pool_free=26 << 30)


def test_a_pool_without_copy_on_write_is_refused() -> None:
    with pytest.raises(SettingsError, match="no copy-on-write"):
        planned(OWN, rooms={"stage": room(driver="dir")})


def test_production_s_pool_is_refused() -> None:
    (taken,) = bare_host(PLAIN).production_pools
    with pytest.raises(ProductionProtected, match=taken):
        planned(replace(PLAIN, storage=StorageSettings(taken)))


def test_what_a_full_copy_takes_must_fit() -> None:
    name = next(iter(bare_host(OWN).sources))
    with pytest.raises(NoRoom, match="pool stage"):
        planned(OWN, rooms={"stage": room(free=30 << 30)}, full_copy_bytes={name: 26 << 30})


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        pytest.param({"state": marks.BUILDING}, RefreshClone, id="killed"),
        pytest.param({"fingerprint": "another"}, RefreshClone, id="stale"),
    ],
)
def test_what_is_there_of_a_full_copy_is_used_again(changes: dict[str, str], kind: type) -> None:
    made = clone("llm", OWN, status="Stopped", **changes)
    steps = planned(OWN, rooms={"stage": room()}, clones={"llm": made})
    assert [type(step) for step in steps if step.key in {"copy:llm", "remove:llm"}] == [kind]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"status": "Error"}, id="broken"),
        pytest.param({"shift": "[1]"}, id="owners-shifted-otherwise"),
    ],
)
def test_where_that_can_t_be_it_is_copied_again(change: dict[str, str]) -> None:
    made = clone("llm", OWN, status=change.get("status", "Stopped"), state=marks.BUILDING)
    made = replace(made, config={**made.config, "volatile.last_state.idmap": change.get("shift", "[]")})
    steps = planned(OWN, rooms={"stage": room()}, clones={"llm": made})
    assert [type(s) for s in steps if s.key in {"copy:llm", "remove:llm"}] == [RemoveClone, CopyClone]


def test_a_stage_on_another_pool_is_left_alone_until_it_is_made_again() -> None:
    there = {name: clone(name, PLAIN) for name in PLAIN.containers}
    with pytest.raises(NotOurs, match="provision --recreate"):
        refuse_elsewhere(there, OWN, ())
    refuse_elsewhere(there, OWN, tuple(there))
    refuse_elsewhere(there, PLAIN, ())


def test_a_stage_whose_pool_the_settings_no_longer_name_is_left_alone_until_it_is_made_again() -> None:
    there = {name: clone(name, OWN) for name in PLAIN.containers}
    with pytest.raises(NotOurs, match=r'storage\.pool to "stage"'):
        make_plan(bare_host(PLAIN, clones=there), PLAIN)
    steps = make_plan(bare_host(PLAIN, clones=there), PLAIN, recreate=True).steps
    (where,) = {step.pool for step in steps if isinstance(step, CopyClone)}
    assert {where} == set(bare_host(PLAIN).production_pools)
    assert {step.subject for step in steps if isinstance(step, RemoveClone)} == set(PLAIN.containers)


def test_only_a_pool_that_was_created_for_this_stage_is_its_own() -> None:
    made = replace(pool("stage"), config=pool_config(CREATE, ""))
    assert is_own(made, CREATE.project)
    assert not is_own(made, "STAGE-OTHER")
    assert not is_own(pool("stage"), CREATE.project)


def test_what_others_have_on_a_pool_is_named() -> None:
    used = ("/1.0/instances/a?project=STAGE", "/1.0/instances/b?project=MINE", "/1.0/profiles/c")
    found = foreign_users(replace(pool("stage"), used_by=used), ["STAGE"])
    assert found == ["instances/b of project MINE", "profiles/c of project default"]
