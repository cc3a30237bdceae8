"""How each step is done: what is written in which order, and what is never written."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest
from fakes import Journal, bare_host, clone, copied, finished, network, project, refused
from fakes import pool as tank
from msgspec.structs import replace

from pytest_stagegbo.apply import copying
from pytest_stagegbo.apply.copying import LARGEST_LIMIT
from pytest_stagegbo.apply.removal import remove_clone
from pytest_stagegbo.apply.step_runner import StepRunner
from pytest_stagegbo.desired import marks, objects
from pytest_stagegbo.desired.allowlist import clone_config
from pytest_stagegbo.errors import LimitTooSmall, NotOurs, OperationFailed, ServerRefused, StageMissing, UnsafeClone
from pytest_stagegbo.guest import PLACE, STAMP, boot_folder_of, variable
from pytest_stagegbo.incus.localhost import LocalHost
from pytest_stagegbo.plan import steps
from pytest_stagegbo.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Instance, Reader, Writer

SETTINGS = Settings()
TABLES = SETTINGS.containers["tables"]
COPY = steps.CopyClone(subject="tables", container=TABLES, pool="tank", limit="10GB", location="", dropped=())
PREPARE = steps.PrepareClone(subject="tables", container=TABLES)
START = steps.StartClone(subject="tables")
REMOVE = steps.RemoveClone(subject="tables", reason="a test")


class Stage:
    """A stage's project as reader and writer see it. Any other call fails the test."""

    def __init__(self, *clones: Instance, own_networks: bool = False) -> None:
        self.clones = {found.name: found for found in clones}
        self.config = {"features.networks": "true" if own_networks else "false"}
        self.takes_own_networks = True
        self.log: list[str] = []
        self.under_way = 0
        self.starting = False
        self.on: dict[str, Callable[..., None]] = {}
        """What else happens at a write; may raise."""
        self.sources = dict(bare_host(SETTINGS).sources)

    def write(self, verb: str, name: str, *details: Any) -> None:
        self.log.append(" ".join([verb, name, *(str(detail) for detail in details if isinstance(detail, str))]))
        if verb in self.on:
            self.on[verb](name, *details)

    # -- reader

    endpoint = "/nowhere/unix.socket"

    def host(self) -> LocalHost:
        return LocalHost(self.endpoint)

    def projects(self) -> Mapping[str, Any]:
        return {"STAGE-GBO": project("STAGE-GBO", **self.config)}

    def instance(self, project: str, name: str) -> Instance | None:
        if project == "default":
            return self.sources.get(name)
        assert project == "STAGE-GBO"
        return self.clones.get(name)

    def pool(self, name: str) -> Any:
        return tank(name)

    def snapshots(self, project: str, name: str) -> frozenset[str]:
        assert project == "STAGE-GBO"
        return frozenset(line.split()[2] for line in self.log if line.startswith(f"snapshot {name} "))

    def is_worked_on(self, project: str, name: str) -> bool:
        """For as many looks as `under_way` says."""
        assert (project, name) == ("STAGE-GBO", "tables")
        self.under_way -= 1
        if self.under_way < 0 and self.starting:
            self.clones[name] = replace(self.clones[name], status="Running")
        return self.under_way >= 0

    # -- writer

    @property
    def scope(self) -> Any:
        return SimpleNamespace(project="STAGE-GBO")

    def snapshot_instance(self, name: str, snapshot: str) -> None:
        self.write("snapshot", name, snapshot)

    def create_project(self, own_networks: Mapping[str, str], shared: Mapping[str, str], description: str) -> bool:
        assert description
        assert shared["features.networks"] == "false"
        self.write("project", own_networks["features.networks"])
        return self.takes_own_networks

    def copy_instance(
        self,
        name: str,
        source: str,
        *,
        config: Mapping[str, str],
        devices: Mapping[str, Any],
        target: str = "",
        architecture: str = "",
        on_progress: object = None,
    ) -> None:
        assert not architecture, "nothing is copied to another member"
        assert on_progress is None, "nothing is copied in full"
        assert config[marks.STATE] == marks.BUILDING
        self.write("copy", name, source, target, devices)
        self.clones[name] = replace(clone(name, SETTINGS, status="Stopped"), config=dict(config))

    def set_instance_config(self, name: str, config: Mapping[str, str]) -> None:
        self.write("config", name, *(f"{key}={value}" for key, value in config.items()))

    def set_instance_devices(self, name: str, devices: Mapping[str, Any]) -> None:
        self.write("limit", name, devices["root"]["size"])

    def set_state(self, name: str, action: str, *, force: bool = False) -> None:
        self.write(action, name, *(["by force"] if force else []))

    def delete_instance(self, name: str) -> None:
        self.write("delete", name)
        del self.clones[name]

    def place_at_first_start(self, name: str, path: str, content: str, *, mode: int) -> None:
        assert content
        assert mode == 0o755
        self.write("file", name, path)

    def put_file(self, name: str, path: str, content: bytes, *, mode: int) -> None:
        assert content
        assert mode
        self.write("file", name, path)

    def delete_file(self, name: str, path: str) -> None:
        self.write("unlink", name, path)


