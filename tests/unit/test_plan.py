"""From what is there to what is wanted: every start ends at the same stage, and production is never in the way."""

from __future__ import annotations

import copy
import random
from ipaddress import IPv4Address, IPv4Interface
from typing import TYPE_CHECKING, Any

import pytest
from fakes import GIB, bare_host, clone, copied, finished, network, pool, project, source
from msgspec.structs import replace

from pytest_stagegbo.desired import marks, objects
from pytest_stagegbo.desired.allowlist import clone_config, clone_nic, violations
from pytest_stagegbo.desired.versions import own_version
from pytest_stagegbo.errors import CapsuleMissing, NoRoom, NotOurs, ProductionProtected, SourceMissing
from pytest_stagegbo.facts.space import Room
from pytest_stagegbo.guest import holds_services
from pytest_stagegbo.incus import Project
from pytest_stagegbo.plan import steps
from pytest_stagegbo.plan.provision import Plan, make_plan
from pytest_stagegbo.settings import ContainerSettings, LimitSettings, NetworkSettings, Settings
from pytest_stagegbo.settings.opened import as_opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from pytest_stagegbo.facts.facts import Facts

SETTINGS = Settings()
NAMES = tuple(SETTINGS.containers)


def keys(found: Iterable[steps.Step]) -> list[str]:
    return [step.key for step in found]


def changes(facts: Facts, settings: Settings = SETTINGS, **options: Any) -> list[str]:
    return keys(make_plan(facts, settings, **options).changes)


def only(*names: str) -> Settings:
    return replace(SETTINGS, containers={name: replace(SETTINGS.containers[name], needs=()) for name in names})


def with_container(settings: Settings, name: str, **change: Any) -> Settings:
    return replace(settings, containers={**settings.containers, name: replace(settings.containers[name], **change)})


def with_clones(facts: Facts, **clones: Any) -> Facts:
    return replace(facts, clones={**facts.clones, **clones})


class World:
    """Facts that steps are done to, as Incus would, with Incus's refusals."""

    def __init__(self, facts: Facts, settings: Settings) -> None:
        self.facts = facts
        self.settings = settings
        self.answering: set[str] = set()

    def run(self, plan: Plan, order: random.Random) -> None:
        """Do every step of the plan, in an order that its `after` permits."""
        waiting, done = list(plan.steps), set[str]()
        known = {step.key for step in waiting}
        while waiting:
            ready = [step for step in waiting if step.after & known <= done]
            assert ready, f"these wait for each other: {keys(waiting)}"
            step = order.choice(ready)
            self.do(step)
            waiting.remove(step)
            done.add(step.key)

    def do(self, step: steps.Step) -> None:
        facts, settings = self.facts, self.settings
        match step:
            case steps.SetProject():
                assert step.create == (step.subject not in facts.projects)
                before: dict[str, str] = {}
                own = False
                if not step.create:
                    before = dict(facts.projects[step.subject].config)
                    own = before.get("features.networks") == "true"
                config = {**before, **objects.project(settings, own_networks=own)}
                self.facts = replace(
                    facts,
                    projects={**facts.projects, step.subject: Project(step.subject, "", config, ())},
                    profile=facts.profile or {"name": "default", "config": {}, "devices": {}},
                )
            case steps.SetAcl():
                assert step.create == (facts.acl is None)
                self.facts = replace(facts, acl={"name": step.subject, **objects.acl(settings)})
            case steps.SetNetwork():
                assert facts.acl is not None, "the bridge names an access list that must exist"
                existing = facts.networks.get(step.subject)
                assert step.create == (existing is None or existing.is_half_made)
                config = objects.network(settings)
                made = replace(network(step.subject, config["ipv4.address"]), config=config)
                self.facts = replace(facts, networks={**facts.networks, step.subject: made}, bridge_works=True)
            case steps.SetProfile():
                devices = objects.profile_devices(settings, step.pool, managed=self.managed)
                profile = {"name": "default", "config": objects.profile_config(settings), "devices": devices}
                self.facts = replace(facts, profile=profile)
            case steps.RemoveClone():
                assert marks.is_clone(facts.clones[step.subject], settings)
                left = {name: found for name, found in facts.clones.items() if name != step.subject}
                self.facts = replace(facts, clones=left, detached=facts.detached - {step.subject})
            case steps.CopyClone():
                self.copy(step)
            case steps.PrepareClone():
                found = facts.clones[step.subject]
                assert found.status == "Stopped"
                assert found.config[marks.STATE] == marks.BUILDING
                assert violations(found, settings) == []
                self.put(replace(found, config={**found.config, marks.STATE: marks.PREPARED}))
            case steps.ResizeClone():
                found = facts.clones[step.subject]
                root = {**found.devices["root"], "size": step.limit}
                self.put(replace(found, devices={**found.devices, "root": root}))
            case steps.AdoptClone():
                found = facts.clones[step.subject]
                identity = marks.identity(settings.project, step.subject)
                self.put(replace(found, config={**found.config, marks.INSTANCE: identity}))
            case steps.AttachClone():
                found = facts.clones[step.subject]
                assert settings.network.name in facts.networks, "there must be a bridge to be put on"
                nic = clone_nic(step.container, settings, managed=self.managed)
                self.put(replace(found, status="Stopped", devices={**found.devices, "eth0": nic}))
                self.facts = replace(self.facts, detached=facts.detached - {step.subject})
            case steps.StartClone():
                found = facts.clones[step.subject]
                assert found.config[marks.STATE] == marks.PREPARED, "only a prepared clone is ever started"
                assert not found.is_running
                if not holds_services(settings.containers[step.subject]):
                    self.check_needs(step.subject)
                self.put(replace(found, status="Running"))
            case steps.AwaitClone():
                assert facts.clones[step.subject].is_running
                self.check_needs(step.subject)
                self.answering.add(step.subject)
            case _:
                raise AssertionError(f"unexpected {step}")

    def check_needs(self, name: str) -> None:
        needed = set(self.settings.containers[name].needs)
        assert needed <= self.answering, f"the services of {name} need {needed - self.answering}"

    def copy(self, step: steps.CopyClone) -> None:
        facts, settings = self.facts, self.settings
        assert step.subject not in facts.clones
        assert settings.project in facts.projects
        assert settings.network.name in facts.networks
        assert facts.profile is not None
        assert facts.profile["devices"], "the profile has no root disk yet"
        origin = facts.sources[step.container.source_name]
        overrides = clone_config(origin, step.container, settings, managed=self.managed, golden=bool(facts.golden))
        taken = {device.get("ipv4.address") for found in facts.clones.values() for device in found.devices.values()}
        assert str(step.container.address) not in taken, "Incus refuses a second NIC with this address"
        self.put(replace(copied(origin, overrides, settings), name=step.subject))

    def put(self, found: Any) -> None:
        self.facts = with_clones(self.facts, **{found.name: found})

    @property
    def managed(self) -> bool:
        return objects.managed_nics(dict(self.facts.projects[self.settings.project].config))


