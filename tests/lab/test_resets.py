"""Resets of real services: that nothing is left, that it is as after a restart, and what is said when it is not."""

from __future__ import annotations

import os
import shlex
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.lab.pollution import MINIO, VALKEY, WORK, Polluter, forgotten_uploads, residues
from tests.lab.small_stage import THREE, CleanStage, kill
from tests.lab.support import Ground, immutable, until

from pytest_stagegbo.apply import step_runner
from pytest_stagegbo.errors import Residue
from pytest_stagegbo.incus.localhost import LocalHost
from pytest_stagegbo.resets.restart import restart_script

if TYPE_CHECKING:
    from tests.lab.conftest import InNetwork

    from pytest_stagegbo.lab import Lab

pytestmark = pytest.mark.lab

SEED = 20261124
ROUNDS = int(os.environ.get("STAGEGBO_LAB_POLLUTIONS", "1000"))
"""10000: all."""
RESTART_EVERY = 200
LONGEST = 3600.0


@pytest.fixture
def polluter(clean: CleanStage) -> Polluter:
    return Polluter(clean.place, SEED)


def pollute_each(clean: CleanStage) -> None:
    """A key, an object and a file."""
    cache, drive = clean.place.cache(), clean.place.drive()
    cache.call("SET", "left", 1)
    cache.close()
    drive.call("PUT", "/left")
    drive.call("PUT", "/left/a/b", body=b"x")
    (clean.place.rootfs["system"] / WORK / "left").write_text("x")


def test_random_pollution_leaves_nothing(clean: CleanStage, polluter: Polluter, in_network: InNetwork) -> None:
    """The same for the same seed: a round that fails here is found again by its number."""

    def rounds() -> dict[str, int]:
        ways: dict[str, int] = {}
        clean.reset(*THREE)
        clean.reset(*THREE)  # from now on it knows where to look from outside, too
        for number in range(ROUNDS):
            done = polluter.round(number)
            outcomes = clean.reset(*THREE)
            clean.place.close()
            left = residues(clean.place)
            assert not left, f"round {number}: {left} after {done}, {[each.text for each in outcomes.values()]}"
            for name, outcome in outcomes.items():
                ways[f"{name} {outcome.way}"] = ways.get(f"{name} {outcome.way}", 0) + 1
            if number % RESTART_EVERY == RESTART_EVERY - 1:
                assert forgotten_uploads(clean.place) == []
                clean.shell("cache", "systemctl restart valkey-server 2>/dev/null || systemctl restart valkey")
                clean.shell("drive", "systemctl restart minio")
                clean.wait("cache", "drive")
                left = residues(clean.place, restarted=True)
                assert not left, f"back after a restart, round {number}: {left}"
        return ways

    ways = in_network(rounds, timeout=LONGEST)
    print(ways)
    hot = sum(count for way, count in ways.items() if way.endswith("hot"))
    restarted = sum(count for way, count in ways.items() if way.endswith("restart"))
    assert hot > restarted * 3, f"that is not a test of hot resets: {ways}"


def test_valkey_does_not_save_what_was_before_into_a_folder_that_was_cleared(
    clean: CleanStage, in_network: InNetwork
) -> None:
    """Its save points count what a test changed, and the flush: an untouched cache got a file of its own making."""
    configuration = "/opt/gbo/conf/valkey.conf"

    def saved() -> dict[str, str]:
        cache = clean.place.cache()
        lines = cache.call("INFO", "everything").decode().splitlines()
        cache.close()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def restart(script: str) -> None:
        clean.shell("cache", f"{script}; systemctl restart valkey")
        clean.wait("cache")
        clean.reset("cache")

    def check() -> None:
        restart(f"sed -i.kept 's/^save .*/save 6 1/' {configuration}")
        try:
            pollute_each(clean)
            until(lambda: _age(saved()) >= 3, "the next save is near")
            assert clean.ways("cache") == {"cache": "hot"}
            assert saved()["rdb_changes_since_last_save"] == "0"
            assert not (clean.place.rootfs["cache"] / VALKEY / "dump.rdb").exists()
        finally:
            restart(f"mv {configuration}.kept {configuration}")
            clean.reset(*THREE)

    in_network(check)


def _age(info: dict[str, str]) -> int:
    """Seconds since Valkey's last save, by its own clock."""
    return int(info["server_time_usec"]) // 10**6 - int(info["rdb_last_save_time"])


