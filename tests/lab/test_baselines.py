"""Named states of several containers: what they have, where resets go, and what becomes of a save that was killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.pollution import MINIO, VALKEY, WORK, residues
from tests.lab.small_stage import THREE, CleanStage

from pytest_stagegbo.errors import BaselineMissing, OperationFailed
from pytest_stagegbo.guest import moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.conftest import InNetwork

    from pytest_stagegbo.lab.standin.botserver import Cache

pytestmark = pytest.mark.lab

FOUR = (*THREE, "tables")


class Content:
    """A word in each of the four containers, as their services or files tell it."""

    def __init__(self, clean: CleanStage) -> None:
        self._clean = clean

    def put(self, word: str) -> None:
        place = self._clean.place
        with contextlib.closing(place.cache()) as cache:
            cache.call("SET", "word", word)
        drive = place.drive()
        if "words" not in drive.buckets():
            drive.call("PUT", "/words")
        drive.call("PUT", "/words/word", body=word.encode())
        folder = place.rootfs["system"] / WORK / "words"
        folder.mkdir(exist_ok=True)
        (folder / "word").write_text(word)
        table = "CREATE TABLE IF NOT EXISTS words (word text)"
        self._clean.sql(table, f"DELETE FROM words; INSERT INTO words VALUES ('{word}')")

    def get(self) -> dict[str, str]:
        place = self._clean.place
        with contextlib.closing(place.cache()) as cache:
            found = {"cache": (cache.call("GET", "word") or b"").decode()}
        drive = place.drive()
        found["drive"] = drive.call("GET", "/words/word").decode() if "words" in drive.buckets() else ""
        file = place.rootfs["system"] / WORK / "words/word"
        found["system"] = file.read_text() if file.exists() else ""
        there = self._clean.sql("SELECT to_regclass('words') IS NOT NULL") == "t"
        found["tables"] = self._clean.sql("SELECT word FROM words") if there else ""
        return found


def everywhere(word: str) -> dict[str, str]:
    return dict.fromkeys(FOUR, word)


@pytest.fixture
def content(clean: CleanStage, in_network: InNetwork) -> Iterator[Content]:
    def tidy() -> None:
        for name in clean.engine.baselines.found().folders:
            clean.engine.baselines.delete(name)
        clean.reset(*FOUR)

    in_network(tidy, timeout=120)
    yield Content(clean)
    in_network(tidy, timeout=120)


@pytest.mark.both_lts
def test_resets_go_to_the_state_that_is_asked_for(clean: CleanStage, content: Content, in_network: InNetwork) -> None:
    """From any one to any other, and back to the plain clean one; another process goes by what is there."""

    def check() -> None:
        baselines = clean.engine.baselines
        clean.reset(*FOUR)
        for word in ("one", "two"):
            content.put(word)
            about = baselines.save(word)
            assert set(about.containers) == set(FOUR)
            assert content.get() == everywhere(word), "saving changes nothing"
            content.put("dirt")
        for word in ("one", "two", "one", ""):
            clean.engine.reset(FOUR, baseline=word)
            assert content.get() == everywhere(word)
            content.put("dirt")
        clean.engine.reset(FOUR, baseline="two")
        other = clean.another()
        other.reset(FOUR)
        other.close()
        assert content.get() == everywhere("")
        assert residues(clean.place) == []
        clean.engine.reset(FOUR, baseline="two")  # this process still takes it for what it left
        assert content.get() == everywhere("two")
        clean.engine.reset(FOUR, baseline="two")
        ways = {each.name: each.way for each in clean.engine.reset(FOUR, baseline="two")}
        assert ways.pop("tables") in {"spare", "untouched"}, "it is known once the work behind the last reset is done"
        assert ways == dict.fromkeys(THREE, "untouched")

    in_network(check, timeout=120)


def test_some_containers_alone(clean: CleanStage, content: Content, in_network: InNetwork) -> None:
    """The others are clean as ever."""

    def check() -> None:
        content.put("one")
        clean.engine.baselines.save("some", ["cache", "system"])
        clean.engine.reset(FOUR, baseline="some")
        assert content.get() == {**everywhere(""), "cache": "one", "system": "one"}

    in_network(check, timeout=120)


def test_without_an_append_only_file_it_has_what_is_in_memory(
    clean: CleanStage, content: Content, in_network: InNetwork
) -> None:
    configuration = "/opt/gbo/conf/valkey.conf"

    def set_appending(word: str) -> None:
        clean.shell("cache", f"sed -i 's/^appendonly .*/appendonly {word}/' {configuration}; systemctl restart valkey")
        clean.wait("cache")

    def check() -> None:
        set_appending("no")
        try:
            content.put("one")
            clean.engine.baselines.save("memory", ["cache"])
            content.put("dirt")
            clean.engine.reset(["cache"], baseline="memory")
            assert content.get()["cache"] == "one"
        finally:
            set_appending("yes")

    in_network(check, timeout=120)


PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


@contextlib.contextmanager
def syncs_held(clean: CleanStage) -> Iterator[None]:
    """While the block runs, Valkey's thread that syncs the append-only file is stopped, as on a busy disk.

    Only ptrace(2) stops one thread of a process. The thread that calls it has to let the other one go on.
    """
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    root = clean.place.rootfs["cache"]  # another lab's stage may have the same names
    (task,) = [each for each in Path("/proc").glob("[0-9]*/task/*") if _is_syncing(each, root)]
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        assert ptrace(request, int(task.name), None, None) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        os.waitpid(int(task.name), WALL)
        assert ptrace(PTRACE_DETACH, int(task.name), None, None) == 0, os.strerror(ctypes.get_errno())


def _is_syncing(task: Path, root: Path) -> bool:
    try:
        return (task / "comm").read_text() == "bio_aof\n" and (task / "root").samefile(root)
    except OSError:
        return False


@pytest.mark.both_lts
def test_what_valkey_has_answered_for_and_not_yet_appended_is_kept(
    clean: CleanStage, content: Content, in_network: InNetwork
) -> None:
    """While the disk is busy with a sync, it answers first."""

    def buffered(cache: Cache) -> int:
        said = (cache.call("INFO", "persistence") or b"").decode()
        return int(re.search(r"aof_buffer_length:(\d+)", said)[1])  # type: ignore[index] # one that appends has it

    def check() -> None:
        clean.reset("cache")
        with contextlib.closing(clean.place.cache()) as cache, syncs_held(clean):
            ends = time.monotonic() + 60
            number = 0
            while not buffered(cache):  # it syncs once a second
                assert time.monotonic() < ends
                number += 1
                cache.call("SET", "word", f"late {number}")
            clean.engine.baselines.save("late", ["cache"])
        clean.engine.baselines.use("late")
        assert content.get()["cache"] == f"late {number}"

    in_network(check, timeout=120)


def test_it_is_the_state_of_one_moment(clean: CleanStage, content: Content, in_network: InNetwork) -> None:
    """Of somebody who writes one number to each container, one after the other, without a pause."""
    ended = threading.Event()

    def write() -> None:
        cache, number = clean.place.cache(), 0
        file = clean.place.rootfs["system"] / WORK / "words/number"
        writing = clean.another()
        try:
            while not ended.is_set():
                number += 1
                drive = clean.place.drive()
                cache.call("SET", "number", number)
                drive.call("PUT", "/words/number", body=str(number).encode())
                done = writing.execute("system", ["sh", "-c", f"echo {number} >/{WORK}/words/number"])
                assert done.status == 0, done.stderr
        finally:
            cache.close()
            writing.close()
        assert file.exists()

    def check() -> None:
        content.put("one")
        with contextlib.ExitStack() as ends:
            thread = threading.Thread(target=write)
            thread.start()
            ends.callback(thread.join, 60)
            ends.callback(ended.set)
            for _ in range(3):
                clean.engine.baselines.save("moment", THREE, replace=True)
        clean.engine.reset(THREE, baseline="moment")
        cache = clean.place.cache()
        numbers = [int(cache.call("GET", "number")), int(clean.place.drive().call("GET", "/words/number"))]
        cache.close()
        numbers.append(int((clean.place.rootfs["system"] / WORK / "words/number").read_text()))
        assert numbers == sorted(numbers, reverse=True)
        assert numbers[0] - numbers[-1] <= 1

    in_network(check, timeout=120)


@pytest.mark.usefixtures("content")
def test_a_hold_that_takes_too_long_ends_by_itself_and_nothing_is_kept(
    clean: CleanStage, in_network: InNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "sleep 1.2\n"
    monkeypatch.setattr(moment, "LONGEST", 1)
    keep = "pytest_stagegbo.guest.baselines.keep_script"
    from pytest_stagegbo.guest import baselines as guest

    original = guest.keep_script
    monkeypatch.setattr(keep, lambda *arguments: slow + original(*arguments))

    def check() -> None:
        with pytest.raises(OperationFailed, match="went on before everything was kept"):
            clean.engine.baselines.save("late")
        assert clean.engine.baselines.found().folders == {}
        assert [clean.shell(name, "ls /run/stagegbo-held* 2>/dev/null | wc -l") for name in FOUR] == ["0"] * 4
        clean.wait(*FOUR)

    in_network(check, timeout=120)


KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.guest import moment
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.lab import Lab
from pytest_stagegbo.resets.target import ResetTarget
from pytest_stagegbo.settings import load

file, action, name, word = sys.argv[1:]
original = ResetTarget.run

def run(self, script, *arguments, **options):
    answer = original(self, script, *arguments, **options)
    if word in script and self.name == name:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

ResetTarget.run = run
if word in ("kill -STOP", "cp -a"):
    moment.LONGEST = 1  # so that nobody waits long for what goes on by itself
Lab.find().join_network()
settings = load(Path(file), Path(), {}).settings
engine = StageEngine(settings, Connection(settings.incus))
if action == "save":
    engine.baselines.save("one", replace=True)
else:
    engine.baselines.use("one")
"""


