"""A stage for every worker: slots copied from a golden copy, leased by processes, refreshed, taken away."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from tests.lab.inner_pytest import PROJECT, wait_until

from pytest_stagegbo.apply import step_runner
from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import BaselineMissing, ServerRefused
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.slots.fleet import Fleet
from pytest_stagegbo.slots.lease import take

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.lab.conftest import InNetwork
    from tests.lab.inner_pytest import Plug

    from pytest_stagegbo.incus import Instance

pytestmark = pytest.mark.lab

GOLDEN = f"{PROJECT}-GOLDEN"
BOTH = """
    import time
    from pathlib import Path
    @pytest.mark.parametrize("own", ["one", "two"])
    def test_side_by_side(own, keys, stage_gbo, stage_settings):
        keys("SET", "mine", own)
        (Path(__file__).parent / own).touch()
        other = Path(__file__).parent / ("two" if own == "one" else "one")
        deadline = time.monotonic() + 60
        while not other.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert other.exists()
        assert keys("GET", "mine") == own
        assert str(stage_settings.containers["cache"].address) == stage_gbo.cache.host
        note(f"{stage_gbo.project} {stage_gbo.cache.host}")
"""


def fleet(plug: Plug) -> Fleet:
    return Fleet(plug.engine.settings, Connection(plug.engine.settings.incus))


def provision(plug: Plug) -> None:
    done = plug.stagegbo("provision", "--slots", "2")
    assert done.returncode == 0, done.stderr


def clones(plug: Plug, project: str) -> Mapping[str, Instance]:
    return plug.engine.reader.instances(project)


@pytest.mark.both_lts
def test_two_workers_use_a_stage_each(plug: Plug) -> None:
    plug.write(test_both=BOTH)
    result = plug.run("-n", "2", "--stage-slots=2", "test_both.py")
    result.assert_outcomes(passed=2)
    assert sorted(plug.notes) == [f"{PROJECT} 10.0.5.13", f"{PROJECT}-1 10.0.6.13"]
    slot = clones(plug, f"{PROJECT}-1")
    golden = clones(plug, GOLDEN)
    assert slot.keys() == golden.keys() == {"cache", "drive"}
    for name in slot:
        assert slot[name].config[marks.SOURCE] == f"{GOLDEN}/{name}"
        assert golden[name].config[marks.SOURCE] == f"default/{name}"
        assert slot[name].config[marks.GENERATION] == golden[name].config[marks.GENERATION]
        assert slot[name].config[marks.PROVEN] == "true"
        assert golden[name].status == "Stopped"
    result.stdout.fnmatch_lines("*2 slots; memory: *")


@pytest.mark.both_lts
def test_a_slot_is_clean_and_has_addresses_of_its_own(plug: Plug) -> None:
    provision(plug)
    engine = fleet(plug).engine(1)
    assert engine.execute("drive", ["find", "/opt/gbo/data/minio", "-mindepth", "1", "-name", "*.gbai"]).stdout == ""
    hosts = engine.execute("cache", ["cat", "/etc/hosts"]).stdout
    assert "10.0.6.14 drive" in hosts
    assert "10.0.105." not in hosts
    assert "10.0.6.14" in engine.execute("cache", ["bridge", "fdb", "show", "dev", "twin0"]).stdout


@pytest.mark.both_lts
def test_a_slot_goes_back_to_its_golden_copy(
    plug: Plug, in_network: InNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no snapshot; the stage itself has, since it may have been there before there was a golden copy."""
    plug.settings('[containers.cache]\nreset = "restore"')
    provision(plug)
    for number, snapshots in enumerate((["stagegbo-clean"], [])):
        engine = fleet(plug).engine(number)
        assert list(engine.reader.snapshots(engine.settings.project, "cache")) == snapshots
        engine.execute("cache", ["sh", "-c", "rm /etc/hostname; echo x >/opt/gbo/left"])
        done = plug.stagegbo(*(("--slot", "1") if number else ()), "reset", "cache", "--json")
        assert json.loads(done.stdout)["methods"]["cache"]["method"] == "restore", done.stderr
        left = engine.execute("cache", ["ls", "/etc/hostname", "/opt/gbo"]).stdout
        assert "/etc/hostname" in left
        assert "left" not in left
        clone = engine.clone("cache")
        assert (clone.status, clone.config[marks.PROVEN]) == ("Running", "true")
    monkeypatch.setattr(step_runner, "burdens", lambda *_: True)  # a volume that is deleted makes production wait
    settings = plug.engine.settings
    restored = {**settings.containers, "cache": replace(settings.containers["cache"], reset="restore")}
    settings = replace(settings, containers=MappingProxyType(restored))
    engine = Fleet(settings, Connection(settings.incus)).engine(1)
    engine.execute("cache", ["sh", "-c", "rm /etc/hostname; echo x >/opt/gbo/left"])
    in_network(engine.reset, ["cache"])
    engine.close()
    same = engine.clone("cache")
    assert same.config["volatile.uuid"] == clone.config["volatile.uuid"], "it was not copied again"
    assert same.config[marks.PROVEN] == "true"
    assert engine.execute("cache", ["ls", "/etc/hostname", "/opt/gbo/left"]).stdout == "/etc/hostname\n"
    planned = json.loads(plug.stagegbo("provision", "--slots", "2", "--dry-run", "--json").stdout)["slots"]
    assert not [step for plan in planned.values() for step in plan["steps"] if step["changes"]]