def changed_project(**config: str) -> Facts:
    facts = finished(SETTINGS)
    stage = facts.projects[SETTINGS.project]
    return replace(facts, projects={**facts.projects, stage.name: replace(stage, config={**stage.config, **config})})


def half_made_network() -> Facts:
    facts = finished(SETTINGS, clones={})
    half = replace(facts.networks["stagebr0"], status="Pending")
    return replace(facts, networks={**facts.networks, "stagebr0": half})


def without_bridge(**changes: Any) -> Facts:
    facts = finished(SETTINGS, detached=frozenset(NAMES), **changes)
    return replace(facts, networks={name: each for name, each in facts.networks.items() if name != "stagebr0"})


def without_nic(name: str) -> Facts:
    found = clone(name, SETTINGS)
    return with_clones(finished(SETTINGS), cache=replace(found, devices={"root": found.devices["root"]}))


def earlier_version() -> Facts:
    """What a version left that did not say yet which stage it made things for."""
    facts = finished(SETTINGS)
    stage, bridge = facts.projects[SETTINGS.project], facts.networks["stagebr0"]
    assert facts.acl is not None
    return replace(
        facts,
        projects={**facts.projects, stage.name: replace(stage, config=unmarked(stage.config))},
        networks={**facts.networks, "stagebr0": replace(bridge, config=unmarked(bridge.config))},
        acl={**facts.acl, "config": unmarked(facts.acl["config"])},
        clones={name: replace(each, config=unmarked(each.config)) for name, each in facts.clones.items()},
    )


def unmarked(config: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in config.items() if key not in {marks.PROJECT, marks.INSTANCE}}


def changed_network(**config: str) -> Facts:
    facts = finished(SETTINGS)
    bridge = facts.networks["stagebr0"]
    return replace(facts, networks={**facts.networks, "stagebr0": replace(bridge, config={**bridge.config, **config})})


def swapped() -> Settings:
    first, second = (SETTINGS.containers[name].address for name in ("tables", "cache"))
    return with_container(with_container(SETTINGS, "tables", address=second), "cache", address=first)


def resized(facts: Facts, name: str, size: str) -> Facts:
    found = facts.clones[name]
    root = {**found.devices["root"], "size": size}
    return with_clones(facts, **{name: replace(found, devices={**found.devices, "root": root})})


def renamed() -> Settings:
    containers = {name: container for name, container in SETTINGS.containers.items() if name not in {"cache", "system"}}
    valkey = replace(SETTINGS.containers["cache"], name="valkey", source="cache")
    return replace(SETTINGS, containers={**containers, "valkey": valkey})