def killed(clean: CleanStage, action: str, name: str, word: str) -> None:
    """Run a command in a process that is killed once a script with this word was run in a container."""
    argv = [sys.executable, "-c", KILLED, str(clean.file), action, name, word]
    done = subprocess.run(argv, capture_output=True, text=True, env=dict(os.environ), timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


HELD = {"held": ("drive", "kill -STOP"), "kept": ("cache", "cp -a")}
DESCRIBED = ("tables", "sha256sum >files")


def test_a_save_that_was_killed_leaves_a_whole_baseline_or_none(
    clean: CleanStage, content: Content, in_network: InNetwork
) -> None:
    """Until its commit, it is the one before; all that was held goes on."""

    def check() -> None:
        baselines = clean.engine.baselines
        clean.reset(*FOUR)
        content.put("one")
        killed(clean, "save", *DESCRIBED)
        assert baselines.found().folders == {}
        first = baselines.save("one")
        content.put("two")
        for step, (name, word) in HELD.items():
            killed(clean, "save", name, word)
            clean.wait(*FOUR)
            assert content.get() == everywhere("two"), step
            assert baselines.found().whole == {"one": first}, step
        clean.engine.reset(FOUR, baseline="one")
        assert content.get() == everywhere("one")
        content.put("two")
        killed(clean, "save", "system", "&& { [ -d")  # the first of four: from here on it is there
        clean.engine.reset(FOUR, baseline="one")
        assert content.get() == everywhere("two")
        baselines.save("other", ["system"])  # and with it, what nobody needs goes
        found = baselines.found()
        assert found.garbage == {}
        assert set(found.whole) == {"one", "other"}

    in_network(check, timeout=180)


def test_a_reset_to_a_baseline_that_was_killed_is_finished_by_the_next(
    clean: CleanStage, content: Content, in_network: InNetwork
) -> None:
    def check() -> None:
        content.put("one")
        clean.engine.baselines.save("one")
        content.put("dirt")
        killed(clean, "use", "tables", "stagegbo-old")
        assert clean.engine.lock().unfinished(FOUR) == set(FOUR)
        for word in ("one", ""):
            clean.engine.reset(FOUR, baseline=word)
            assert content.get() == everywhere(word)

    in_network(check, timeout=120)


def test_what_is_not_whole_is_refused(clean: CleanStage, content: Content, in_network: InNetwork) -> None:
    """With the reason: nothing is used that is not what was saved."""

    def check() -> None:
        content.put("one")
        clean.engine.baselines.save("one")
        with pytest.raises(BaselineMissing, match="there is a baseline one already"):
            clean.engine.baselines.save("one")
        with pytest.raises(BaselineMissing, match="no baseline two"):
            clean.engine.reset(FOUR, baseline="two")
        clean.shell("drive", f"rm -r /{MINIO}.stagegbo-baselines/*")
        with pytest.raises(BaselineMissing, match="drive has no part of it any more"):
            clean.engine.reset(FOUR, baseline="one")
        clean.engine.baselines.save("cache", ["cache"])
        clean.shell("cache", f"for file in /{VALKEY}.stagegbo-baselines/*/0/*/*.aof; do echo x >>$file; done")
        with pytest.raises(Exception, match="not those that were kept"):
            clean.engine.reset(["cache"], baseline="cache")
        clean.reset("cache")
        assert content.get() == {**everywhere("one"), "cache": ""}

    in_network(check, timeout=120)
