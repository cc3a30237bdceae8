"""Which names and addresses slots have, how many fit, what is known of them."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv4Interface
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from fakes import clone, source
from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import NoRoom, SettingsError
from pytest_stagegbo.settings import Settings, SlotSettings, load
from pytest_stagegbo.slots.capacity import Host, capacity
from pytest_stagegbo.slots.layout import golden_settings, number_of, slot_settings
from pytest_stagegbo.slots.lease import order
from pytest_stagegbo.slots.pool import identity, to_clean
from pytest_stagegbo.slots.source_drift import source_drift
from pytest_stagegbo.slots.statuses import slot_status

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = Settings()
GIB = 2**30
HOST = Host(memory=6 * GIB, disk=10 * 10**9, floor=5 * 10**9, cores=2, there=1)


def slots(**values: Any) -> Settings:
    return replace(SETTINGS, slots=SlotSettings(**values))


class TestLayout:
    def test_slot_0_is_the_stage_itself(self) -> None:
        assert slot_settings(SETTINGS, 0) is SETTINGS

    @pytest.mark.parametrize(
        ("number", "project", "bridge", "address", "tables"),
        [
            (1, "STAGE-GBO-1", "stagebr1", "10.0.4.1/24", "10.0.4.11"),
            (7, "STAGE-GBO-7", "stagebr7", "10.0.10.1/24", "10.0.10.11"),
        ],
    )
    def test_others_are_numbered_a_subnet_each(
        self, number: int, project: str, bridge: str, address: str, tables: str
    ) -> None:
        found = slot_settings(SETTINGS, number)
        assert (found.project, found.network.name) == (project, bridge)
        assert found.network.address == IPv4Interface(address)
        assert found.containers["tables"].address == IPv4Address(tables)
        assert found.containers["tables"].production_address == SETTINGS.containers["tables"].production_address

    def test_the_golden_copy_is_far_from_the_slots(self) -> None:
        found = golden_settings(SETTINGS)
        assert (found.project, found.network.name) == ("STAGE-GBO-GOLDEN", "stagebrg")
        assert found.network.address == IPv4Interface("10.0.103.1/24")

    def test_names_and_subnets_can_be_given(self) -> None:
        found = slot_settings(slots(network="ci{slot}br", address="172.20.4.1/22"), 2)
        assert (found.network.name, found.network.address) == ("ci2br", IPv4Interface("172.20.8.1/22"))
        assert found.containers["cache"].address == IPv4Address("172.20.8.13")

    @pytest.mark.parametrize(
        "settings",
        [
            slots(address="10.0.2.1/24"),
            slots(address="10.0.3.1/24"),
            slots(network="{slot}averylongbridgename"),
            replace(SETTINGS, source_project="STAGE-GBO-1"),
        ],
        ids=["production's subnet", "the stage's subnet", "bridge name", "production's project"],
    )
    def test_what_cannot_be_had_is_refused(self, settings: Settings) -> None:
        with pytest.raises(SettingsError, match=r"slot 1 of STAGE-GBO has names or addresses"):
            slot_settings(settings, 1)

    @pytest.mark.parametrize(
        ("project", "number"),
        [
            ("STAGE-GBO", 0),
            ("STAGE-GBO-GOLDEN", -1),
            ("STAGE-GBO-1", 1),
            ("STAGE-GBO-63", 63),
            ("STAGE-GBO-64", None),
            ("STAGE-GBO-01", None),
            ("STAGE-GBO-1-1", None),
            ("STAGE-GBOX", None),
            ("default", None),
        ],
    )
    def test_only_projects_of_these_names_are_slots(self, project: str, number: int | None) -> None:
        assert number_of(SETTINGS, project) == number


class TestFit:
    @pytest.mark.parametrize(
        ("host", "workers", "count"),
        [
            pytest.param(HOST, 8, 4, id="two cores, half a core each"),
            pytest.param(replace(HOST, cores=16), 8, 6, id="disk: one there, 5 more"),
            pytest.param(replace(HOST, cores=16, disk=10**12), 8, 6, id="memory: one there, 5 more"),
            pytest.param(replace(HOST, cores=16, disk=10**12, memory=10**12), 8, 8, id="workers"),
            pytest.param(replace(HOST, memory=0, there=0), 8, 1, id="never none"),
        ],
    )
    def test_auto_takes_what_fits(self, host: Host, workers: int, count: int) -> None:
        assert capacity(slots(count="auto"), [host], workers).count == count

    def test_the_arithmetic_is_shown(self) -> None:
        assert capacity(slots(count="auto"), [HOST], 3).explanation == (
            "memory: 6 GiB available less 1 GiB (slots.memory_floor), 1 GiB each (slots.memory), 1 there already: 6",
            "disk: 9.31 GiB free less 4.66 GiB (disk_floor), 954 MiB each (slots.disk), 1 there already: 6",
            "processor: 2 cores, 0.5 each (slots.cores): 4",
            "workers: 3",
            "so 3 slots",
        )

    def test_a_number_is_had_whatever_workers_and_cores_there_are(self) -> None:
        assert capacity(slots(count=6), [HOST], 1).count == 6

    def test_a_number_that_does_not_fit_is_refused_with_the_arithmetic(self) -> None:
        with pytest.raises(NoRoom, match="7 slots are asked for, and 6 fit") as caught:
            capacity(slots(count=7), [HOST], 8)
        assert "slots.memory" in caught.value.seen


def test_workers_begin_with_their_own_place() -> None:
    assert [order(3, index) for index in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


class TestMoved:
    SOURCE = source("tables")
    COPY = clone("tables", SETTINGS, origin=marks.origin(SOURCE))

    def test_a_running_source_may_have_written(self) -> None:
        assert source_drift(self.SOURCE, self.COPY) == "runs, so it may have written"

    def test_a_source_that_was_and_is_stopped_is_known_to_be_the_same(self) -> None:
        stopped = replace(self.SOURCE, status="Stopped")
        copy = clone("tables", SETTINGS, origin=marks.origin(stopped))
        assert source_drift(stopped, copy) == ""
        assert source_drift(replace(stopped, last_used_at="2026-01-01"), copy) == "restarted or changed"

    @pytest.mark.parametrize(("source", "copy"), [(None, COPY), (SOURCE, None)])
    def test_nothing_is_said_where_one_is_missing(self, source: Any, copy: Any) -> None:
        assert source_drift(source, copy) == ""


class TestKnownClean:
    CLONES = tuple(replace(clone(name, SETTINGS), created_at="1", last_used_at="2") for name in ("cache", "drive"))

    def test_it_is_of_these_clones_in_any_order(self) -> None:
        assert identity(self.CLONES) == identity(reversed(self.CLONES)) != ""

    @pytest.mark.parametrize("change", [{"created_at": "9"}, {"last_used_at": "9"}])
    def test_one_replaced_or_restarted_is_another(self, change: dict[str, str]) -> None:
        cache, drive = self.CLONES
        assert identity([replace(cache, **change), drive]) != identity(self.CLONES)

    @pytest.mark.parametrize(
        "unfit", [clone("cache", SETTINGS, status="Stopped"), clone("cache", SETTINGS, state=marks.BUILDING)]
    )
    def test_stages_that_do_not_run_or_are_unfinished_have_none(self, unfit: Any) -> None:
        assert identity([unfit, self.CLONES[1]]) == ""

    def test_what_is_wiped_and_databases_are_cleaned(self) -> None:
        assert to_clean(SETTINGS) == ["system", "tables", "cache", "drive"]
        assert to_clean(slots(clean=("llm", "all", "cache"))) == ["llm", "system", "cache", "drive"]

    def test_a_database_that_only_a_restore_brings_back_is_left_out(self) -> None:
        tables = replace(SETTINGS.containers["tables"], reset="restore")
        containers = MappingProxyType({**SETTINGS.containers, "tables": tables})
        assert to_clean(replace(SETTINGS, containers=containers)) == ["system", "cache", "drive"]


@pytest.mark.parametrize(
    ("number", "clones", "state"),
    [
        (1, [], "empty"),
        (1, [clone("cache", SETTINGS), clone("drive", SETTINGS)], "running"),
        (1, [clone("cache", SETTINGS), clone("drive", SETTINGS, status="Stopped")], "partly running"),
        (1, [clone("cache", SETTINGS, state=marks.BUILDING), clone("drive", SETTINGS)], "unfinished"),
        (-1, [clone("cache", SETTINGS, status="Stopped")], "unfinished"),
        (-1, [clone("cache", SETTINGS, status="Stopped", generation="1")], "stopped"),
    ],
)
def test_the_state_of_a_slot_is_that_of_its_clones(number: int, clones: list[Any], state: str) -> None:
    found = slot_status(number, "P", "br", {each.name: each for each in clones}, True, "")
    assert (found.state, found.clean) == (state, state == "running")


def test_an_identity_is_json() -> None:
    assert json.loads(identity([clone("cache", SETTINGS)]))[0][0] == "cache"


class TestSettings:
    @pytest.mark.parametrize(("text", "count"), [("4", 4), ('"4"', 4), ('"auto"', "auto")])
    def test_a_count_is_a_number_or_auto(self, tmp_path: Path, text: str, count: object) -> None:
        (tmp_path / "stagegbo.toml").write_text(f"slots.count = {text}\n")
        assert load(None, tmp_path, {}).settings.slots.count == count

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("count = 0", "0 is no number of slots from 1 to 64"),
            ('count = "many"', "'many' is not a whole number, or `auto`"),
            ('memory = "lots"', "'lots' is not a size"),
            ('disk = "1gb"', "'1gb' is not a size"),
            ("cores = -1", "-1 is not a number of cores"),
            ('network = "ci"', "'ci' lacks {slot}"),
            ('address = "10.0.4.1"', "'10.0.4.1' is not an IPv4 address with a prefix length"),
            ('clean = ["cash"]', "'cash' is not a container of the stage"),
        ],
    )
    def test_bad_values_are_errors_that_say_what_is_wrong(self, tmp_path: Path, line: str, said: str) -> None:
        (tmp_path / "stagegbo.toml").write_text(f"[slots]\n{line}\n")
        with pytest.raises(SettingsError, match=re.escape(said)):
            load(None, tmp_path, {})