def test_what_is_untouched_is_found_to_be_so(clean: CleanStage, in_network: InNetwork) -> None:
    def check() -> None:
        clean.reset(*THREE)
        clean.reset(*THREE)
        assert clean.ways(*THREE) == dict.fromkeys(THREE, "untouched")
        pollute_each(clean)
        assert clean.ways(*THREE) == dict.fromkeys(THREE, "hot")
        assert residues(clean.place) == []

    in_network(check)


@pytest.mark.parametrize(
    ("container", "script"),
    [
        pytest.param("cache", f"touch /{VALKEY}/x; rm /{VALKEY}/x", id="a file of cache that is gone again"),
        pytest.param("drive", f"touch /{MINIO}/x; rm /{MINIO}/x", id="a file of drive that is gone again"),
        pytest.param("system", f"mkdir /{WORK}/x; rmdir /{WORK}/x", id="a folder of system that is gone again"),
        pytest.param("cache", 'valkey-cli -p 6379 -a "$PASSWORD" GET x', id="a key that was looked for"),
        pytest.param("drive", "exec 3<>/dev/tcp/127.0.0.1/9100", id="a connection to drive"),
        pytest.param("system", "exec 3<>/dev/tcp/127.0.0.1/5859", id="a connection to system"),
    ],
)
def test_doubt_is_a_reset(clean: CleanStage, in_network: InNetwork, container: str, script: str) -> None:
    """It errs on the side of resetting."""

    def check() -> None:
        clean.reset(container)
        clean.reset(container)
        password = clean.place.secrets["cache"]["password"]
        result = clean.execute(container, ["env", f"PASSWORD={password}", "bash", "-euc", script])
        assert result.status == 0, result.stderr
        assert clean.ways(container)[container] != "untouched"

    in_network(check)


DIRTY = {
    "cache": f"touch /{VALKEY}/left",
    "drive": f"touch /{MINIO}/left",
    "system": f"touch /{WORK}/left",
    "tables": "runuser -u postgres -- psql -Xq botserver -c 'CREATE TABLE IF NOT EXISTS zombie ()'",
}
STRAY = "while :; do {dirty}; sleep 0.02; done >/dev/null 2>&1"


@pytest.mark.parametrize(
    "start",
    [
        pytest.param("setsid sh -c {loop} </dev/null >/dev/null 2>&1 &", id="a process"),
        pytest.param("systemd-run -q sh -c {loop}", id="a service"),
        pytest.param("systemd-run -q --on-active=0.3 --timer-property=AccuracySec=1ms sh -c {loop}", id="a timer"),
        pytest.param("systemd-run -q --scope setsid sh -c {loop} </dev/null >/dev/null 2>&1 &", id="a scope"),
    ],
)
def test_what_a_test_started_does_not_live_on(clean: CleanStage, in_network: InNetwork, start: str) -> None:
    """Whatever way it was started, and whatever way the container is reset."""

    def check() -> None:
        clean.reset(*THREE, "tables")
        runs = {name: clean.shell(name, RUNNING) for name in DIRTY}
        for name, dirty in DIRTY.items():
            clean.shell(name, start.format(loop=shlex.quote(STRAY.format(dirty=dirty))))
        ways = clean.ways(*DIRTY)
        assert "untouched" not in ways.values()
        threading.Event().wait(0.5)  # longer than any of them takes to show
        assert {name: clean.shell(name, RUNNING) for name in DIRTY} == runs
        assert residues(clean.place) == []
        assert clean.sql("SELECT to_regclass('zombie') IS NULL") == "t"

    in_network(check, timeout=120)


def test_an_instance_with_the_name_of_an_own_unit_does_not_live_on(clean: CleanStage, in_network: InNetwork) -> None:
    """systemd did not make it one of valkey.service's when it booted."""
    loop = shlex.quote(STRAY.format(dirty=DIRTY["cache"]))

    def check() -> None:
        clean.reset("cache")
        clean.shell("cache", f"systemd-run -q --unit=valkey@left.service sh -c {loop}")
        assert clean.ways("cache")["cache"] != "untouched"
        threading.Event().wait(0.5)  # longer than it takes to show
        assert clean.shell("cache", "systemctl list-units --all --plain --no-legend 'valkey@*'") == ""
        assert residues(clean.place) == []

    in_network(check)