STARTS: list[Any] = [
    pytest.param(lambda: bare_host(SETTINGS), SETTINGS, id="nothing"),
    pytest.param(lambda: finished(SETTINGS), SETTINGS, id="finished"),
    pytest.param(lambda: finished(SETTINGS, clones={}), SETTINGS, id="no-clones"),
    pytest.param(lambda: replace(finished(SETTINGS, clones={}), networks={}), SETTINGS, id="no-network"),
    pytest.param(lambda: replace(finished(SETTINGS, clones={}), networks={}, acl=None), SETTINGS, id="only-project"),
    pytest.param(lambda: finished(SETTINGS, profile=None), SETTINGS, id="no-profile"),
    pytest.param(
        lambda: finished(SETTINGS, profile={"name": "default", "config": {}, "devices": {}}),
        SETTINGS,
        id="bare-profile",
    ),
    pytest.param(
        lambda: finished(replace(SETTINGS, limits=LimitSettings(processes=7))), SETTINGS, id="other-limits-of-clones"
    ),
    pytest.param(lambda: changed_project(restricted="false"), SETTINGS, id="unrestricted-project"),
    pytest.param(lambda: changed_project(**{"features.networks": "true"}), SETTINGS, id="project-with-own-networks"),
    pytest.param(lambda: changed_network(**{"ipv4.nat": "false"}), SETTINGS, id="changed-network"),
    pytest.param(half_made_network, SETTINGS, id="half-made-network"),
    pytest.param(without_bridge, SETTINGS, id="no-bridge"),
    pytest.param(lambda: without_bridge(acl=None), SETTINGS, id="no-bridge-and-no-access-list"),
    pytest.param(
        lambda: finished(SETTINGS, bridge_works=False, detached=frozenset(NAMES)), SETTINGS, id="bridge-not-in-kernel"
    ),
    pytest.param(
        lambda: without_nic("cache"),
        SETTINGS,
        id="device-taken-away",
    ),
    pytest.param(earlier_version, SETTINGS, id="earlier-version"),
    pytest.param(
        lambda: finished(SETTINGS, acl={**objects.acl(SETTINGS), "name": "x", "egress": []}), SETTINGS, id="open-acl"
    ),
    pytest.param(
        lambda: finished(SETTINGS, clones={name: clone(name, SETTINGS, state="building") for name in NAMES}),
        SETTINGS,
        id="killed-while-copying",
    ),
    pytest.param(
        lambda: finished(SETTINGS, clones={name: clone(name, SETTINGS, status="Stopped") for name in NAMES}),
        SETTINGS,
        id="killed-before-starting",
    ),
    pytest.param(
        lambda: finished(
            SETTINGS,
            clones={
                "tables": clone("tables", SETTINGS),
                "vault": clone("vault", SETTINGS, status="Stopped"),
                "cache": clone("cache", SETTINGS, status="Stopped", state="building"),
            },
        ),
        SETTINGS,
        id="killed-half-way",
    ),
    pytest.param(
        lambda: with_clones(finished(SETTINGS), drive=clone("drive", SETTINGS, status="Frozen")), SETTINGS, id="frozen"
    ),
    pytest.param(
        lambda: with_clones(finished(SETTINGS), drive=clone("drive", SETTINGS, status="Error")), SETTINGS, id="broken"
    ),
    pytest.param(
        lambda: with_clones(finished(SETTINGS), llm=clone("llm", SETTINGS, fingerprint="old")), SETTINGS, id="stale"
    ),
    pytest.param(lambda: resized(finished(SETTINGS), "tables", "5GB"), SETTINGS, id="other-limit"),
    pytest.param(lambda: finished(SETTINGS), only("tables"), id="fewer-containers"),
    pytest.param(lambda: finished(SETTINGS), swapped(), id="swapped-addresses"),
    pytest.param(lambda: finished(SETTINGS), renamed(), id="renamed-container"),
    pytest.param(lambda: finished(SETTINGS), with_container(SETTINGS, "tables", disk_limit="20GB"), id="more-room"),
    pytest.param(
        lambda: finished(SETTINGS),
        replace(SETTINGS, network=replace(SETTINGS.network, internet=True, twins=False)),
        id="other-network-settings",
    ),
]