def runner(stage: Stage, facts: Facts | None = None, journal: Journal | None = None) -> StepRunner:
    reader, writer = cast("Reader", stage), cast("Writer", stage)
    return StepRunner(reader, writer, facts or bare_host(SETTINGS), SETTINGS, None, journal or Journal())


def fresh_copy(**config: str) -> Instance:
    origin = bare_host(SETTINGS).sources["tables"]
    made = copied(origin, clone_config(origin, TABLES, SETTINGS, managed=True, golden=False), SETTINGS)
    return replace(made, expanded_config={**made.expanded_config, **config})


class TestPrepare:
    def test_a_clone_gets_its_file_before_its_snapshot_and_is_not_marked_before_it_is_proven(self) -> None:
        stage = Stage(copy := fresh_copy())
        runner(stage).do(PREPARE)
        assert stage.log == [f"file tables {boot_folder_of(copy.config)}/boot", "snapshot tables stagegbo-clean"]

    def test_only_the_run_that_prepared_a_clone_starts_it_before_it_is_marked(self) -> None:
        stage = Stage(fresh_copy())
        preparing = runner(stage)
        preparing.do(PREPARE)
        with pytest.raises(UnsafeClone, match="was not made safe"):
            runner(stage).do(START)
        preparing.do(START)
        assert stage.log[-1] == "start tables"

    def test_no_stamp_is_placed(self) -> None:
        stage = Stage(fresh_copy())
        runner(stage).do(PREPARE)
        assert f"file tables {STAMP}" not in stage.log

    def test_a_clone_that_kept_something_dangerous_is_left_as_it_is(self) -> None:
        stage = Stage(fresh_copy(**{"security.privileged": "true"}))
        with pytest.raises(UnsafeClone) as caught:
            runner(stage).do(PREPARE)
        assert caught.value.seen == "config security.privileged"
        assert stage.log == []

    def test_a_clone_that_runs_already_is_not_taken_for_safe(self) -> None:
        stage = Stage(replace(fresh_copy(), status="Running"))
        with pytest.raises(UnsafeClone, match="is running although it was not made safe"):
            runner(stage).do(PREPARE)
        assert stage.log == []

    def test_a_failure_leaves_the_clone_unmarked(self) -> None:
        def fail(*_: object) -> None:
            raise refused(500)

        stage = Stage(fresh_copy())
        stage.on["file"] = fail
        with pytest.raises(ServerRefused):
            runner(stage).do(PREPARE)
        assert [line for line in stage.log if line.startswith("config")] == []


def refusing_to_start(why: str) -> Stage:
    def refuse(*_: Any) -> None:
        raise refused(200, why)

    stage = Stage(clone("tables", SETTINGS, status="Stopped"))
    stage.on["start"] = refuse
    return stage