@pytest.mark.both_lts
def test_a_baseline_of_one_slot_is_there_for_the_others(plug: Plug, in_network: InNetwork) -> None:
    """As it is where it was saved: also once it is replaced there, or deleted."""
    done = plug.stagegbo("provision", "--slots", "2", "--recreate")  # the first may be no copy of the golden one
    assert done.returncode == 0, done.stderr
    path = "/opt/gbo/data/minio/words"

    def word(number: int, put: str = "") -> str:
        """Of a slot that this process has not used yet."""
        with contextlib.closing(fleet(plug).engine(number)) as engine:
            if put:
                assert engine.execute("drive", ["sh", "-c", f"mkdir -p {path}; echo {put} >{path}/word"]).status == 0
                engine.baselines.save("demo", replace=True)
            else:
                engine.baselines.use("demo")
            return engine.execute("drive", ["cat", f"{path}/word"]).stdout.strip()

    def check() -> None:
        assert word(0, "one") == "one"
        assert word(1) == "one"
        assert word(0, "two") == "two"
        assert word(1) == "two"
        with contextlib.closing(fleet(plug).engine(0)) as engine:
            engine.baselines.delete("demo")
        with pytest.raises(BaselineMissing, match=f"not in {PROJECT} any more"):
            word(1)
        assert word(0, "three") == "three"

    in_network(check, timeout=120)
    refreshed = plug.stagegbo("provision", "--slots", "2", "--refresh", "drive")
    assert "baseline demo is lost, since drive becomes another copy" in refreshed.stderr
    with pytest.raises(BaselineMissing, match="drive has no part of it any more"):
        in_network(word, 0)


def test_a_build_is_in_the_slot_that_it_was_deployed_to(plug: Plug, tmp_path: Path) -> None:
    """Also once its clone was copied from the golden one again, which never has it."""
    plug.settings('[containers.drive]\nreset = "restore"')
    provision(plug)
    file, path = tmp_path / "build", "/opt/gbo/conf/build"
    file.write_bytes(os.urandom(3 << 20))

    def found() -> list[str]:
        look = ["sh", "-c", f"sha256sum <{path} || true"]
        return [fleet(plug).engine(number).execute("drive", look).stdout.partition(" ")[0] for number in (0, 1)]

    expected = ["", hashlib.sha256(file.read_bytes()).hexdigest()]
    for command in (("deploy", "drive", f"{path}={file}"), ("reset", "drive")):
        done = plug.stagegbo("--slot", "1", *command)
        assert done.returncode == 0, done.stderr
        assert found() == expected, command
    for slot, builds in ((), {}), (("--slot", "1"), {path: expected[1]}):
        listed = json.loads(plug.stagegbo(*slot, "deploy", "--list", "--json").stdout)["builds"]
        assert {each["path"]: each["sha256"] for each in listed} == builds
    assert plug.stagegbo("--slot", "1", "deploy", "drive", "--undo").returncode == 0
    assert found() == ["", ""]