class TestEveryStart:
    """Whatever is there, one run ends at the stage and the next has nothing to do."""

    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize(("start", "settings"), STARTS)
    @pytest.mark.parametrize("recreate", [False, True], ids=["mend", "recreate"])
    def test_a_second_plan_changes_nothing(
        self, start: Callable[[], Facts], settings: Settings, recreate: bool, seed: int
    ) -> None:
        world = World(start(), settings)
        world.run(make_plan(world.facts, settings, recreate=recreate), random.Random(seed))
        assert changes(world.facts, settings) == []
        assert set(world.facts.clones) == set(settings.containers)

    @pytest.mark.parametrize(("start", "settings"), STARTS)
    def test_a_run_that_is_cut_off_anywhere_is_finished_by_the_next(
        self, start: Callable[[], Facts], settings: Settings
    ) -> None:
        total = len(make_plan(start(), settings).changes)
        for done in range(total):
            world = World(start(), settings)
            plan = make_plan(world.facts, settings)
            for step in in_order(plan)[:done]:
                world.do(step)
            world.run(make_plan(world.facts, settings), random.Random(done))
            assert changes(world.facts, settings) == []

    @pytest.mark.parametrize(("start", "settings"), STARTS)
    def test_equal_facts_make_equal_plans(self, start: Callable[[], Facts], settings: Settings) -> None:
        assert make_plan(start(), settings) == make_plan(start(), settings)

    @pytest.mark.parametrize(("start", "settings"), STARTS)
    def test_planning_leaves_the_facts_alone(self, start: Callable[[], Facts], settings: Settings) -> None:
        facts = start()
        before = copy.deepcopy(facts)
        make_plan(facts, settings)
        assert facts == before

    @pytest.mark.parametrize(("start", "settings"), STARTS)
    def test_the_keys_of_a_plan_are_unique(self, start: Callable[[], Facts], settings: Settings) -> None:
        found = keys(make_plan(start(), settings).steps)
        assert len(found) == len(set(found))

    @pytest.mark.parametrize(("start", "settings"), STARTS)
    def test_every_container_is_awaited(self, start: Callable[[], Facts], settings: Settings) -> None:
        assert {f"await:{name}" for name in settings.containers} <= set(keys(make_plan(start(), settings).steps))


def in_order(plan: Plan) -> list[steps.Step]:
    found: list[steps.Step] = []
    known = set(keys(plan.steps))
    while len(found) < len(plan.steps):
        done = set(keys(found))
        found += [step for step in plan.steps if step.key not in done and step.after & known <= done]
    return [step for step in found if step.changes]


class TestSteps:
    """What is planned, and why."""

    def test_from_nothing_everything_is_made(self) -> None:
        assert changes(bare_host(SETTINGS), only("tables")) == [
            "project:STAGE-GBO",
            "access-list:stagebr0-isolation",
            "network:stagebr0",
            "profile:default",
            "copy:tables",
            "prepare:tables",
            "start:tables",
        ]

    def test_a_finished_stage_is_only_looked_at(self) -> None:
        assert keys(make_plan(finished(SETTINGS), SETTINGS).steps) == [f"await:{name}" for name in reversed(NAMES)]

    @pytest.mark.parametrize(
        ("key", "value", "changed"),
        [
            pytest.param("restricted.devices.unix-char", "allow", True, id="lifted"),
            pytest.param("restricted.devices.disk.paths", "/srv", True, id="lifted-for-a-path"),
            pytest.param("restricted.devices.disk", "block", False, id="stricter"),
            pytest.param("restricted.cluster.target", "allow", False, id="of-a-cluster"),
            pytest.param("user.note", "allow", False, id="of-people"),
        ],
    )
    def test_restrictions_that_somebody_lifted_are_put_back(self, key: str, value: str, changed: bool) -> None:
        facts = finished(SETTINGS)
        stage = facts.projects["STAGE-GBO"]
        projects = {**facts.projects, "STAGE-GBO": replace(stage, config={**stage.config, key: value})}
        planned = keys(make_plan(replace(facts, projects=projects), SETTINGS).changes)
        assert planned == (["project:STAGE-GBO"] if changed else [])

    @pytest.mark.parametrize(
        ("found", "reason"),
        [
            pytest.param({"fingerprint": "old"}, "the settings it was made with have changed", id="other-settings"),
            pytest.param(
                {"fingerprint": "old", "version": "0.1.0"},
                f"version 0.1.0 made it, and {own_version()} prepares clones differently, or settings have changed",
                id="other-version",
            ),
            pytest.param(
                {"fingerprint": "old", "version": ""},
                f"version 0.1.0 made it, and {own_version()} prepares clones differently, or settings have changed",
                id="before-versions-were-marked",
            ),
            pytest.param({"state": "building"}, "an interrupted run left it unfinished", id="building"),
            pytest.param({"state": ""}, "an interrupted run left it unfinished", id="no-state"),
            pytest.param({"status": "Error"}, "Incus reports it as broken", id="broken"),
        ],
    )
    def test_a_clone_that_is_not_as_wanted_is_replaced(self, found: dict[str, str], reason: str) -> None:
        facts = with_clones(finished(SETTINGS), cache=clone("cache", SETTINGS, **found))
        assert changes(facts) == ["remove:cache", "copy:cache", "prepare:cache", "start:cache"]
        (removal,) = (step for step in make_plan(facts, SETTINGS).steps if isinstance(step, steps.RemoveClone))
        assert removal.reason == reason

    @pytest.mark.parametrize("status", ["Stopped", "Frozen"])
    def test_a_prepared_clone_that_does_not_run_is_started_as_it_is(self, status: str) -> None:
        facts = with_clones(finished(SETTINGS), cache=clone("cache", SETTINGS, status=status))
        assert changes(facts) == ["start:cache"]

    @pytest.mark.parametrize("status", ["Running", "Ready"])
    def test_a_running_clone_is_not_started(self, status: str) -> None:
        assert changes(with_clones(finished(SETTINGS), cache=clone("cache", SETTINGS, status=status))) == []

    @pytest.mark.parametrize(
        ("facts", "reason"),
        [
            pytest.param(without_bridge(), "the bridge is made again", id="bridge"),
            pytest.param(
                finished(SETTINGS, detached=frozenset(NAMES)), "its interface is not on the bridge", id="interface"
            ),
        ],
    )
    def test_clones_that_are_off_the_bridge_are_put_on_it_and_keep_their_data(self, facts: Facts, reason: str) -> None:
        plan = make_plan(facts, SETTINGS)
        attached = {step.subject: step.reason for step in plan.steps if isinstance(step, steps.AttachClone)}
        assert attached == dict.fromkeys(NAMES, reason)
        assert {f"start:{name}" for name in NAMES} <= set(keys(plan.changes))
        assert not [step for step in plan.changes if isinstance(step, steps.RemoveClone | steps.CopyClone)]

    def test_recreate_replaces_what_is_as_it_should_be(self) -> None:
        assert changes(finished(only("cache")), only("cache"), recreate=True) == [
            "remove:cache",
            "copy:cache",
            "prepare:cache",
            "start:cache",
        ]

    def test_another_limit_is_set_without_a_copy(self) -> None:
        assert changes(resized(finished(SETTINGS), "tables", "5GB")) == ["resize:tables"]

    def test_a_clone_that_the_settings_no_longer_name_goes(self) -> None:
        settings = only("tables", "vault")
        facts = with_clones(finished(settings), llm=clone("llm", SETTINGS), cache=clone("cache", SETTINGS))
        assert changes(facts, settings) == ["remove:cache", "remove:llm"]

    def test_an_unmarked_instance_that_the_settings_do_not_name_is_left_alone(self) -> None:
        facts = with_clones(finished(SETTINGS), somebodys=replace(source("somebodys"), project="STAGE-GBO"))
        assert changes(facts) == []

    def test_a_container_of_another_name_is_copied_from_its_source(self) -> None:
        settings = renamed()
        facts = bare_host(settings)
        (step,) = (s for s in make_plan(facts, settings).steps if s.key == "copy:valkey")
        assert step.text == "copy valkey from cache on pool tank, limit 10GB"

    @pytest.mark.parametrize("status", ["Running", "Stopped"])
    def test_a_clone_whose_first_boot_nobody_saw_must_prove_it(self, status: str) -> None:
        facts = with_clones(finished(SETTINGS), cache=clone("cache", SETTINGS, status=status, proven=""))
        prove = {s.subject: s.prove for s in make_plan(facts, SETTINGS).steps if isinstance(s, steps.AwaitClone)}
        assert prove == {**dict.fromkeys(NAMES, False), "cache": True}

    @pytest.mark.parametrize(
        "step",
        list(make_plan(bare_host(SETTINGS), SETTINGS, recreate=True).steps),
        ids=lambda step: step.key,
    )
    def test_every_step_says_what_it_does(self, step: steps.Step) -> None:
        assert step.subject in step.text