class TestStart:
    @pytest.mark.parametrize(
        ("status", "done"),
        [("Stopped", ["start tables"]), ("Frozen", ["unfreeze tables"]), ("Running", []), ("Ready", [])],
    )
    def test_a_prepared_clone_is_brought_to_run(self, status: str, done: list[str]) -> None:
        stage = Stage(clone("tables", SETTINGS, status=status))
        runner(stage).do(START)
        assert stage.log == done

    @pytest.mark.parametrize("state", ["building", ""])
    def test_an_unprepared_clone_is_never_started(self, state: str) -> None:
        stage = Stage(clone("tables", SETTINGS, status="Stopped", state=state))
        with pytest.raises(UnsafeClone, match="was not made safe"):
            runner(stage).do(START)
        assert stage.log == []

    def test_a_clone_that_vanished_is_said(self) -> None:
        with pytest.raises(StageMissing, match="tables vanished"):
            runner(Stage()).do(START)

    def test_one_that_a_killed_run_had_started_meanwhile_is_fine(self) -> None:
        stage = refusing_to_start("The instance is already running")
        runner(stage).do(START)
        assert stage.log == ["start tables"]

    def test_any_other_refusal_is_an_error(self) -> None:
        with pytest.raises(ServerRefused, match="no cgroups"):
            runner(refusing_to_start("no cgroups")).do(START)


class TestCopiesOfGoldenClones:
    """They need no preparing: their files are in the golden clone, and they get their network configuration."""

    GOLDEN = bare_host(SETTINGS, golden="STAGE-GBO-GOLDEN")
    COPY = replace(COPY, unconfirmed=True)

    def test_one_is_told_its_place_and_started_as_it_is(self) -> None:
        stage = Stage()
        performing = runner(stage, self.GOLDEN)
        performing.do(self.COPY)
        place = stage.clones["tables"].config[f"environment.{PLACE}"].partition(":")[2]
        assert place == variable(TABLES, SETTINGS, golden=True).partition(":")[2] != ""
        performing.do(START)
        assert [line.split()[0] for line in stage.log] == ["copy", "start"]

    def test_who_did_not_see_it_copied_whole_does_not_start_it(self) -> None:
        stage = Stage()
        runner(stage, self.GOLDEN).do(self.COPY)
        with pytest.raises(UnsafeClone, match="was not made safe"):
            runner(stage, self.GOLDEN).do(START)

    def test_one_whose_copying_failed_is_not_started(self) -> None:
        def fail(*_: object) -> None:
            raise refused(500)

        stage = Stage(fresh_copy())
        stage.on["copy"] = fail
        performing = runner(stage, self.GOLDEN)
        with pytest.raises(ServerRefused):
            performing.do(self.COPY)
        with pytest.raises(UnsafeClone, match="was not made safe"):
            performing.do(START)

    def test_one_that_has_something_dangerous_is_not_started(self) -> None:
        stage = Stage()
        performing = runner(stage, self.GOLDEN)
        performing.do(self.COPY)
        stage.clones["tables"] = fresh_copy(**{"security.privileged": "true"})
        with pytest.raises(UnsafeClone, match="must not be started"):
            performing.do(START)

    def test_a_place_is_not_taken_over_from_production(self) -> None:
        origin = bare_host(SETTINGS).sources["tables"]
        key = f"environment.{PLACE}"
        origin = replace(origin, config={**origin.config, key: "x"}, expanded_config={key: "x"})
        wanted = clone_config(origin, TABLES, SETTINGS, managed=True, golden=False)
        assert wanted.config[key].endswith(":")
        assert wanted.dropped == (f"config {key}",)