def test_a_lease_ends_with_its_process_and_an_idle_slot_goes_to_the_next(plug: Plug) -> None:
    provision(plug)
    plug.write(test_block="def test_block(stage_cache):\n    note(stage_cache.host)\n    block('reached')")
    with plug.start("--stage-slots=2", "test_block.py") as first:
        first.until(lambda: plug.notes)
        plug.write(test_next="def test_next(stage_cache):\n    note(stage_cache.host)")
        plug.run("--stage-slots=2", "test_next.py").assert_outcomes(passed=1)
        assert plug.notes == ["10.0.5.13", "10.0.6.13"]
        assert take(fleet(plug), [0], "test") is None
        first.signal_all(signal.SIGKILL)
        first.process.wait(60)
        lease = take(fleet(plug), [0], "test")
        assert lease is not None
        lease.release()


def test_more_workers_than_slots_share_them(plug: Plug) -> None:
    """As they share one stage: a test that resets keeps the container to itself."""
    provision(plug)
    plug.write(
        test_many="""
        @pytest.mark.parametrize("number", range(9))
        @pytest.mark.stage_reset("cache")
        def test_alone(number, keys, stage_gbo):
            assert keys("DBSIZE") == 0
            keys("SET", f"key-{number}", "x")
            assert keys("KEYS", "*") == [f"key-{number}"]
            note(stage_gbo.project)
        """
    )
    plug.run("-n", "3", "--stage-slots=2", "test_many.py").assert_outcomes(passed=9)
    assert set(plug.notes) == {PROJECT, f"{PROJECT}-1"}


def test_a_golden_copy_whose_maker_was_killed_as_it_booted_is_finished_by_the_next(plug: Plug) -> None:
    found = fleet(plug)
    provision(plug)
    before = clones(plug, f"{PROJECT}-1")
    golden = found.golden.engine
    writer = golden.writer(golden.facts())
    writer.set_instance_config("cache", {marks.GENERATION: ""})
    writer.set_state("cache", "start")
    assert not found.golden.is_fit()
    provision(plug)
    assert found.golden.is_fit()
    after = clones(plug, f"{PROJECT}-1")
    assert after["cache"].created_at != before["cache"].created_at
    assert after["drive"].created_at == before["drive"].created_at


def test_a_refresh_replaces_what_is_named_and_nothing_else(plug: Plug) -> None:
    found = fleet(plug)
    provision(plug)
    before = {project: clones(plug, project) for project in (PROJECT, f"{PROJECT}-1", GOLDEN)}
    for names, renewed in ((["cache"], {"cache"}), ([], {"cache", "drive"})):  # without names, all that may have moved
        done = plug.stagegbo("provision", "--slots", "2", "--json", "--refresh", *names)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["renewed"] == sorted(renewed)
        for project, old in before.items():
            new = clones(plug, project)
            assert {name for name in new if new[name].created_at != old[name].created_at} == renewed, project
    assert found.source_drift() == dict.fromkeys(("cache", "drive"), "runs, so it may have written")


def test_destroy_takes_all_slots_and_only_its_own(plug: Plug) -> None:
    found = fleet(plug)
    provision(plug)
    assert list(found.members()) == [-1, 0, 1]
    foreign = f"{PROJECT}-2"  # of this name, and of this tool, but no slot of this stage
    connection = Connection(plug.engine.settings.incus)
    config = {marks.OWNER: marks.OWNER_VALUE, "features.images": "false"}
    connection.request("POST", ("projects",), body={"name": foreign, "config": config, "description": ""})
    try:
        # Killed between the project's removal and the bridge's: what is left still says whose it is.
        slot = found.engine(1)
        writer = slot.writer(slot.facts())
        for name in clones(plug, f"{PROJECT}-1"):
            writer.set_state(name, "stop", force=True)
            writer.delete_instance(name)
        writer.delete_project()
        assert list(found.members()) == [-1, 0, 1]
        done = plug.stagegbo("destroy", "--yes")
        assert done.returncode == 0, done.stderr
        left = plug.engine.reader
        assert [name for name in left.projects() if name.startswith(PROJECT)] == [foreign]
        assert not [name for name in left.networks() if name.startswith("plugbr")]
        assert not [name for name in left.acls() if name.startswith("plugbr")]
        wait_until(lambda: list(found.members()) == [0])
    finally:
        connection.request("DELETE", ("projects", foreign))