class TestOrder:
    """What must have happened before."""

    def after(self, key: str, facts: Facts, settings: Settings = SETTINGS) -> frozenset[str]:
        plan = make_plan(facts, settings)
        found = {step.key: step.after & set(keys(plan.steps)) for step in plan.steps}
        reached, waiting = set[str](), [key]
        while waiting:
            for other in found[waiting.pop()] - reached:
                reached.add(other)
                waiting.append(other)
        return frozenset(reached)

    def test_a_clone_is_copied_then_prepared_then_started_then_awaited(self) -> None:
        facts = bare_host(SETTINGS)
        assert "copy:tables" in self.after("prepare:tables", facts)
        assert "prepare:tables" in self.after("start:tables", facts)
        assert "start:tables" in self.after("await:tables", facts)

    def test_a_stale_clone_is_removed_before_the_copy(self) -> None:
        facts = with_clones(finished(SETTINGS), cache=clone("cache", SETTINGS, state="building"))
        assert "remove:cache" in self.after("copy:cache", facts)

    def test_a_clone_that_holds_the_address_is_removed_before_the_copy(self) -> None:
        assert {"remove:cache", "remove:tables"} <= self.after("copy:cache", finished(SETTINGS), swapped())

    def test_a_copy_does_not_wait_for_removals_that_are_nothing_to_it(self) -> None:
        facts = finished(SETTINGS, clones={name: clone(name, SETTINGS, state="building") for name in NAMES})
        assert {key for key in self.after("copy:cache", facts) if key.startswith("remove:")} == {"remove:cache"}

    def test_foundations_come_before_every_copy(self) -> None:
        found = self.after("copy:tables", bare_host(SETTINGS))
        assert {"project:STAGE-GBO", "access-list:stagebr0-isolation", "network:stagebr0", "profile:default"} <= found

    def test_the_isolation_comes_before_every_start(self) -> None:
        facts = finished(SETTINGS, clones={"tables": clone("tables", SETTINGS, status="Stopped")})
        facts = replace(facts, acl={**objects.acl(SETTINGS), "name": "x", "ingress": []})
        assert "access-list:stagebr0-isolation" in self.after("start:tables", facts)

    def test_the_project_comes_before_what_names_it(self) -> None:
        """A client that may not make projects would leave a bridge behind that belongs to none."""
        for key in ("access-list:stagebr0-isolation", "network:stagebr0"):
            assert "project:STAGE-GBO" in self.after(key, bare_host(SETTINGS))

    NEEDED = frozenset(f"await:{name}" for name in ("tables", "vault", "cache", "drive", "llm"))

    def test_the_services_of_a_new_clone_wait_for_those_that_they_need_while_it_boots(self) -> None:
        assert self.after("await:system", bare_host(SETTINGS)) >= self.NEEDED
        assert not self.after("start:system", bare_host(SETTINGS)) & self.NEEDED

    @pytest.mark.parametrize(
        "change",
        [pytest.param({"boot": "full"}, id="full-boot"), pytest.param({"hooks": ("{hook}",)}, id="hooks")],
    )
    def test_where_services_cannot_wait_the_container_does(self, change: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "hook").write_text("true")
        if "hooks" in change:
            change = {"hooks": (str(tmp_path / "hook"),)}
        settings = with_container(SETTINGS, "system", **change)
        assert self.after("start:system", bare_host(settings), settings) >= self.NEEDED

    def test_a_container_that_was_stopped_starts_after_those_that_it_needs(self) -> None:
        """Its services may start as it boots: they did before."""
        stopped = {name: clone(name, SETTINGS, status="Stopped") for name in NAMES}
        assert self.after("start:system", finished(SETTINGS, clones=stopped)) >= self.NEEDED

    def test_containers_without_needs_do_not_wait_for_each_other(self) -> None:
        found = self.after("await:tables", bare_host(SETTINGS))
        assert not {key for key in found if key.split(":")[1] in set(NAMES) - {"tables"}}

    def test_a_new_limit_is_set_before_the_start(self) -> None:
        facts = with_clones(finished(SETTINGS), tables=clone("tables", SETTINGS, status="Stopped"))
        assert "resize:tables" in self.after("start:tables", resized(facts, "tables", "5GB"))