class TestRemove:
    @pytest.mark.parametrize(
        ("status", "done"),
        [
            pytest.param("Stopped", ["delete tables"], id="stopped"),
            pytest.param("Error", ["delete tables"], id="broken"),
            pytest.param(
                "Running",
                ["config tables user.stagegbo.state=building", "stop tables by force", "delete tables"],
                id="running",
            ),
            pytest.param(
                "Frozen",
                ["config tables user.stagegbo.state=building", "stop tables by force", "delete tables"],
                id="frozen",
            ),
        ],
    )
    def test_a_clone_is_stopped_if_it_can_be_and_deleted(self, status: str, done: list[str]) -> None:
        stage = Stage(clone("tables", SETTINGS, status=status))
        runner(stage).do(REMOVE)
        assert stage.log == done

    def test_what_a_killed_run_had_asked_for_ends_first(self) -> None:
        stage = Stage(clone("tables", SETTINGS, status="Stopped"))
        stage.under_way = 3
        runner(stage).do(REMOVE)
        assert stage.log == ["delete tables"]
        assert stage.under_way == -1

    def test_a_start_that_a_killed_run_had_asked_for_is_seen_when_it_has_ended(self) -> None:
        stage = Stage(clone("tables", SETTINGS, status="Stopped"))
        stage.under_way, stage.starting = 2, True
        runner(stage).do(REMOVE)
        assert stage.log == ["config tables user.stagegbo.state=building", "stop tables by force", "delete tables"]

    def test_what_does_not_end_keeps_it_from_being_removed(self) -> None:
        stage = Stage(clone("tables", SETTINGS, status="Stopped"))
        stage.under_way = 1000
        hurried = replace(SETTINGS, timeouts=replace(SETTINGS.timeouts, operation=0.1))
        with pytest.raises(OperationFailed, match="an earlier operation on it goes on"):
            remove_clone(cast("Reader", stage), cast("Writer", stage), hurried, "tables")
        assert stage.log == []

    def test_what_is_gone_is_removed(self) -> None:
        stage = Stage()
        runner(stage).do(REMOVE)
        assert stage.log == []

    def test_what_is_not_ours_is_left_alone(self) -> None:
        stage = Stage(clone("tables", SETTINGS, owner=""))
        with pytest.raises(NotOurs):
            remove_clone(cast("Reader", stage), cast("Writer", stage), SETTINGS, "tables")
        assert stage.log == []


class TestProject:
    CREATE = steps.SetProject(subject="STAGE-GBO", create=True)

    def test_networks_of_its_own_are_asked_for_first(self) -> None:
        stage = Stage()
        runner(stage).do(self.CREATE)
        assert stage.log == ["project true"]

    def test_that_a_server_refuses_them_without_ovn_is_a_detail(self, caplog: pytest.LogCaptureFixture) -> None:
        stage, journal = Stage(), Journal()
        stage.takes_own_networks = False
        with caplog.at_level(logging.DEBUG, "stagegbo.provision"):
            runner(stage, journal=journal).do(self.CREATE)
        assert journal.notes == []
        assert "gets features.networks=false and access to network stagebr0 only" in caplog.text

    def test_a_restriction_that_somebody_lifted_is_put_back_and_what_people_noted_stays(self) -> None:
        stage, written = Stage(), dict[str, str]()
        stage.replace_project = lambda config, _: written.update(config)  # type: ignore[attr-defined]
        facts = finished(SETTINGS)
        found = facts.projects["STAGE-GBO"]
        more = {"restricted.devices.unix-char": "allow", "user.note": "kept"}
        facts = replace(facts, projects={"STAGE-GBO": replace(found, config={**found.config, **more})})
        runner(stage, facts).do(steps.SetProject(subject="STAGE-GBO", create=False))
        assert written == {**found.config, "user.note": "kept"}

    def test_another_refusal_is_an_error(self) -> None:
        def refuse(*_: object) -> None:
            raise refused(400, "no")

        stage = Stage()
        stage.on["project"] = refuse
        with pytest.raises(ServerRefused):
            runner(stage).do(self.CREATE)
        assert stage.log == ["project true"]