def test_a_dry_run_is_one_object_and_changes_nothing(plug: Plug) -> None:
    provision(plug)
    before = [clones(plug, project) for project in (PROJECT, f"{PROJECT}-1", GOLDEN)]
    done = plug.stagegbo("provision", "--slots", "3", "--dry-run", "--json")
    plans = json.loads(done.stdout)["slots"]
    assert list(plans) == [PROJECT, f"{PROJECT}-1", f"{PROJECT}-2"]
    changes = {project: [step["key"] for step in plan["steps"] if step["changes"]] for project, plan in plans.items()}
    assert changes[PROJECT] == changes[f"{PROJECT}-1"] == []
    assert {"copy:cache", "start:drive"} <= set(changes[f"{PROJECT}-2"])
    assert [clones(plug, project) for project in (PROJECT, f"{PROJECT}-1", GOLDEN)] == before


@pytest.mark.parametrize("command", [["reset", "cache"], ["destroy", "--yes"]])
def test_a_slot_is_not_taken_for_a_stage_with_the_first_one_s_addresses(plug: Plug, command: list[str]) -> None:
    provision(plug)
    done = plug.stagegbo("--project", f"{PROJECT}-1", *command)
    assert done.returncode == 2, done.stderr
    assert f"project {PROJECT}-1 is a slot of stage {PROJECT}, or its golden copy" in done.stderr
    assert f'set project = "{PROJECT}", and choose its slot with --slot N' in done.stderr
    assert clones(plug, f"{PROJECT}-1").keys() == {"cache", "drive"}


@pytest.mark.both_lts
def test_a_stage_that_is_named_like_a_slot_is_refused_by_every_command_that_uses_slots(plug: Plug) -> None:
    """Before the golden copy is made, too; and it is left as it is."""
    assert plug.stagegbo("destroy", "--yes").returncode == 0
    connection = Connection(plug.engine.settings.incus)
    reader = plug.engine.reader
    plug.write(test_one="def test_one(stage_cache):\n    pass")
    for name in (f"{PROJECT}-1", GOLDEN):
        config = {marks.OWNER: marks.OWNER_VALUE, marks.PROJECT: name, "features.images": "false"}
        before = {*reader.projects()}
        connection.request("POST", ("projects",), body={"name": name, "config": config, "description": "mine"})
        try:
            said = [
                plug.stagegbo(*command)
                for command in (
                    ("provision", "--slots", "2"),
                    ("provision", "--slots", "2", "--dry-run"),
                    ("--slot", "1", "reset", "cache"),
                    ("--slot", "1", "status"),
                    ("--slot", "1", "exec", "cache", "--", "true"),
                )
            ]
            for done in said:
                assert done.returncode == 4, (done.args, done.stderr)
                assert f"project {name} is a stage of its own, and no slot or golden copy of {PROJECT}" in done.stderr
            result = plug.run("--stage-slots=2", "test_one.py")
            assert result.ret != 0
            assert f"project {name} is a stage of its own" in "\n".join([*result.outlines, *result.errlines])
            assert plug.stagegbo("destroy", "--yes").stdout == f"there is no stage {PROJECT}: nothing to remove\n"
            # Others use the lab meanwhile.
            assert {each for each in reader.projects().keys() - before if each.startswith(PROJECT)} == {name}
            assert reader.projects()[name].config.items() >= config.items()
            assert marks.FAMILY not in reader.projects()[name].config
            assert not [each for each in reader.networks() if each.startswith("plugbr")]
        finally:
            connection.request("DELETE", ("projects", name))