class TestNotOurs:
    """What carries no mark of this tool is not planned around, it stops the plan."""

    @pytest.mark.parametrize(
        ("facts", "named"),
        [
            pytest.param(
                bare_host(SETTINGS, projects={"STAGE-GBO": project("STAGE-GBO")}), "project STAGE-GBO", id="project"
            ),
            pytest.param(
                bare_host(SETTINGS, networks={"stagebr0": network("stagebr0", "10.0.3.1/24")}),
                "network stagebr0",
                id="network",
            ),
            pytest.param(
                bare_host(SETTINGS, acl={"name": "stagebr0-isolation", "config": None}),
                "access list stagebr0-isolation",
                id="acl",
            ),
            pytest.param(
                with_clones(finished(SETTINGS), cache=clone("cache", SETTINGS, owner="")),
                "instance cache in STAGE-GBO",
                id="instance",
            ),
            pytest.param(
                with_clones(finished(SETTINGS), cache=clone("cache", SETTINGS, owner="somebody")),
                "instance cache in STAGE-GBO",
                id="marked-by-somebody-else",
            ),
        ],
    )
    def test_it_is_named(self, facts: Facts, named: str) -> None:
        with pytest.raises(NotOurs) as caught:
            make_plan(facts, SETTINGS)
        assert named in caught.value.message
        with pytest.raises(NotOurs):
            make_plan(facts, SETTINGS, recreate=True)

    def test_everything_in_the_way_is_named_at_once(self) -> None:
        facts = bare_host(
            SETTINGS,
            projects={"STAGE-GBO": project("STAGE-GBO")},
            networks={"stagebr0": network("stagebr0", "10.0.3.1/24")},
            clones={"cache": source("cache"), "llm": source("llm")},
        )
        with pytest.raises(NotOurs) as caught:
            make_plan(facts, SETTINGS)
        assert caught.value.message.startswith(
            "project STAGE-GBO, network stagebr0, instance cache in STAGE-GBO, instance llm in STAGE-GBO"
        )


