"""What resets read off a container, and how they speak to it: the parts that need no container."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from pytest_stagegbo.guest import removal
from pytest_stagegbo.guest.removal import ASIDE, delete_aside
from pytest_stagegbo.incus.channel import Channel, ChannelBroken
from pytest_stagegbo.resets import listing
from pytest_stagegbo.resets.cache import check_saved
from pytest_stagegbo.resets.host_inspection import MOST, HostInspection, inspect_from_host
from pytest_stagegbo.resets.listing import (
    Connection,
    Process,
    entries_script,
    inspect_script,
    parse_connections,
    parse_entries,
    parse_inspection,
    remove_script,
    written_script,
)
from pytest_stagegbo.resets.secrets import s3_keys, valkey_password
from pytest_stagegbo.resets.strays import StrayReport, parse_strays, strays_from_host
from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.workers import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = 30.0
OWN = Path("/proc/self")


class Pipe:
    """One of a real shell's three streams."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.closed = False

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChannelBroken("gone") from None

    def read(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return b""
        data = self._process.stdout.read1(4096)  # type: ignore[attr-defined]
        if not data:
            raise ChannelBroken("gone")
        return bytes(data)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def channel() -> Iterator[Channel]:
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        pipe = Pipe(process)
        yield Channel("cache", (pipe, pipe, pipe))
        process.kill()


class TestChannel:
    def test_whoever_was_interrupted_runs_nothing_more(self, channel: Channel) -> None:
        """By then others may have the stage."""
        event = threading.Event()
        event.set()
        token = INTERRUPTED.set(event)
        try:
            with pytest.raises(ChannelBroken, match="interrupted"):
                channel.run("echo one", LONG)
        finally:
            INTERRUPTED.reset(token)

    @pytest.mark.parametrize(
        ("script", "expected"),
        [
            ("echo one; echo two >&2", (0, b"one\ntwo\n")),
            ("exit 7", (7, b"")),
            ("", (0, b"")),
            ("cat", (0, b"")),
            ("printf 'a\\0b'", (0, b"a\0b")),
            ("set -e; false; echo never", (1, b"")),
            ("cd /tmp; x=1", (0, b"")),
        ],
    )
    def test_tells_status_and_output(self, channel: Channel, script: str, expected: tuple[int, bytes]) -> None:
        assert channel.run(script, LONG) == expected
        assert channel.run("echo ${x:-unset}", LONG) == (0, b"unset\n")

    @pytest.mark.parametrize(
        ("script", "expected"),
        [("echo one; exit 7", (7, b"one\n")), ("kill -9 $(exec sh -c 'echo $PPID')", (137, b""))],
        ids=["ends", "is killed"],
    )
    def test_what_ends_before_its_answer_has_its_status(
        self, channel: Channel, script: str, expected: tuple[int, bytes]
    ) -> None:
        assert channel.run(script, LONG, behind=True) == expected

    def test_what_goes_on_after_its_answer_stays_a_child_of_the_shell(self, channel: Channel, tmp_path: Path) -> None:
        """Else the container's first process would wake up for it."""
        go, found = tmp_path / "go", tmp_path / "found"
        rest = f"read -r word <{go}; read -r pid name state parent rest </proc/self/stat; echo $parent >{found}"
        script = f"mkfifo {go}; echo one; answer; echo never; {rest}; exit 7"
        assert channel.run(script, LONG, behind=True) == (0, b"one\n")
        _, shell = channel.run(f"echo >{go}; until [ -s {found} ]; do :; done; echo $$", LONG)
        assert found.read_bytes() == shell

    def test_functions_are_sent_once_and_again_after_others(self, channel: Channel) -> None:
        """A script that runs in a subshell can't change them."""
        one, other = "say() { echo one $1; }", "say() { echo other $1; }"
        assert channel.run("say 1; say() { :; }", LONG, library=one) == (0, b"one 1\n")
        sent: list[bytes] = []
        stream = channel._streams[0]
        write = stream.write

        def counted(data: bytes) -> None:
            sent.append(data)
            write(data)

        stream.write = counted  # type: ignore[method-assign]
        assert channel.run("say 2", LONG, library=one, behind=True) == (0, b"one 2\n")
        assert channel.run("say 3", LONG) == (0, b"one 3\n")
        assert not any(one.encode() in data for data in sent)
        assert channel.run("say 4", LONG, library=other) == (0, b"other 4\n")
        assert channel.run("say 5", LONG, library=one) == (0, b"one 5\n")

    def test_what_is_printed_is_told_while_the_script_goes_on(self, channel: Channel, tmp_path: Path) -> None:
        go = tmp_path / "go"
        told: list[bytes] = []
        os.mkfifo(go)

        def meanwhile(data: bytes) -> None:
            if not told:
                told.append(data)
                go.write_text("on\n")

        script = f"echo one; read -r word <{go}; echo $word"
        assert channel.run(script, LONG, meanwhile=meanwhile) == (0, b"one\non\n")
        assert told == [b"one\n"]

    def test_large_output_comes_whole(self, channel: Channel) -> None:
        assert channel.run("head -c 300000 /dev/zero", LONG) == (0, bytes(300000))

    def test_a_command_that_takes_too_long_ends_it(self, channel: Channel) -> None:
        with pytest.raises(ChannelBroken):
            channel.run("sleep 60", 0.05)
        assert not channel.is_open
        with pytest.raises(ChannelBroken):
            channel.run("true", LONG)

    def test_a_shell_that_dies_ends_it(self, channel: Channel) -> None:
        with pytest.raises(ChannelBroken):
            channel.run("kill -9 $$", LONG)
        assert not channel.is_open


def inspection(folder: Path) -> bytes:
    return subprocess.run(["sh", "-c", inspect_script("cache", [str(folder)])], capture_output=True, check=True).stdout


class TestLook:
    def test_reads_whatever_name_a_file_has(self, tmp_path: Path) -> None:
        names = {"a b", "a\nb", "ünï", "-rf", "\udcff", "$(id)", "'"}
        for name in names:
            (tmp_path / name).touch()
        found = parse_inspection(inspection(tmp_path))
        assert {entry.path for entry in found.entries} == {f"{tmp_path}/", *(f"{tmp_path}/{name}" for name in names)}
        assert found.note == ""
        assert found.processes == ()

    def test_a_file_that_is_gone_again_shows(self, tmp_path: Path) -> None:
        before = parse_inspection(inspection(tmp_path)).entries
        assert parse_inspection(inspection(tmp_path)).entries == before
        (tmp_path / "x").touch()
        (tmp_path / "x").unlink()
        assert parse_inspection(inspection(tmp_path)).entries != before

    def test_what_is_not_kept_is_removed(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept/file").touch()
        (tmp_path / "kept/other").touch()
        (tmp_path / ".hidden/deep").mkdir(parents=True)
        entries = parse_inspection(inspection(tmp_path)).entries
        kept = [entry for entry in entries if entry.path.endswith(("/kept", "/kept/file"))]
        subprocess.run(["sh", "-c", remove_script([str(tmp_path)], kept)], check=True, capture_output=True)
        left = {entry.path.removeprefix(f"{tmp_path}/") for entry in parse_inspection(inspection(tmp_path)).entries}
        assert left == {"", "kept", "kept/file"}

    def test_what_is_mounted_below_a_folder_is_neither_seen_nor_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The clone's boot has written down which folders these are."""
        folder, note = tmp_path / "folder", tmp_path / "mounts"
        (folder / "deep/mount").mkdir(parents=True)
        (folder / "deep/mount/kept").touch()
        (folder / "other").mkdir()
        for name in ("file", "deep/file", "other/file"):
            (folder / name).touch()
        note.write_text(f"set -- -path '{folder}/deep/mount' -prune -o -path '{folder}/deep' -o")
        own = f"set --\n[ ! -e {note} ] || . {note}\n"
        monkeypatch.setattr(listing, "_LEAVE_OUT_MOUNTS", own)
        subprocess.run(["sh", "-c", remove_script([str(folder)], [])], check=True, capture_output=True)
        assert (folder / "deep/mount/kept").exists()
        assert not (folder / "deep/file").exists()
        assert [entry.path for entry in parse_inspection(inspection(folder)).entries] == [f"{folder}/"]

    def test_no_more_entries_are_read_than_wanted_and_noted(self, tmp_path: Path) -> None:
        for number in range(100):
            (tmp_path / f"file\n{number}").touch()
        data = inspection(tmp_path)
        whole = parse_inspection(data)
        assert (len(whole.entries), whole.complete) == (101, True)
        assert parse_inspection(data, 101) == whole
        assert parse_inspection(data, 100) == replace(whole, entries=whole.entries[:100], complete=False)
        noted = data.replace(b"=\n\n", b'=\n{"kept": {"a": ["f"]}}\n', 1)
        assert parse_inspection(noted, 100).complete

    def test_single_paths_can_be_asked_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listing, "_MOST_PATHS", 2)
        for name in ("a", "b c", "-d", "e\nf"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "below").touch()
        entries = [entry for entry in parse_inspection(inspection(tmp_path)).entries if entry.kind == "d"]
        script = entries_script([*(entry.path for entry in entries), f"{tmp_path}/gone"])
        assert parse_entries(run_script(script)) == tuple(entries)
        assert parse_entries(run_script(entries_script([]))) == ()

    def test_what_a_user_wrote_is_found(self, tmp_path: Path) -> None:
        (tmp_path / "kept").touch()
        (tmp_path / "theirs").mkdir()
        kept = [entry for entry in parse_inspection(inspection(tmp_path)).entries if entry.path.endswith("/kept")]
        assert run_script(written_script([str(tmp_path)], kept, [4321, 4322])) == b""
        os.chown(tmp_path / "kept", 4321, 0)
        assert run_script(written_script([str(tmp_path)], kept, [4321, 4322])) == b""
        os.chown(tmp_path / "theirs", 4322, 0)
        assert run_script(written_script([str(tmp_path)], kept, [4321, 4322])) == f"{tmp_path}/theirs\n".encode()

    @pytest.mark.parametrize("data", [b"", b"\0=\n\0=\n", b"x\0=\n\nTcp: a\nTcp: 1\n\0=\n"])
    def test_anything_else_is_an_error(self, data: bytes) -> None:
        with pytest.raises(ValueError):
            parse_inspection(data)

    def test_connections_of_both_families(self) -> None:
        table = (
            b"  sl  local_address rem_address   st tx_queue\n"
            b"   0: 0E03000A:238C 0103000A:A276 01 00000000:00000000\n"
            b"   1: 0E03000A:238C 0103000A:A277 06 00000000:00000000\n"
            b"   2: 0000000000000000FFFF00000E03000A:238C 0000000000000000FFFF00000103000A:A278 01 0:0\n"
        )
        found = parse_connections(table)
        assert found == (Connection(9100, "10.0.3.1", 41590), Connection(9100, "10.0.3.1", 41592))


def run_script(script: str, *command: str) -> bytes:
    """What a script prints, run with `sh -eu` in a mount namespace of its own."""
    argv = ["unshare", "--mount", "sh", "-euc", script, "sh", *command]
    return subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout


class TestMoveAside:
    """What is in a folder of very many files goes beside it in one step, and is deleted later."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "it's work"
        for name in ("a", "b/deep", "kept", "kept/other"):
            (folder / name).mkdir(parents=True)
            (folder / name / "file").touch()
        (folder / "file").touch()
        return folder

    def move(self, folder: Path, *tests: str, before: str = "") -> list[str]:
        """What is left in the folder."""
        run_script(f'{before}\n{removal.functions()}move_aside "$@"', str(folder), *tests)
        return sorted(str(path.relative_to(folder)) for path in folder.iterdir())

    def aside(self, folder: Path) -> Path:
        return folder.with_name(folder.name + ASIDE)

    def test_folders_go_and_files_stay(self, folder: Path) -> None:
        inode = (folder / "b").stat().st_ino
        assert self.move(folder) == ["file"]
        assert (self.aside(folder) / "b").stat().st_ino == inode, "it was not renamed"
        assert self.aside(folder).stat().st_mode & 0o777 == 0o700

    def test_what_is_kept_stays_where_it_is(self, folder: Path) -> None:
        assert self.move(folder, "-name", "kept") == ["file", "kept"]
        assert sorted(path.name for path in (folder / "kept").iterdir()) == ["file"]
        assert sorted(path.name for path in self.aside(folder).iterdir()) == ["a", "b", "other"]

    def test_what_was_moved_before_goes_first(self, folder: Path) -> None:
        (self.aside(folder) / "old").mkdir(parents=True)
        self.move(folder)
        assert sorted(path.name for path in self.aside(folder).iterdir()) == ["a", "b", "kept"]

    def test_a_link_in_its_place_is_not_followed(self, folder: Path, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "precious").touch()
        self.aside(folder).symlink_to(elsewhere)
        assert self.move(folder) == ["file"]
        run_script(delete_aside([str(folder)], wait=True))
        assert [path.name for path in elsewhere.iterdir()] == ["precious"]
        assert not self.aside(folder).exists()

    @pytest.mark.parametrize(
        "before",
        [
            pytest.param('mount --bind "$1" "$1"', id="mount"),
            pytest.param('mkdir "$1.stagegbo-wiped"; mount -t tmpfs none "$1.stagegbo-wiped"', id="taken"),
            pytest.param("mkdir() { return 1; }", id="no room for a folder"),
            pytest.param("find() { return 1; }", id="no room for renaming"),
        ],
    )
    def test_what_can_not_be_moved_stays(self, folder: Path, before: str) -> None:
        assert "b" in self.move(folder, before=before)

    def test_a_folder_that_is_a_link_is_left_alone(self, folder: Path, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(folder)
        assert "b" in self.move(link)
        assert not self.aside(link).exists()

    def test_much_is_deleted_at_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would count as used for as long as it waits."""
        (folder / "a/large").write_bytes(os.urandom(100_000))
        monkeypatch.setattr(removal, "MOST_KIB", 50)
        self.move(folder)
        assert not self.aside(folder).exists()

    def test_it_is_deleted_by_the_next_removal(self, folder: Path) -> None:
        """Also by one that has nothing to move, after a run that was killed."""
        self.move(folder)
        run_script(f"{remove_script([str(folder)], [])}wait")
        assert not self.aside(folder).exists()
        assert list(folder.iterdir()) == []

    def test_a_removal_of_many_moves(self, folder: Path) -> None:
        kept = [
            entry
            for entry in parse_inspection(inspection(folder)).entries
            if entry.path.endswith(("/kept", "/kept/file"))
        ]
        script = remove_script([str(folder)], kept, many=True).replace("nice", "echo")
        run_script(script)
        assert sorted(path.name for path in self.aside(folder).iterdir()) == ["a", "b", "other"]
        assert [path.name for path in folder.rglob("*")] == ["kept", "file"]


class TestGlance:
    """Of this process's own root, network and folders, which a shell sees as a container's shell sees its own."""

    def own(self, *folders: Path) -> HostInspection:
        return inspect_from_host(OWN, [str(folder) for folder in folders], ())

    def test_shows_what_a_look_from_inside_shows(self, tmp_path: Path) -> None:
        (tmp_path / "folder/deep").mkdir(parents=True)
        (tmp_path / "folder/file").write_text("x")
        (tmp_path / "\udcff \n").touch()
        (tmp_path / "link").symlink_to("/etc/passwd")
        os.mkfifo(tmp_path / "pipe")
        for _ in range(50):  # whoever else uses this machine's network connects meanwhile
            seen, inside = self.own(tmp_path), parse_inspection(inspection(tmp_path))
            assert seen.agrees(inside)
            if (seen.accepted, seen.established) == (inside.accepted, inside.established):
                break
        else:
            pytest.fail(f"connections differ in all looks, {seen} and {inside} being the last")

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda folder: (folder / "new").touch(), id="new"),
            pytest.param(lambda folder: (folder / "deep/file").unlink(), id="gone"),
            pytest.param(lambda folder: (folder / "deep/file").write_text("y"), id="rewritten"),
            pytest.param(lambda folder: (folder / "deep/file").chmod(0o600), id="mode"),
            pytest.param(lambda folder: os.utime(folder / "deep", (1, 1)), id="times"),
            pytest.param(lambda folder: (folder / "deep/file").rename(folder / "deep/other"), id="renamed"),
        ],
    )
    def test_a_change_shows(self, tmp_path: Path, change: Callable[[Path], object]) -> None:
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep/file").write_text("x")
        before = self.own(tmp_path)
        assert self.own(tmp_path).entries == before.entries
        time.sleep(0.02)  # longer than the kernel's clock for files takes to tick
        change(tmp_path)
        assert self.own(tmp_path).entries != before.entries

    def test_a_process_is_told_from_a_later_one_of_its_number(self, tmp_path: Path) -> None:
        seen = inspect_from_host(OWN, [str(tmp_path)], [Process(os.getpid(), 0)])
        own = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        assert seen.processes == (Process(os.getpid(), int(own)),)

    def test_a_folder_behind_a_link_is_not_looked_into(self, tmp_path: Path) -> None:
        """An absolute link in a container would lead to the host's folders."""
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with pytest.raises(OSError):
            self.own(tmp_path / "link")

    def test_too_much_is_an_error(self, tmp_path: Path) -> None:
        for number in range(MOST + 1):
            (tmp_path / str(number)).touch()
        with pytest.raises(ValueError, match=str(MOST)):
            self.own(tmp_path)

    def test_what_is_gone_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(OSError):
            self.own(tmp_path / "missing")
        with pytest.raises(OSError):
            inspect_from_host(Path("/proc/0"), [str(tmp_path)], ())
        with pytest.raises(OSError):
            inspect_from_host(OWN, [str(tmp_path)], [Process(1 << 30, 0)])

    def test_nothing_stays_open(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        before = len(list(Path("/proc/self/fd").iterdir()))
        self.own(tmp_path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("requirepass secret", "secret"),
        ('  REQUIREPASS "two words" ', "two words"),
        ("# requirepass no\nport 1", ""),
        ("requirepass one\n--requirepass two ", "two"),
        ("", ""),
    ],
)
def test_the_password_of_valkey(text: str, expected: str) -> None:
    assert valkey_password(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MINIO_ROOT_USER=me\nMINIO_ROOT_PASSWORD=a=b", ("me", "a=b")),
        ('RCLONE_AUTH_KEY="key,word"', ("key", "word")),
        ("MINIO_ROOT_USER=me", ("", "")),
        ("", ("", "")),
    ],
)
def test_the_keys_of_s3(text: str, expected: tuple[str, str]) -> None:
    assert s3_keys(text) == expected