def test_a_slot_whose_bridge_is_gone_gets_it_back_and_keeps_its_clones(plug: Plug) -> None:
    """So does the golden copy, whose clones don't run. Users' copies of clones are no part of either."""
    provision(plug)
    before = {project: clones(plug, project) for project in (f"{PROJECT}-1", GOLDEN)}
    found = fleet(plug)
    for engine in (found.engine(1), found.golden.engine):
        engine.writer(engine.facts()).delete_network()
    cache = before[GOLDEN]["cache"]
    source = {"type": "copy", "source": "cache", "project": GOLDEN, "instance_only": True}
    devices = {name: dict(device) for name, device in cache.devices.items() if name != "eth0"}
    body = {"name": "kept", "source": source, "devices": {**devices, "eth0": {"type": "none"}}}
    connection = Connection(plug.engine.settings.incus)
    both = (GOLDEN, f"{PROJECT}-1")
    for project in both:
        reply = connection.request("POST", ("instances",), params={"project": project}, body=body)
        connection.wait(reply, "copying", 60)
    try:
        assert marks.is_ours(clones(plug, GOLDEN)["kept"].config), "the copy has the marks"
        assert found.golden.is_fit()
        provision(plug)
        after = {**clones(plug, f"{PROJECT}-1")}
        assert after.pop("kept").status == "Stopped"
        assert {name: each.created_at for name, each in after.items()} == {
            name: each.created_at for name, each in before[f"{PROJECT}-1"].items()
        }
        shown = plug.stagegbo("--slot", "1", "status", "--json")
        assert json.loads(shown.stdout)["ready"] is True
        states = {slot["number"]: slot["state"] for slot in json.loads(shown.stdout)["slots"]}
        assert (states[-1], states[1]) == ("stopped", "running")
        done = plug.stagegbo("provision", "--slots", "2", "--refresh", "cache")
        assert done.returncode == 0, done.stderr
        assert clones(plug, GOLDEN).keys() == {"cache", "drive", "kept"}
        done = plug.stagegbo("destroy", "--yes")
        assert done.returncode == 4
        assert any(f"incus delete --force kept --project {each}" in done.stderr for each in both)
        assert clones(plug, f"{PROJECT}-1").keys() == {"cache", "drive", "kept"}, "nothing of any slot was removed"
    finally:
        for project in both:
            reply = connection.request("DELETE", ("instances", "kept"), params={"project": project})
            connection.wait(reply, "deleting", 60)


@pytest.mark.both_lts
def test_slots_move_to_bridges_of_another_name_and_nothing_foreign_goes(plug: Plug) -> None:
    """Former bridges and access lists of each slot and the golden copy are found by their marks."""
    provision(plug)
    connection = Connection(plug.engine.settings.incus)
    mine = {"name": "plugbr9", "type": "bridge", "config": {"ipv4.address": "none", "ipv6.address": "none"}}
    connection.request("POST", ("networks",), params={"project": "default"}, body=mine)
    reader = plug.engine.reader
    try:
        file = plug.folder / "stagegbo.toml"
        file.write_text(file.read_text().replace("plugbr0", "plugnew0"))
        assert "delete network plugbr" in plug.stagegbo("provision", "--slots", "2", "--dry-run").stdout
        provision(plug)
        named = {name for name in [*reader.networks(), *reader.acls()] if name.startswith("plug")}
        bridges = {"plugnew0", "plugnew1", "plugnewg"}
        assert named == {"plugbr9", *bridges, *(f"{name}-isolation" for name in bridges)}
        assert plug.stagegbo("verify", "--check", "reach.stage", "--check", "locked.project").returncode == 0
        done = plug.stagegbo("destroy", "--yes")
        assert done.returncode == 0, done.stderr
        assert {name for name in [*reader.networks(), *reader.acls()] if name.startswith("plug")} == {"plugbr9"}
    finally:
        connection.request("DELETE", ("networks", "plugbr9"), params={"project": "default"})


@pytest.mark.parametrize("option", [["--refresh", "cache"], ["--recreate"]], ids=" ".join)
def test_a_snapshot_of_one_slot_keeps_all_of_them_as_they_are(plug: Plug, option: list[str]) -> None:
    """Before, the golden copy and the slots before that one were replaced, and the error said that nothing was."""
    provision(plug)
    connection, both = Connection(plug.engine.settings.incus), (PROJECT, GOLDEN)
    before = {(project, name): each.created_at for project in both for name, each in clones(plug, project).items()}
    one = {"project": f"{PROJECT}-1"}
    reply = connection.request("POST", ("instances", "cache", "snapshots"), params=one, body={"name": "mine"})
    connection.wait(reply, "snapshot", 60)
    try:
        done = plug.stagegbo("provision", "--slots", "2", *option)
        assert done.returncode == 4
        assert f"incus snapshot delete cache mine --project {PROJECT}-1" in done.stderr
        after = {(project, name): each.created_at for project in both for name, each in clones(plug, project).items()}
        assert after == before
    finally:
        reply = connection.request("DELETE", ("instances", "cache", "snapshots", "mine"), params=one)
        connection.wait(reply, "snapshot", 60)