class TestProduction:
    """Production keeps its own, and its containers must be there."""

    def test_a_missing_source_is_named_with_what_there_is(self) -> None:
        facts = bare_host(SETTINGS, sources={"tables": source("tables"), "web": source("web")})
        with pytest.raises(SourceMissing) as caught:
            make_plan(facts, SETTINGS)
        assert "no container system, vault, cache, drive, llm" in caught.value.message
        assert caught.value.seen == "it has tables, web"

    def test_a_source_project_without_containers_says_so(self) -> None:
        with pytest.raises(SourceMissing, match="it has none"):
            make_plan(bare_host(SETTINGS, sources={}), SETTINGS)

    @pytest.mark.parametrize("link", ["network", "parent"])
    def test_a_bridge_that_production_hangs_on_is_refused(self, link: str) -> None:
        eth0 = {"type": "nic", "nictype": "bridged", link: "stagebr0"}
        facts = finished(SETTINGS)
        facts = replace(facts, sources={**facts.sources, "cache": source("cache", devices={"eth0": eth0})})
        with pytest.raises(ProductionProtected, match="network stagebr0 is used by production"):
            make_plan(facts, SETTINGS)

    def test_a_container_of_production_that_is_not_copied_counts_too(self) -> None:
        facts = finished(SETTINGS)
        web = source("web", devices={"eth0": {"type": "nic", "network": "stagebr0"}})
        with pytest.raises(ProductionProtected, match="stagebr0"):
            make_plan(replace(facts, sources={**facts.sources, "web": web}), SETTINGS)

    @pytest.mark.parametrize(
        ("address", "overlaps"),
        [
            pytest.param("10.0.2.1/24", True, id="the-same"),
            pytest.param("10.0.2.129/25", True, id="inside"),
            pytest.param("10.0.1.1/22", True, id="around"),
            pytest.param("10.0.4.1/24", False, id="beside"),
            pytest.param("none", False, id="no-addresses"),
        ],
    )
    def test_a_subnet_that_another_network_has_is_refused(self, address: str, overlaps: bool) -> None:
        settings = replace(SETTINGS, network=NetworkSettings(address=IPv4Interface("10.0.2.1/24")))
        lone = ContainerSettings("tables", IPv4Address("10.0.2.11"))
        settings = replace(settings, containers={"tables": lone})
        facts = bare_host(settings, networks={"prodbr0": network("prodbr0", address)})
        if overlaps:
            with pytest.raises(ProductionProtected, match=r"overlaps network prodbr0") as caught:
                make_plan(facts, settings)
            assert caught.value.seen == f"prodbr0 has {address}"
        else:
            assert make_plan(facts, settings).changes

    def test_an_unmanaged_interface_is_no_hindrance(self) -> None:
        wire = replace(network("eth0", ""), config={}, managed=False)
        assert make_plan(bare_host(SETTINGS, networks={"eth0": wire}), SETTINGS).changes


class TestRoom:
    """Copying starts only with the floor left free, in the pool and under it."""

    def test_a_full_pool_is_refused_with_both_sizes(self) -> None:
        facts = bare_host(SETTINGS, rooms={"tank": Room(pool(free=4 * GIB), None)})
        with pytest.raises(NoRoom) as caught:
            make_plan(facts, SETTINGS)
        assert caught.value.message == "too little room on pool tank: 4 GiB free, 20 GiB must stay free"
        assert caught.value.seen == "pool tank (btrfs) uses 196 GiB of 200 GiB"

    def test_a_full_file_system_under_an_empty_pool_is_refused(self) -> None:
        facts = bare_host(SETTINGS, rooms={"tank": Room(pool(), 1 * GIB)})
        with pytest.raises(NoRoom, match="the host's file system that holds the file of pool tank: 1 GiB free"):
            make_plan(facts, SETTINGS)

    @pytest.mark.parametrize(
        ("free", "enough"), [(20 * GIB, True), (20 * GIB - 1, False)], ids=["the-floor", "a-byte-less"]
    )
    def test_the_floor_itself_is_enough(self, free: int, enough: bool) -> None:
        facts = bare_host(SETTINGS, rooms={"tank": Room(pool(free=free), free)})
        if enough:
            assert make_plan(facts, SETTINGS).changes
        else:
            with pytest.raises(NoRoom):
                make_plan(facts, SETTINGS)

    def test_full_copies_count_all_together(self) -> None:
        settings = only("tables", "llm")
        room = Room(pool(driver="dir", free=23 * GIB), None)
        facts = bare_host(settings, rooms={"tank": room}, full_copy_bytes={"tables": 2 * GIB, "llm": GIB})
        assert make_plan(facts, settings).changes
        facts = replace(facts, full_copy_bytes={"tables": 2 * GIB, "llm": GIB + 1})
        with pytest.raises(NoRoom, match=r"20 GiB must stay free, 3 GiB to copy"):
            make_plan(facts, settings)

    def test_what_the_old_clones_give_back_is_waited_for_before_anything_is_copied(self) -> None:
        facts = with_clones(finished(SETTINGS, rooms={"tank": Room(pool(free=GIB), None)}))
        plan = make_plan(facts, SETTINGS, recreate=True)
        (room,) = (step for step in plan.steps if isinstance(step, steps.AwaitRoom))
        removals = {step.key for step in plan.steps if isinstance(step, steps.RemoveClone)}
        copies = [step for step in plan.steps if isinstance(step, steps.CopyClone)]
        assert (room.subject, len(removals), len(copies)) == ("tank", 6, 6)
        assert removals <= room.after
        assert all(room.key in copy.after for copy in copies)

    def test_where_there_is_room_nothing_is_waited_for(self) -> None:
        plan = make_plan(finished(SETTINGS), SETTINGS, recreate=True)
        assert not [step for step in plan.steps if isinstance(step, steps.AwaitRoom)]

    def test_a_floor_that_the_whole_pool_can_not_have_costs_no_clone(self) -> None:
        facts = finished(SETTINGS, rooms={"tank": Room(pool(free=GIB), None)})
        with pytest.raises(NoRoom, match="201 GiB must stay free"):
            make_plan(facts, replace(SETTINGS, disk_floor="201GiB"), recreate=True)

    def test_nothing_to_copy_needs_no_room(self) -> None:
        full = {"tank": Room(pool(free=0), 0)}
        facts = with_clones(finished(SETTINGS, rooms=full), cache=clone("cache", SETTINGS, status="Stopped"))
        assert changes(facts) == ["start:cache"]

    def test_each_pool_is_looked_at(self) -> None:
        settings = only("tables", "llm")
        own_root = {"root": {"type": "disk", "path": "/", "pool": "fast"}}
        facts = bare_host(
            settings,
            sources={"tables": source("tables"), "llm": source("llm", devices=own_root)},
            rooms={"tank": Room(pool(), None), "fast": Room(pool("fast", free=0), None)},
        )
        with pytest.raises(NoRoom, match="pool fast"):
            make_plan(facts, settings)