def test_a_name_that_a_test_gave_to_a_unit_is_free_again(clean: CleanStage, in_network: InNetwork) -> None:
    """systemd keeps a transient unit that has failed, and refuses its name."""

    def check() -> None:
        clean.reset("cache")
        for _ in range(2):
            clean.shell("cache", "systemd-run -q --unit=job sh -c 'sleep 0.1; exit 3'")
            until(lambda: clean.execute("cache", ["systemctl", "is-failed", "-q", "job"]).status == 0, "it has failed")
            clean.reset("cache")

    in_network(check)


RUNNING = """systemctl list-units --plain --no-legend --type=service,timer,scope --state=active | cut -d ' ' -f 1
pgrep -f 'while : *; d[o]' || true"""


def test_what_cannot_be_ended_is_named(clean: CleanStage, in_network: InNetwork) -> None:
    """With the test that left it. What it is ends by itself after a while."""
    start = "systemd-run -q --unit=stray --on-active=6 --timer-property=RefuseManualStop=yes true"

    def check() -> None:
        clean.shell("cache", start)
        with pytest.raises(Residue) as caught:
            clean.engine.reset(["cache"], left_by={"cache": "test_it.py::test_daemon"})
        assert "stray.timer" in caught.value.message
        assert "test_it.py::test_daemon" in caught.value.message
        until(lambda: clean.execute("cache", ["systemctl", "is-active", "-q", "stray.timer"]).status, "it has ended")
        clean.reset("cache")
        assert residues(clean.place) == []

    in_network(check)


def test_a_service_that_was_down_is_started_once(clean: CleanStage, in_network: InNetwork) -> None:
    """It is the container's own, and nothing that a test has left."""
    started = "systemctl show -p NRestarts --value valkey; journalctl -q -u valkey -o cat | grep -c ^Started || true"

    def check() -> None:
        clean.reset("cache")
        clean.reset("cache")
        clean.shell("cache", "systemctl stop valkey")
        before = clean.shell("cache", started).splitlines()
        assert clean.ways("cache") == {"cache": "restart"}
        after = clean.shell("cache", started).splitlines()
        assert (after[0], int(after[1]) - int(before[1])) == (before[0], 1)

    in_network(check)


def test_a_shell_of_another_session_is_left_alone(clean: CleanStage, in_network: InNetwork) -> None:
    """Workers share a stage, and each keeps shells in it: to end them would cost each of them a new one."""

    def check() -> None:
        engine = clean.another()
        clean.reset("cache", engine=engine)
        shells = clean.shell("cache", "pgrep -x sh")
        clean.reset("cache")
        assert set(shells.split()[:-1]) <= set(clean.shell("cache", "pgrep -x sh").split())
        engine.close()

    in_network(check)


def test_another_process_resets_what_this_one_left_clean(clean: CleanStage, in_network: InNetwork) -> None:
    """What one knows of the last reset, another does not."""

    def check() -> None:
        clean.reset(*THREE)
        engine = clean.another()
        outcomes = clean.reset(*THREE, engine=engine)
        engine.close()
        assert "untouched" not in {outcome.way for outcome in outcomes.values()}

    in_network(check)


def test_hot_is_as_after_a_restart(clean: CleanStage, polluter: Polluter, in_network: InNetwork) -> None:
    """Settings, users, functions, clients, files with owners and modes, units."""

    def state(number: int, **ways: str) -> object:
        polluter.round(number)
        pollute_each(clean)
        engine = clean.another(**ways) if ways else clean.engine
        clean.reset(*THREE, engine=engine)
        clean.place.close()
        if ways:
            engine.close()
        return clean.state()

    def check() -> None:
        clean.reset(*THREE)
        hot = state(1)
        by_restart = state(1, cache="restart", drive="restart", system="restart")
        assert hot == by_restart

    in_network(check)


