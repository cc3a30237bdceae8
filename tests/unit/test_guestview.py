"""Looking into a container from the daemon's host: what is read, and that it leaves no trace."""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.incus.guestview import Connected, GuestView, Listening, parse_sockets, unit_of

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TCP = (
    HEAD
    + "   0: 00000000:1538 00000000:0000 0A 0:0 0:0 0   105        0 4711 1 0 100 0 0 10 0\n"
    + "   1: 0A02000A:C001 0B02000A:1538 01 0:0 0:0 0   105        0 4712 1 0 20 4 0 10 -1\n"
)
TCP6 = (
    HEAD
    + "   0: 00000000000000000000000001000000:1F40 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 4713 1\n"
    + "   1: 0000000000000000FFFF00000A02000A:16E2 0000000000000000FFFF00000102000A:C002 01 0:0 0:0 0 0 0 4714 1\n"
)


def test_sockets_are_read_as_the_kernel_writes_them() -> None:
    listening, connected = parse_sockets(TCP)
    assert listening == [Listening(IPv4Address("0.0.0.0"), 5432, "4711")]
    assert connected == [Connected(IPv4Address("10.0.2.11"), 5432)]
    listening, connected = parse_sockets(TCP6)
    assert listening == [Listening(IPv6Address("::1"), 8000, "4713")]
    assert connected == [Connected(IPv4Address("10.0.2.1"), 49154)]


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        pytest.param("0::/lxc.payload.tables/system.slice/postgresql.service\n", "postgresql.service", id="version 2"),
        pytest.param(
            "4:memory:/lxc.payload.db/system.slice/system-postgresql.slice/postgresql@15-main.service\n",
            "postgresql@15-main.service",
            id="an instance of a template",
        ),
        pytest.param("0::/system.slice/incus.service/lxc.payload.x/init.scope\n", "", id="the daemon's own unit"),
        pytest.param("0::/system.slice/app.service/payload\n", "app.service", id="below its unit"),
    ],
)
def test_a_process_is_of_the_unit_that_its_control_group_names(cgroup: str, unit: str) -> None:
    assert unit_of(cgroup) == unit


def old(path: Path) -> None:
    """So old that any reading would set the time of access (mount(8), relatime)."""
    os.utime(path, (1e9, 2e9), follow_symlinks=False)


def test_reading_leaves_times_of_access_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "file").write_text("text")
    (folder / "link").symlink_to("file")
    (tmp_path / "other").symlink_to("etc")
    touched = (folder / "file", folder / "link", folder, tmp_path / "other")
    for path in touched:
        old(path)
    view = GuestView(tmp_path)
    assert view.text("/etc/file") == "text"
    assert view.names("/etc") == ("file", "link")
    assert view.has("/etc/link")
    assert (view.text("/etc/link"), view.text("/other/file"), view.names("/other")) == (None, None, ())
    assert [path.lstat().st_atime for path in touched] == [1e9] * len(touched)


def test_names_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for name in (b"good.service", b"b\xffd.service", b"two\nlines.service"):
        (tmp_path / "etc" / os.fsdecode(name)).write_text("")
    assert GuestView(tmp_path).names("/etc") == ("good.service",)


def test_a_mount_and_a_program_may_have_names_that_are_no_text(tmp_path: Path) -> None:
    """The kernel cuts a program's name at 15 bytes, within a character perhaps."""
    process, seen = tmp_path / "1", tmp_path / "root"
    one = seen / "proc" / "7"
    for folder in (process / "net", one / "fd"):
        folder.mkdir(parents=True)
    (process / "mountinfo").write_bytes(b"1 2 0:3 / /mnt/\xff rw - nfs server rw\n")
    (process / "net" / "tcp").write_text(TCP)
    (one / "fd" / "3").symlink_to("socket:[4711]")
    (one / "comm").write_bytes("datenbank-für-ü".encode()[:15] + b"\n")
    (one / "cmdline").write_bytes(b"db\0")
    (one / "cgroup").write_text("0::/lxc.payload.x/system.slice/db.service\n")
    (found,) = GuestView(seen, process).listeners()
    assert (found.unit, found.ports) == ("db.service", (5432,))


def test_nothing_but_files_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    view = GuestView(tmp_path)
    assert (view.text("/pipe"), view.text("/missing"), view.text("/../etc/passwd")) == (None, None, None)
    assert view.listeners() == ()