class TestNotes:
    """What a person should know before it is done."""

    def notes(self, facts: Facts, settings: Settings = SETTINGS) -> str:
        return "\n".join(make_plan(facts, settings).notes)

    def test_what_a_clone_will_not_have_is_said(self) -> None:
        settings = only("tables")
        proxy = {"type": "proxy", "connect": "tcp:127.0.0.1:80"}
        origin = source("tables", config={"raw.lxc": "x"}, devices={"web": proxy})
        assert "tables: the clone will not have config raw.lxc, device web (proxy tcp:127.0.0.1:80)" in self.notes(
            bare_host(settings, sources={"tables": origin}), settings
        )

    def test_a_pool_without_copy_on_write_is_said_with_its_bytes(self) -> None:
        settings = only("tables")
        room = {"tank": Room(pool(driver="dir"), None)}
        facts = bare_host(settings, rooms=room, full_copy_bytes={"tables": 3 * GIB})
        assert "tables: pool tank (dir) has no copy-on-write: a full copy of 3 GiB" in self.notes(facts, settings)

    def test_room_below_a_pool_s_file_that_cannot_be_seen_is_said_to_be_so(self) -> None:
        settings = only("tables")
        seen, unseen = (bare_host(settings, rooms={"tank": Room(pool(), free)}) for free in (100 * GIB, None))
        assert "pool tank is a file, and the room" in self.notes(unseen, settings)
        assert "pool tank is a file" not in self.notes(seen, settings)

    def test_bytes_that_cannot_be_seen_are_said_to_be_unknown(self) -> None:
        settings = only("tables")
        facts = bare_host(settings, rooms={"tank": Room(pool(driver="dir"), None)}, full_copy_bytes={"tables": None})
        assert "an unknown number of bytes" in self.notes(facts, settings)

    @pytest.mark.parametrize("driver", ["btrfs", "zfs", "lvm", "ceph"])
    def test_a_pool_with_copy_on_write_costs_nothing_worth_saying(self, driver: str) -> None:
        facts = bare_host(SETTINGS, rooms={"tank": Room(pool(driver=driver), None)})
        assert "copy-on-write" not in self.notes(facts)

    def test_which_kind_of_isolation_the_project_has_is_a_detail(self) -> None:
        def details(facts: Facts) -> str:
            plan = make_plan(facts, SETTINGS)
            assert "features.networks" not in "\n".join(plan.notes)
            return "\n".join(plan.details)

        assert "features.networks=true is requested" in details(bare_host(SETTINGS))
        assert "has features.networks=false" in details(finished(SETTINGS))
        assert details(changed_project(**{"features.networks": "true"})) == ""


@pytest.mark.parametrize("source_name", ["", "pg-main"])
def test_an_opened_capsule_is_copied_from_clones_and_never_from_production(source_name: str) -> None:
    """Whatever production's containers are called. What a capsule lacks can't be had from there."""
    stage = with_container(SETTINGS, "tables", source=source_name)
    settings = as_opened(replace(stage, project=f"{stage.project}-CAPSULE-1"))
    with pytest.raises(CapsuleMissing, match="lacks system, tables"):
        make_plan(bare_host(settings), settings)
    clones = {each.source_name: clone(name, stage) for name, each in settings.containers.items()}
    opening = replace(settings, source_project=stage.project)
    assert "copy:tables" in changes(bare_host(opening, sources=clones), opening)