@pytest.mark.parametrize(
    "said", [{"rdb_last_bgsave_status": "err"}, {"rdb_last_bgsave_status": "ok", "rdb_bgsave_in_progress": "1"}]
)
def test_a_valkey_whose_save_failed_or_goes_on_is_doubted(said: dict[str, str]) -> None:
    """Its file may have been removed under it, and after a failed save it refuses writes."""
    with pytest.raises(NeedsRestart, match="could not save"):
        check_saved(said)


@pytest.mark.parametrize("said", [{}, {"rdb_last_bgsave_status": "ok", "rdb_bgsave_in_progress": "0"}])
def test_a_valkey_that_saved_or_never_did_is_not(said: dict[str, str]) -> None:
    check_saved(said)


class TestStrays:
    """Processes of a container that is laid out as files."""

    known = StrayReport(frozenset({"1:22", "28:22"}), ("valkey.service", "user@0.service"), "7")

    def container(self, folder: Path, cgroups: dict[str, str], slept: str = "7", environ: str = "") -> Path:
        (folder / "status").write_text(
            f"Name:\tinit\nvoluntary_ctxt_switches:\t{slept}\nnonvoluntary_ctxt_switches:\t1\n"
        )
        for pid, cgroup in {"1": "0::/init.scope", "28": "0::/system.slice/valkey.service", **cgroups}.items():
            process = folder / "root/proc" / pid
            process.mkdir(parents=True)
            (process / "cgroup").write_text(f"{cgroup}\n")
            (process / "stat").write_text(f"{pid} (a) b) S {' '.join(map(str, range(4, 23)))}\n")
            (process / "environ").write_text(environ)
        (folder / "root/proc/net").mkdir()
        return folder

    def test_the_same_processes_are_the_same(self, tmp_path: Path) -> None:
        assert strays_from_host(self.container(tmp_path, {}), self.known) == self.known

    def test_what_was_woken_shows(self, tmp_path: Path) -> None:
        found = strays_from_host(self.container(tmp_path, {}, slept="8"), self.known)
        assert found is not None
        assert found.slept == "8"

    @pytest.mark.parametrize(
        "cgroup",
        [
            pytest.param("0::/system.slice/valkey.service", id="a child of a unit's"),
            pytest.param("0::/lxc.payload.cache/system.slice/valkey.service", id="seen from the host"),
            pytest.param("9:name=systemd:/system.slice/valkey.service\n8:pids:/\n0::/.lxc", id="cgroups of version 1"),
            pytest.param("0::/user.slice/user-0.slice/user@0.service/app.slice/x.service", id="below a user's systemd"),
        ],
    )
    def test_units_may_start_processes(self, tmp_path: Path, cgroup: str) -> None:
        found = strays_from_host(self.container(tmp_path, {"99": cgroup}), self.known)
        assert found is not None
        assert "99:22" in found.processes

    @pytest.mark.parametrize(
        "cgroup",
        [
            pytest.param("0::/.lxc", id="exec"),
            pytest.param("9:name=systemd:/\n0::/.lxc", id="exec, with cgroups of version 1"),
            pytest.param("0::/system.slice/run-u1.service", id="another unit"),
            pytest.param("0::/own", id="a cgroup of its own"),
        ],
    )
    def test_others_may_not_run(self, tmp_path: Path, cgroup: str) -> None:
        assert strays_from_host(self.container(tmp_path, {"99": cgroup}), self.known) is None

    def test_own_shells_may(self, tmp_path: Path) -> None:
        process = self.container(tmp_path, {"99": "0::/.lxc"}, environ="A=1\0STAGEGBO_OWN=1\0")
        assert strays_from_host(process, self.known) is not None

    def test_what_ended_is_forgotten(self, tmp_path: Path) -> None:
        known = StrayReport(self.known.processes | {"30:9"}, self.known.units, "7")
        assert strays_from_host(self.container(tmp_path, {}), known) == self.known

    def test_a_number_that_was_given_again_is_another_process(self, tmp_path: Path) -> None:
        known = StrayReport(frozenset({"1:22", "99:5"}), self.known.units, "7")
        assert strays_from_host(self.container(tmp_path, {"99": "0::/.lxc"}), known) is None

    def test_another_start_of_the_container_is_an_error(self, tmp_path: Path) -> None:
        known = StrayReport(frozenset({"1:21", "28:22"}), self.known.units, "7")
        with pytest.raises(ValueError, match="another start"):
            strays_from_host(self.container(tmp_path, {"1": "0::/system.slice/valkey.service"}), known)

    def test_the_script_s_answer(self) -> None:
        said = b"ended process 9 (sh -c PGPASSWORD=secret-word psql)\nslept 7\nunits  a.service \n"
        said += b"processes  1:5 9:9\nleft x.timer\n"
        found = parse_strays(said)
        assert (found.units, found.slept, found.left) == (("a.service",), "7", ("x.timer",))
        assert found.processes == {"1:5", "9:9"}
        assert "secret-word" not in found.ended[0]

    @pytest.mark.parametrize("said", [b"", b"systemd in this container does not answer\n", b"slept 7\nunits a\n"])
    def test_anything_else_is_an_error(self, said: bytes) -> None:
        with pytest.raises(ValueError):
            parse_strays(said)
