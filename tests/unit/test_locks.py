"""Who holds a stage, between processes that may die at any moment."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo import locks
from pytest_stagegbo.errors import LockTimeout, MissingRequirement
from pytest_stagegbo.locks import StageLock, lock_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 10.0
AT_ONCE = 0.0
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what another user would have made")

HOLDER = """
import sys
from pathlib import Path
from pytest_stagegbo import locks

locks.PARENTS = (Path(sys.argv[1]),)
lock = locks.StageLock(sys.argv[2], "server", "STAGE-GBO", 0)
with lock.hold("provision", shared=sys.argv[3].split(), exclusive=sys.argv[4].split() or [locks.STAGE]):
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that holds locks until its parent releases or kills it."""

    def __init__(self, parent: Path, endpoint: str, shared: str, exclusive: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(parent), endpoint, shared, exclusive],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "held\n"

    def let_go(self) -> None:
        self._process.communicate(timeout=PATIENCE)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=PATIENCE)


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "lock"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(locks, "PARENTS", (folder,))
    return folder


@pytest.fixture
def endpoint() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        yield f"{folder}/s"


@pytest.fixture
def hold(parent: Path, endpoint: str) -> Iterator[Callable[..., Holder]]:
    """Start another process that holds the stage, or the containers named."""
    with contextlib.ExitStack() as ends:

        def start(shared: str = "", exclusive: str = "") -> Holder:
            holder = Holder(parent, endpoint, shared, exclusive)
            ends.callback(holder.kill)
            return holder

        yield start


@pytest.fixture
def lock(parent: Path, endpoint: str) -> Callable[..., StageLock]:
    def make(timeout: float = AT_ONCE, *, server: str = "server", project: str = "STAGE-GBO") -> StageLock:
        assert parent.is_dir()
        return StageLock(endpoint, server, project, timeout)

    return make


class TestHolding:
    def test_a_free_stage_is_held_at_once(self, lock: Callable[..., StageLock]) -> None:
        with lock().hold("provision", waiting=pytest.fail):
            pass

    def test_a_stage_can_be_held_again(self, lock: Callable[..., StageLock]) -> None:
        mine = lock()
        for _ in range(2):
            with mine.hold("provision"):
                pass

    def test_what_ends_the_block_ends_the_hold(self, lock: Callable[..., StageLock]) -> None:
        with pytest.raises(ZeroDivisionError), lock().hold("provision"):
            raise ZeroDivisionError
        with lock().hold("provision"):
            pass

    def test_two_in_one_process_exclude_each_other_too(self, lock: Callable[..., StageLock]) -> None:
        with lock().hold("provision"), pytest.raises(LockTimeout), lock().hold("reset"):
            pass

    @pytest.mark.parametrize(
        "other", [{"server": "another"}, {"project": "STAGE-2"}], ids=["another-daemon", "another-stage"]
    )
    def test_other_stages_are_not_held(self, lock: Callable[..., StageLock], other: dict[str, str]) -> None:
        with lock().hold("provision"), lock(**other).hold("provision"):
            pass


class TestTwoProcesses:
    def test_the_second_does_not_get_what_the_first_holds(
        self, hold: Callable[..., Holder], lock: Callable[..., StageLock]
    ) -> None:
        hold()
        with pytest.raises(LockTimeout, match="stage STAGE-GBO was not free within 0 s"), lock().hold("reset"):
            pass

    def test_the_error_names_the_holder(self, hold: Callable[..., Holder], lock: Callable[..., StageLock]) -> None:
        holder = hold()
        with pytest.raises(LockTimeout) as caught, lock().hold("reset"):
            pass
        assert re.fullmatch(rf"held by process {holder.pid} \(provision\) since \d\d:\d\d:\d\d", caught.value.seen)

    def test_the_second_gets_it_when_the_first_lets_go(
        self, hold: Callable[..., Holder], lock: Callable[..., StageLock]
    ) -> None:
        holder = hold()
        with lock(PATIENCE).hold("reset", waiting=lambda _: holder.let_go()):
            pass

    def test_the_second_gets_it_when_the_first_is_killed(
        self, hold: Callable[..., Holder], lock: Callable[..., StageLock]
    ) -> None:
        holder = hold()
        with lock(PATIENCE).hold("reset", waiting=lambda _: holder.kill()):
            pass

    def test_who_waits_is_told_once_for_whom(self, hold: Callable[..., Holder], lock: Callable[..., StageLock]) -> None:
        holder, told = hold(), list[str]()

        def waiting(who: str) -> None:
            told.append(who)
            holder.let_go()

        with lock(PATIENCE).hold("reset", waiting=waiting):
            pass
        (who,) = told
        assert f"process {holder.pid} (provision)" in who

    def test_a_killed_holder_is_not_named_any_more(
        self, hold: Callable[..., Holder], lock: Callable[..., StageLock]
    ) -> None:
        holder = hold()
        holder.kill()
        assert str(holder.pid) not in lock().holder()
        assert not list(lock().folder.glob("*.holder"))

    def test_nor_is_a_later_process_with_its_number(
        self, hold: Callable[..., Holder], lock: Callable[..., StageLock]
    ) -> None:
        killed, alive = hold(exclusive="cache"), hold(exclusive="drive")
        killed.kill()
        for card in lock().folder.glob(f"{killed.pid}-*.holder"):
            card.write_text(card.read_text().replace(f'"pid": {killed.pid},', f'"pid": {alive.pid},'))
        assert re.fullmatch(rf"process {alive.pid} \(provision\) since \S+", lock().holder())


class TestContainers:
    """Those who use a container share it; who changes it has it alone."""

    def test_users_share(self, hold: Callable[..., Holder], lock: Callable[..., StageLock]) -> None:
        hold(shared="cache", exclusive="drive")
        with lock().hold("test", shared=["cache"], exclusive=[]):
            pass

    @pytest.mark.parametrize(("theirs", "mine"), [("shared", "exclusive"), ("exclusive", "shared")])
    def test_a_changer_excludes_users(
        self, hold: Callable[..., Holder], lock: Callable[..., StageLock], theirs: str, mine: str
    ) -> None:
        hold(**{"exclusive": "drive", theirs: "cache"})
        names: dict[str, list[str]] = {"shared": [], "exclusive": [], mine: ["cache"]}
        with pytest.raises(LockTimeout, match="container cache"):
            lock().acquire("test", shared=names["shared"], exclusive=names["exclusive"])

    def test_another_container_is_free(self, hold: Callable[..., Holder], lock: Callable[..., StageLock]) -> None:
        hold(exclusive="cache")
        with lock().hold("test", exclusive=["drive"]):
            pass

    def test_who_waits_for_several_is_told_once(
        self, hold: Callable[..., Holder], lock: Callable[..., StageLock]
    ) -> None:
        cache, told = hold(exclusive="cache"), list[str]()
        hold(exclusive="drive")

        def waiting(who: str) -> None:
            told.append(who)
            cache.let_go()

        with pytest.raises(LockTimeout, match="container drive"):
            lock(0.3).acquire("test", waiting, exclusive=["cache", "drive"])
        assert len(told) == 1

    def test_who_fails_to_get_all_keeps_none(self, hold: Callable[..., Holder], lock: Callable[..., StageLock]) -> None:
        hold(exclusive="drive")
        mine = lock()
        with pytest.raises(LockTimeout), mine.hold("test", exclusive=["cache", "drive"]):
            pass
        with lock().hold("test", exclusive=["cache"]):
            pass


class TestFolder:
    """Everybody who may use the daemon's socket may use the folder, and nobody else."""

    def test_belongs_to_the_group_of_the_socket(self, parent: Path, endpoint: str) -> None:
        folder = lock_folder(endpoint)
        assert folder == parent / "stagegbo"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o2770
        assert folder.stat().st_gid == Path(endpoint).stat().st_gid

    @as_root
    def test_follows_a_group_that_is_not_ones_own(self, parent: Path, endpoint: str) -> None:
        assert parent
        os.chown(endpoint, 0, 4321)
        assert lock_folder(endpoint).stat().st_gid == 4321

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077], ids=oct)
    def test_and_its_locks_do_not_depend_on_the_umask(
        self, lock: Callable[..., StageLock], mask: int, parent: Path
    ) -> None:
        before = os.umask(mask)
        try:
            with lock().hold("provision"):
                modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in (parent / "stagegbo").rglob("*")}
        finally:
            os.umask(before)
        assert (modes[""], modes[".lock"], modes[".gate"]) == (0o2770, 0o660, 0o660)

    def test_is_in_the_first_place_that_is_open_to_everybody(
        self, tmp_path: Path, parent: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not in the first that this user may write to: another user would take another one."""
        (tmp_path / "roots").mkdir(mode=0o755)
        monkeypatch.setattr(locks, "PARENTS", (tmp_path / "missing", tmp_path / "roots", parent))
        assert lock_folder(endpoint) == parent / "stagegbo"

    def test_for_a_remote_daemon_is_ones_own(self, parent: Path) -> None:
        assert lock_folder("https://203.0.113.1:8443") == parent / f"stagegbo-{os.geteuid()}"

    def test_that_is_a_link_is_refused_and_its_target_left_alone(
        self, tmp_path: Path, parent: Path, endpoint: str
    ) -> None:
        target = tmp_path / "etc"
        target.mkdir()
        target.chmod(0o755)
        (parent / "stagegbo").symlink_to(target)
        with pytest.raises(MissingRequirement, match=r"the lock folder .* can't be used"):
            lock_folder(endpoint)
        assert stat.S_IMODE(target.stat().st_mode) == 0o755

    def test_that_is_a_file_is_refused(self, parent: Path, endpoint: str) -> None:
        (parent / "stagegbo").touch()
        with pytest.raises(MissingRequirement):
            lock_folder(endpoint)

    @as_root
    def test_of_somebody_who_may_not_use_the_socket_is_refused(self, parent: Path, endpoint: str) -> None:
        (parent / "stagegbo").mkdir()
        os.chown(parent / "stagegbo", 12345, 12345)
        with pytest.raises(MissingRequirement, match="of user 12345"):
            lock_folder(endpoint)

    @as_root
    def test_of_another_user_of_the_socket_is_used_as_it_is(self, parent: Path, endpoint: str) -> None:
        os.chown(endpoint, 0, 4321)
        (parent / "stagegbo").mkdir(mode=0o750)
        os.chown(parent / "stagegbo", 12345, 4321)
        assert stat.S_IMODE(lock_folder(endpoint).stat().st_mode) == 0o750

    def test_that_cannot_be_made_is_said(self, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(locks, "PARENTS", (tmp_path / "missing",))
        with pytest.raises(MissingRequirement, match="stagegbo can't be used"):
            lock_folder(endpoint)

    def test_whose_locks_cannot_be_opened_is_said(self, lock: Callable[..., StageLock]) -> None:
        mine = lock()
        mine.folder.touch()
        with pytest.raises(MissingRequirement, match="can't be used"), mine.hold("provision"):
            pass


class TestCleanNote:
    """What says that a stage is clean does not outlast its next use, however that ends."""

    def test_it_is_of_the_stage_that_was_noted(self, lock: Callable[..., StageLock]) -> None:
        noting = lock()
        assert noting.clean_note() == ""
        noting.make_folder()
        noting.note_clean("these clones")
        assert lock().clean_note() == "these clones"

    @pytest.mark.parametrize(
        ("shared", "exclusive", "stays"),
        [
            pytest.param([locks.STAGE], [], True, id="a look"),
            pytest.param([], [".lease"], True, id="a lease"),
            pytest.param([locks.STAGE, "cache"], [], False, id="use"),
            pytest.param([locks.STAGE], ["cache"], False, id="a reset"),
        ],
    )
    def test_using_a_container_ends_it(
        self, lock: Callable[..., StageLock], shared: list[str], exclusive: list[str], stays: bool
    ) -> None:
        noting = lock()
        noting.make_folder()
        noting.note_clean("these clones")
        with lock().hold("something", shared=shared, exclusive=exclusive):
            assert bool(noting.clean_note()) is stays

    def test_who_may_keep_it_does(self, lock: Callable[..., StageLock]) -> None:
        noting = lock()
        noting.make_folder()
        noting.note_clean("these clones")
        noting.acquire("a look at a clean stage", exclusive=["cache"], keep_note=True)
        assert noting.clean_note() == "these clones"
        noting.mark_dirty()
        assert noting.clean_note() == ""
        noting.mark_dirty()
        noting.release()