class TestMadeByAKilledRun:
    """Its request was under way while this run looked: what is there now is used if it was made for this stage."""

    FACTS = bare_host(SETTINGS)
    STEPS: ClassVar = {
        "project": steps.SetProject(subject="STAGE-GBO", create=True),
        "acl": steps.SetAcl(subject="stagebr0-isolation", create=True),
        "network": steps.SetNetwork(subject="stagebr0", create=True),
    }

    @pytest.fixture
    def daemon(self) -> dict[str, dict[str, Any]]:
        """The config of each, by its kind, as the daemon has it now."""
        return {
            "project": dict(objects.project(SETTINGS, own_networks=False)),
            "acl": dict(objects.acl(SETTINGS, ())["config"]),
            "network": {"kept": "", **objects.network(SETTINGS)},
        }

    def run(self, daemon: dict[str, dict[str, Any]], kind: str, said: str) -> list[tuple[str, Any]]:
        """What was written, by the kind of object."""
        sent: list[tuple[str, Any]] = []

        def create(*_: object) -> None:
            raise refused(400, said)

        reader = SimpleNamespace(
            endpoint=Stage.endpoint,
            host=lambda: LocalHost(Stage.endpoint),
            projects=lambda: {"STAGE-GBO": project("STAGE-GBO", **daemon["project"])},
            acl=lambda _: {"config": daemon["acl"]},
            network=lambda name: network(name, **{"address": "", **daemon["network"]}),
        )
        writer = SimpleNamespace(
            scope=SimpleNamespace(acl="stagebr0-isolation"),
            create_project=create,
            create_acl=create,
            create_network=create,
            replace_project=lambda config, _: sent.append(("project", config)),
            replace_acl=lambda body: sent.append(("acl", body["config"])),
            replace_network=lambda config, _: sent.append(("network", config)),
        )
        StepRunner(cast("Reader", reader), cast("Writer", writer), self.FACTS, SETTINGS, None, Journal()).do(
            self.STEPS[kind]
        )
        return sent

    @pytest.mark.parametrize("kind", STEPS)
    def test_one_of_this_stage_is_brought_up_to_date(self, daemon: dict[str, dict[str, Any]], kind: str) -> None:
        sent = self.run(daemon, kind, f"The {kind} already exists")
        assert [each for each, _ in sent] == [kind]
        assert daemon[kind].items() <= sent[0][1].items()

    @pytest.mark.parametrize("kind", STEPS)
    @pytest.mark.parametrize("key", [marks.OWNER, marks.PROJECT])
    def test_one_of_somebody_else_is_an_error(self, daemon: dict[str, dict[str, Any]], kind: str, key: str) -> None:
        daemon[kind][key] = "another"
        with pytest.raises(ServerRefused):
            self.run(daemon, kind, f"The {kind} already exists")

    @pytest.mark.parametrize("kind", STEPS)
    def test_another_refusal_is_an_error(self, daemon: dict[str, dict[str, Any]], kind: str) -> None:
        with pytest.raises(ServerRefused):
            self.run(daemon, kind, "no")


class TestLimit:
    """A limit below what the source references is an error with both sizes, found without booting anything."""

    REFERENCED = 30 * 10**9

    def quota(self, stage: Stage, referenced: int) -> None:
        def copy(name: str, source: str, target: str, devices: Mapping[str, Any]) -> None:
            assert (name, source, target) == ("tables", "tables", "")
            if devices["root"]["size"]:
                raise OperationFailed("copying failed", seen="Disk quota exceeded")

        def limit(_: str, size: str) -> None:
            if int(size) < referenced:
                raise OperationFailed("changing failed", seen="Disk quota exceeded")

        stage.on |= {"copy": copy, "limit": limit}

    def test_both_sizes_are_named(self) -> None:
        stage = Stage()
        self.quota(stage, self.REFERENCED)
        with pytest.raises(LimitTooSmall) as caught:
            runner(stage).do(COPY)
        assert "the disk limit 10GB (9.31 GiB) is below the about 27.9 GiB that default/tables" in caught.value.message
        assert "containers.tables.disk_limit" in caught.value.remedy

    def test_nothing_is_left_over_and_nothing_was_started(self) -> None:
        stage = Stage()
        self.quota(stage, self.REFERENCED)
        with pytest.raises(LimitTooSmall):
            runner(stage).do(COPY)
        assert stage.clones == {}
        assert {line.split()[0] for line in stage.log} == {"copy", "limit", "delete"}

    def test_a_driver_that_takes_no_limit_at_all_is_not_asked_for_ever(self) -> None:
        stage = Stage()
        self.quota(stage, LARGEST_LIMIT * 1000)
        with pytest.raises(LimitTooSmall, match="is below the bytes that default/tables already references"):
            runner(stage).do(COPY)
        assert stage.clones == {}

    def test_another_failure_of_a_copy_is_passed_on(self) -> None:
        def fail(*_: object) -> None:
            raise OperationFailed("copying failed", seen="no space left on device")

        stage = Stage()
        stage.on["copy"] = fail
        with pytest.raises(OperationFailed, match="no space left"):
            runner(stage).do(COPY)
        assert stage.log == ["copy tables tables "]