def test_without_an_append_only_file(clean: CleanStage, in_network: InNetwork) -> None:
    """RDB alone: nothing is loaded by the next start."""

    def check() -> None:
        clean.shell("cache", "sed -i 's/^appendonly yes/appendonly no/' /opt/gbo/conf/valkey.conf")
        engine = clean.another(cache="restart")
        clean.reset("cache", engine=engine)
        try:
            assert clean.ways("cache") == {"cache": "restart"}  # nothing was written down about this server
            cache = clean.place.cache()
            cache.call("SET", "left", 1)
            cache.call("SAVE")
            cache.close()
            assert clean.ways("cache") == {"cache": "hot"}
            assert list((clean.place.rootfs["cache"] / VALKEY).iterdir()) == []
            clean.shell("cache", "systemctl restart valkey")
            clean.wait("cache")
            cache = clean.place.cache()
            assert cache.call("DBSIZE") == b"0"
            cache.close()
        finally:
            clean.shell("cache", "sed -i 's/^appendonly no/appendonly yes/' /opt/gbo/conf/valkey.conf")
            clean.reset("cache", engine=engine)
            engine.close()
            clean.reset("cache")

    in_network(check)


@pytest.mark.parametrize(
    ("container", "folder"),
    [
        pytest.param("cache", VALKEY, id="cache"),
        pytest.param("drive", MINIO, id="drive"),
        pytest.param("system", WORK, id="system"),
    ],
)
def test_what_cannot_be_removed_is_named(clean: CleanStage, in_network: InNetwork, container: str, folder: str) -> None:
    """With the test that left it, and its exit code. The next reset is a whole one."""

    def check() -> None:
        trap = clean.place.rootfs[container] / folder / "trap"
        trap.write_text("x")
        immutable(trap, True)
        try:
            with pytest.raises(Residue) as caught:
                clean.engine.reset([container], left_by={container: "test_it.py::test_trap"})
        finally:
            immutable(trap, False)
        assert f"/{folder}/trap" in caught.value.message
        assert "test_it.py::test_trap" in caught.value.message
        assert clean.ways(container) == {container: "restart"}
        assert residues(clean.place) == []

    in_network(check)


def test_very_many_files_are_deleted_after_the_reset(clean: CleanStage, in_network: InNetwork) -> None:
    """The folder is empty at once; what was in it waits beside it, and goes with a later reset where it has to."""
    work = clean.place.rootfs["system"] / WORK
    aside = work.with_name(f"{work.name}.stagegbo-wiped")

    def fill() -> None:
        for folder in range(10):
            (work / f"bot{folder}.gbai").mkdir()
            for number in range(500):
                (work / f"bot{folder}.gbai" / f"{'x' * 50}{number}").touch()

    def check() -> None:
        clean.reset("system")
        clean.reset("system")
        fill()
        trap = work / "bot0.gbai/trap"
        trap.touch()
        immutable(trap, True)
        moved = aside / "bot0.gbai/trap"
        try:
            outcome = clean.reset("system")["system"]
            assert (outcome.way, outcome.doubt) == ("hot", "")
            assert residues(clean.place) == []
            assert moved.exists(), "it was not moved"
            until(lambda: not moved.with_name(f"{'x' * 50}1").exists(), "the others are deleted", 30)
        finally:
            immutable(moved, False)
        (work / "left").touch()
        assert clean.ways("system") == {"system": "hot"}
        until(lambda: not aside.exists(), "the rest is deleted", 30)
        fill()
        clean.shell("system", f"chown gbo {WORK}/bot9.gbai")
        outcome = clean.reset("system")["system"]
        assert (outcome.way, outcome.doubt.partition(" wrote ")[2]) == (
            "restart",
            f"/{WORK}/bot9.gbai, and may remember it",
        )
        assert residues(clean.place) == []

    in_network(check, timeout=120)