def test_status_shows_slots_and_who_has_them(plug: Plug) -> None:
    provision(plug)
    lease = take(fleet(plug), [1], "a test of leases")
    assert lease is not None
    status = json.loads(plug.stagegbo("status", "--json").stdout)
    lease.release()
    assert [(slot["number"], slot["project"], slot["state"]) for slot in status["slots"]] == [
        (-1, GOLDEN, "stopped"),
        (0, PROJECT, "running"),
        (1, f"{PROJECT}-1", "running"),
    ]
    assert "a test of leases" in status["slots"][2]["used_by"]
    assert status["moved"] == dict.fromkeys(("cache", "drive"), "runs, so it may have written")
    shown = plug.stagegbo("--slot", "1", "exec", "cache", "--", "hostname", "-I")
    assert (shown.returncode, "10.0.6.13" in shown.stdout.split()) == (0, True), shown


@pytest.mark.both_lts
def test_a_slot_is_isolated_from_the_others_and_from_production(plug: Plug) -> None:
    """`verify` of slot 1: connections tried from its clones to production, to the host's bridges, and into it."""
    provision(plug)
    done = plug.stagegbo("--slot", "1", "verify", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    engine = fleet(plug).engine(1)
    reached = engine.execute("cache", ["bash", "-c", "timeout 2 bash -c '</dev/tcp/10.0.5.13/6379' 2>&1; echo $?"])
    assert reached.stdout.splitlines()[-1] != "0"
    assert engine.execute("cache", ["bash", "-c", "</dev/tcp/10.0.6.14/9100"]).status == 0  # its own drive it reaches


@pytest.mark.both_lts
def test_verify_proves_all_slots_and_the_golden_copy(plug: Plug) -> None:
    """A slot that lost its access list is red, although slot 0 is as it should be; `--slot 0` proves that one alone."""
    provision(plug)
    bridge = fleet(plug).engine(1).settings.network.name
    body = {"config": {"security.acls.default.ingress.action": "allow"}}
    Connection(plug.engine.settings.incus).request(
        "PATCH", ("networks", bridge), params={"project": "default"}, body=body
    )
    try:
        done = plug.stagegbo("verify", "--json", "--check", "locked.project")
        assert done.returncode == 9, done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert found["holds"] is False
        assert [each["state"] for each in found["findings"]] == ["green"]
        states = {name: [each["state"] for each in one["findings"]] for name, one in found["slots"].items()}
        assert states == {"1": ["red"], "golden": ["green"]}
        assert plug.stagegbo("--slot", "0", "verify", "--check", "locked.project").returncode == 0
    finally:
        provision(plug)
    whole = plug.stagegbo("verify")
    assert whole.returncode == 0, whole.stdout
    counted = re.findall(r"^(\S+): (\d+) of \2 hold", whole.stdout, re.MULTILINE)
    assert [project for project, _ in counted] == [PROJECT, f"{PROJECT}-1", GOLDEN]


@pytest.mark.both_lts
def test_what_somebody_changed_around_a_golden_copy_is_put_back(plug: Plug) -> None:
    """Its clones stay as they are: none is copied again, none starts."""
    provision(plug)
    before = clones(plug, GOLDEN)
    golden, connection = fleet(plug).golden.settings, Connection(plug.engine.settings.incus)
    for path, config in (
        (("networks", golden.network.name), {"security.acls.default.ingress.action": "allow"}),
        (("projects", GOLDEN), {"restricted.devices.unix-char": "allow"}),
    ):
        found = connection.get(*path, project="default")
        body = {"config": {**found["config"], **config}, "description": found["description"]}
        connection.request("PUT", path, params={"project": "default"}, body=body)
    assert plug.stagegbo("verify", "--check", "locked.project").returncode == 9
    planned = json.loads(plug.stagegbo("provision", "--slots", "2", "--dry-run", "--json").stdout)["slots"]
    assert [step["key"] for step in planned.pop(GOLDEN)["steps"]] == [
        f"project:{GOLDEN}",
        f"network:{golden.network.name}",
    ]
    assert not [step for plan in planned.values() for step in plan["steps"] if step["changes"]]
    provision(plug)
    done = plug.stagegbo("verify", "--check", "locked.project")
    assert done.returncode == 0, done.stdout
    after = clones(plug, GOLDEN)
    assert {name: clone.created_at for name, clone in after.items()} == {
        name: clone.created_at for name, clone in before.items()
    }
    assert {clone.status for clone in after.values()} == {"Stopped"}


@pytest.mark.parametrize("state", ["Stopped", "Running"])
def test_a_slots_clone_whose_first_boot_nobody_saw_is_replaced(plug: Plug, state: str) -> None:
    """Its maker was killed: nobody knows whether it was copied whole."""
    provision(plug)
    engine = fleet(plug).engine(1)
    writer = engine.writer(engine.facts())
    if state == "Stopped":
        writer.set_state("cache", "stop", force=True)
    writer.set_instance_config("cache", {marks.STATE: marks.BUILDING, marks.PROVEN: ""})
    before = clones(plug, f"{PROJECT}-1")
    assert before["cache"].status == state
    provision(plug)
    after = clones(plug, f"{PROJECT}-1")
    assert after["cache"].is_running
    assert after["cache"].config[marks.PROVEN] == "true"
    assert after["cache"].created_at != before["cache"].created_at
    assert after["drive"].created_at == before["drive"].created_at


@pytest.mark.parametrize("place", ["in the golden copy", "in the slot"])
def test_slots_whose_maker_is_killed_are_finished_by_the_next(plug: Plug, place: str) -> None:
    assert plug.stagegbo("destroy", "--yes").returncode == 0
    argv = [sys.executable, "-m", "pytest_stagegbo", "--lab", "provision", "--slots", "2"]
    project = GOLDEN if place == "in the golden copy" else f"{PROJECT}-1"
    making = subprocess.Popen(argv, cwd=plug.folder, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: clones(plug, project) or making.poll() is not None)
    making.kill()
    assert making.wait(60) == -signal.SIGKILL, "it was too quick"
    provision(plug)
    for each in (PROJECT, f"{PROJECT}-1"):
        made = clones(plug, each)
        assert made.keys() == {"cache", "drive"}
        assert all(clone.is_running and clone.config[marks.PROVEN] == "true" for clone in made.values())
        assert all(clone.config[marks.STATE] == marks.PREPARED for clone in made.values())
    planned = json.loads(plug.stagegbo("provision", "--slots", "2", "--dry-run", "--json").stdout)["slots"]
    assert not [step for plan in planned.values() for step in plan["steps"] if step["changes"]]


def test_what_hooks_change_is_in_every_slot_and_was_changed_once(plug: Plug) -> None:
    hook = plug.folder / "mask.sh"
    hook.write_text("#!/bin/sh\necho hooked >>/opt/gbo/hooked\n")
    plug.settings('[containers.cache]\nhooks = ["mask.sh"]')
    provision(plug)
    for number in (0, 1):
        assert fleet(plug).engine(number).execute("cache", ["cat", "/opt/gbo/hooked"]).stdout == "hooked\n"


@pytest.mark.both_lts
@pytest.mark.parametrize("then", ["pass", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["lives", "dies"])
def test_a_session_proves_every_slot_that_its_workers_used(plug: Plug, then: str) -> None:
    """Also one whose worker died, and the golden copy."""
    provision(plug)
    golden, connection = fleet(plug).golden.settings, Connection(plug.engine.settings.incus)

    def lets_all_in(action: str) -> None:
        body = {"config": {"security.acls.default.ingress.action": action}}
        params = {"project": "default"}

        def patched() -> bool:
            try:
                connection.request("PATCH", ("networks", golden.network.name), params=params, body=body)
            except ServerRefused as error:
                if dialect.lost_an_interface(error):
                    return False
                raise
            return True

        wait_until(patched)

    try:
        plug.write(
            test_it=f"""
            @pytest.mark.parametrize("number", [1, 2])
            def test_it(stage_gbo, number):
                if stage_gbo.project.endswith("-1"):
                    stage_gbo.cache.exec("ip", "address", "add", "10.0.2.15/24", "dev", "eth0")
                    {then}
                else:
                    stage_gbo.cache.exec("true")
        """
        )
        lets_all_in("allow")
        result = plug.run("-n", "2", "--max-worker-restart=0", "--stage-slots=2", "--stage-verify", "test_it.py")
        assert result.ret == 1
        result.stdout.fnmatch_lines(
            ["*stage-gbo: isolation*", "slot 1: *", "*locked.addresses: cache: eth0 has 10.0.2.15*"]
        )
        result.stdout.fnmatch_lines(
            ["golden copy: *", "*locked.project: bridge: security.acls.default.ingress.action is 'allow'*"]
        )
        died = [line for line in result.outlines if line.startswith("production.events: worker gw")]
        assert len(died) == (then != "pass")
    finally:
        fleet(plug).engine(1).execute("cache", ["ip", "address", "del", "10.0.2.15/24", "dev", "eth0"])
        lets_all_in("reject")