def fail_with(text: str) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise refused(500, text)

    return fail


class Changing(Stage):
    """Beside a source that somebody gives a device once the facts are there. Incus refuses what does not name it."""

    def __init__(self, *clones: Instance, changes: int = 1) -> None:
        super().__init__(*clones)
        self.changes = changes

    def look(self, devices: Mapping[str, Any]) -> None:
        has = self.sources["tables"].devices
        if self.changes:
            self.changes -= 1
            has = {**has, f"web{self.changes}": {"type": "proxy"}}
            self.sources["tables"] = replace(self.sources["tables"], devices=has)
        missing = has.keys() - devices.keys()
        if missing:
            raise refused(500, f"Invalid device {missing}: Proxy devices are forbidden")

    def copy_instance(self, name: str, source: str, *, devices: Mapping[str, Any], **others: Any) -> None:
        super().copy_instance(name, source, devices=devices, **others)
        self.look(devices)

    def refresh_instance(self, name: str, source: str, *, devices: Mapping[str, Any], **_: Any) -> None:
        self.write("refresh", name, source)
        self.look(devices)


class TestSourceThatSomebodyChangesMeanwhile:
    REFRESH = steps.RefreshClone(subject="tables", copy=COPY, reason="a test")

    def test_it_is_copied_as_it_is_then(self) -> None:
        stage, journal = Changing(), Journal()
        runner(stage, journal=journal).do(COPY)
        assert stage.log == ["copy tables tables "] * 2
        assert journal.notes == ["somebody changed tables after it was looked at: it is copied as it is now"]

    def test_its_files_are_brought_as_it_is_then(self) -> None:
        stage = Changing(fresh_copy())
        runner(stage).do(self.REFRESH)
        assert [line for line in stage.log if line.startswith("refresh")] == ["refresh tables tables"] * 2

    def test_one_that_has_not_changed_is_refused_for_another_reason(self) -> None:
        stage = Changing(changes=0)
        stage.on["copy"] = fail_with("no")
        with pytest.raises(ServerRefused):
            runner(stage).do(COPY)
        assert stage.log == ["copy tables tables "]

    def test_nobody_waits_for_one_that_changes_without_end(self) -> None:
        stage = Changing(changes=9)
        with pytest.raises(ServerRefused, match="Proxy devices are forbidden"):
            runner(stage).do(COPY)
        assert stage.log == ["copy tables tables "] * 2


def test_a_step_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(TypeError, match="no way to do Step"):
        runner(Stage(), finished(SETTINGS)).do(steps.Step(subject="x"))


def test_a_full_copy_says_how_many_bytes_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the daemon says it."""
    monkeypatch.setattr(copying, "NEWS", 0.0)
    journal = Journal()

    class Copying(Stage):
        def copy_instance(self, *_: object, on_progress: Any = None, **__: object) -> None:
            on_progress("Transferring instance: tables: 1.20GB (85.11MB/s)")
            on_progress("")

    facts = bare_host(SETTINGS)
    step = steps.CopyClone(
        subject="tables", container=TABLES, pool="stage", limit="", location="", dropped=(), in_full=True
    )
    runner(Copying(), facts, journal).do(step)
    assert journal.notes == ["copying tables: 1.20GB (85.11MB/s)"]