def fill_drive(clean: CleanStage, count: int) -> None:
    """Objects as the server keeps them, of which it knows some: it was asked for them."""
    data = clean.place.rootfs["drive"] / MINIO
    drive = clean.place.drive()
    drive.call("PUT", "/big")
    for folder in range(10):
        drive.call("PUT", f"/big/folder{folder}/first", body=b"x")
        for number in range(count // 10):
            (data / "big" / f"folder{folder}" / str(number)).touch()
    (data / "alone").touch()


def test_very_many_objects_are_gone_and_the_server_knows_none(clean: CleanStage, in_network: InNetwork) -> None:
    """With and without what an earlier reset knows. A hot reset is possible again afterwards."""
    data = clean.place.rootfs["drive"] / MINIO

    def check() -> None:
        clean.reset("drive")
        clean.reset("drive")
        for count in (1_100, 20_000, 20_000):
            fill_drive(clean, count)
            outcome = clean.reset("drive")["drive"]
            assert (outcome.way, "1000 files" in outcome.doubt) == ("restart", True)
            assert residues(clean.place) == []
            until(lambda: not data.with_name(f"{data.name}.stagegbo-wiped").exists(), "the rest is deleted", 60)
        clean.reset("drive")
        assert clean.ways("drive") == {"drive": "untouched"}
        pollute_each(clean)
        assert clean.reset(*THREE)["drive"].way == "hot"
        assert residues(clean.place) == []

    in_network(check, timeout=240)


def test_a_reset_of_very_many_objects_that_is_killed_is_mended_by_the_next(
    clean: CleanStage, in_network: InNetwork
) -> None:
    """At any moment: the server may be stopped, and objects half moved aside, then."""
    data = clean.place.rootfs["drive"] / MINIO
    script = restart_script(clean.settings.containers["drive"], many=True)

    def check() -> None:
        clean.reset("drive")
        for seconds in ("0.03", "0.1", "0.2", "0.4"):
            fill_drive(clean, 5_000)
            clean.execute("drive", ["timeout", "-s", "KILL", seconds, "sh", "-c", script])
            clean.reset("drive")
            assert residues(clean.place) == []
            until(lambda: not data.with_name(f"{data.name}.stagegbo-wiped").exists(), "the rest is deleted", 60)

    in_network(check, timeout=240)


def test_a_shell_that_was_killed_is_replaced(clean: CleanStage, in_network: InNetwork) -> None:
    def check() -> None:
        clean.reset(*THREE)
        for name in THREE:
            clean.execute(name, ["sh", "-c", "kill -9 $(pgrep -x sh | grep -v $$)"])
        pollute_each(clean)
        assert clean.ways(*THREE) == dict.fromkeys(THREE, "hot")
        assert residues(clean.place) == []

    in_network(check)


def test_a_container_that_was_started_again_is_reset(clean: CleanStage, in_network: InNetwork) -> None:
    def check() -> None:
        pollute_each(clean)
        for name in THREE:
            clean.incus("restart", "--force", name)
        assert clean.ways(*THREE) == dict.fromkeys(THREE, "restart")
        assert residues(clean.place) == []

    in_network(check, timeout=120)


def test_what_is_mounted_below_a_folder_is_not_entered(clean: CleanStage, in_network: InNetwork) -> None:
    """Neither by a restart nor by a hot reset, which have ways of their own to clear a folder."""
    work = clean.place.rootfs["system"] / WORK

    def check() -> None:
        mount = f"/srv/kept /{WORK}/mounted none bind 0 0"
        clean.shell("system", f"mkdir -p srv/kept {WORK}/mounted; touch srv/kept/theirs; echo {mount} >>etc/fstab")
        try:
            clean.incus("restart", "--force", "system")
            clean.wait("system")
            for way in ("restart", "hot"):
                clean.shell("system", f"mkdir {WORK}/left; touch {WORK}/left/file; mountpoint -q {WORK}/mounted")
                assert clean.ways("system") == {"system": way}
                assert [each.name for each in work.iterdir()] == ["mounted"]
                assert clean.shell("system", f"ls {WORK}/mounted") == "theirs"
        finally:
            clean.shell("system", "sed -i '\\,^/srv/kept ,d' etc/fstab; rm -rf srv/kept/theirs")
            clean.incus("restart", "--force", "system")
            clean.wait("system")
            clean.reset("system")
        assert residues(clean.place) == []

    in_network(check, timeout=120)


def test_a_killed_reset_is_done_again(clean: CleanStage, in_network: InNetwork) -> None:
    """Whenever it is killed, whoever is next learns of it, and what it then does leaves everything clean."""

    def check() -> int:
        lock, unfinished = clean.engine.lock(), 0
        for number in range(8):
            process = clean.start_resetting(*THREE)
            deadline = time.monotonic() + 30
            while not lock.unfinished(THREE):
                assert time.monotonic() < deadline, "no reset has begun"
                time.sleep(0.0005)
            threading.Event().wait(number * 0.003)
            kill(process)
            unfinished += bool(lock.unfinished(THREE))
            clean.reset(*THREE)
            assert not lock.unfinished(THREE)
            assert residues(clean.place) == []
        return unfinished

    assert in_network(check, timeout=120) > 0, "none was killed in the middle of a reset"


def test_restore_brings_all_of_a_container_back(clean: CleanStage, in_network: InNetwork) -> None:
    """Again and again: what is outside of every folder to wipe too."""

    def check() -> None:
        before = clean.shell("tables", "ls /root; stat -c %a /opt/gbo/bin; ls -A /opt/gbo")
        engine = clean.another(tables="restore")
        for _ in range(2):
            clean.shell("tables", "echo left >/root/left; chmod 0 /opt/gbo/bin; echo more >>/opt/gbo/.bashrc")
            clean.sql("CREATE TABLE left_over (id integer)")
            outcomes = clean.reset("tables", engine=engine)
            assert outcomes["tables"].way == "restore"
            assert clean.shell("tables", "ls /root; stat -c %a /opt/gbo/bin; ls -A /opt/gbo") == before
            assert clean.sql("SELECT to_regclass('left_over') IS NULL") == "t"
            assert limit_in_force(clean, "tables") == 10_000_000_000, "the new volume has the old one's limit"
        engine.close()
        assert clean.engine.plan().changes == ()

    in_network(check, timeout=120)


@pytest.mark.both_lts
def test_where_a_deletion_burdens_production_a_restore_brings_files_back_in_place(
    lab: Lab, clean: CleanStage, in_network: InNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way to change a file, also one that leaves its size and its time of change."""
    monkeypatch.setattr(step_runner, "burdens", lambda *_: True)
    volume = f"/var/lib/incus/storage-pools/pool/containers/{clean.engine.settings.project}_tables"
    listing = (
        r"find /srv /opt/gbo -maxdepth 1 -printf '%p %y %m %u %g %l\n'; ls /usr/bin; sha256sum /usr/bin/nl;"
        "stat -c '%a %y' /usr/bin/find /usr/bin/nl"
    )
    changes = """
        touch -r /usr/bin/nl /tmp/time
        printf changed | dd of=/usr/bin/nl bs=1 seek=1000 conv=notrunc 2>/dev/null
        touch -r /tmp/time /usr/bin/nl
        rm /usr/bin/sum
        chmod 700 /usr/bin/find
        chmod 0 /opt/gbo/bin
        echo left >/srv/left
        ln -s / /opt/gbo/left
    """

    def subvolume() -> str:
        return Ground(lab, lab.paths.lab).lab_command("btrfs", "inspect-internal", "rootid", volume)

    def check() -> None:
        clean.reset("tables", engine=engine)
        before, known = clean.shell("tables", listing), subvolume()
        clean.shell("tables", changes)
        clean.incus("config", "set", "tables", "user.left=1")
        assert clean.shell("tables", listing) != before
        assert clean.reset("tables", engine=engine)["tables"].way == "restore"
        assert clean.shell("tables", listing) == before
        assert subvolume() == known, "it is the same volume"
        clone = clean.engine.reader.instance(clean.engine.settings.project, "tables")
        assert clone is not None
        assert "user.left" not in clone.config
        assert limit_in_force(clean, "tables") == 10_000_000_000
        clean.shell("tables", "touch /srv/left; rm /usr/bin/find")
        clean.reset("tables", engine=engine)
        assert subvolume() != known, "where it can't be told what has changed, the snapshot is restored"
        assert clean.shell("tables", listing) == before
        assert clean.engine.plan().changes == ()

    engine = clean.another(tables="restore")
    in_network(check, timeout=120)
    engine.close()


def limit_in_force(clean: CleanStage, name: str) -> int | None:
    engine = clean.engine
    pool = engine.reader.pool("pool")
    return LocalHost(engine.reader.endpoint).limit(pool, f"{engine.settings.project}_{name}")


def test_provisioning_sets_a_limit_that_was_lost(lab: Lab, clean: CleanStage, in_network: InNetwork) -> None:
    """The clone runs, and its device names the limit: to Incus there is nothing to do."""
    volume = f"/var/lib/incus/storage-pools/pool/containers/{clean.engine.settings.project}_cache"
    Ground(lab, lab.paths.lab).lab_command("btrfs", "qgroup", "limit", "none", volume)
    assert limit_in_force(clean, "cache") == 0
    in_network(clean.engine.provision, timeout=60)
    assert limit_in_force(clean, "cache") == 10_000_000_000
