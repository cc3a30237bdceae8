"""The host's file systems through the daemon's eyes; here the daemon is this process."""

from __future__ import annotations

import os
import socket
import tempfile
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.incus.hostnet import read_networks
from pytest_stagegbo.incus.hostview import HostView

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = 512


@pytest.fixture
def endpoint() -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):  # paths of sockets are short
        path = f"{folder}/unix.socket"
        listener.bind(path)
        listener.listen()
        yield path


@pytest.fixture
def view(endpoint: str) -> HostView:
    return HostView(endpoint)


def blocks(*paths: Path) -> int:
    return sum(path.lstat().st_blocks * BLOCK for path in paths)


class TestFreeBytes:
    def test_are_those_of_the_file_system_that_holds_the_path(self, view: HostView) -> None:
        found = os.statvfs("/proc")  # never changes
        assert view.free_bytes("/proc") == found.f_bavail * found.f_frsize

    def test_of_a_file_are_those_around_it(self, view: HostView, tmp_path: Path) -> None:
        (tmp_path / "pool.img").touch()
        assert view.free_bytes(str(tmp_path / "pool.img")) is not None

    @pytest.mark.parametrize("path", ["/no/such/path", "tank/incus", ""], ids=["missing", "dataset", "empty"])
    def test_are_unknown_for_what_is_no_path(self, view: HostView, path: str) -> None:
        assert view.free_bytes(path) is None


class TestTreeBytes:
    def test_are_those_on_disk_of_everything_below(self, view: HostView, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "b"
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(b"x" * 100_000)
        expected = blocks(tmp_path / "a", folder, folder / "data")
        assert expected >= 100_000
        assert view.tree_bytes(str(tmp_path)) == expected

    def test_count_a_file_with_several_names_once(self, view: HostView, tmp_path: Path) -> None:
        (tmp_path / "one").write_bytes(b"x" * 100_000)
        (tmp_path / "other").hardlink_to(tmp_path / "one")
        assert view.tree_bytes(str(tmp_path)) == blocks(tmp_path / "one")

    def test_count_the_holes_of_a_sparse_file_as_nothing(self, view: HostView, tmp_path: Path) -> None:
        with (tmp_path / "sparse").open("wb") as file:
            file.truncate(10 * 2**30)
        assert view.tree_bytes(str(tmp_path)) == blocks(tmp_path / "sparse") < 2**20

    def test_leave_times_of_access_as_they_were(self, view: HostView, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "b"
        folder.mkdir(parents=True)
        for each in (folder, folder.parent, tmp_path):
            os.utime(each, (1e9, 2e9))  # so old that a listing would set it, also with relatime
        assert view.tree_bytes(str(tmp_path))
        assert [each.stat().st_atime for each in (folder, folder.parent, tmp_path)] == [1e9] * 3

    def test_do_not_follow_links(self, view: HostView, tmp_path: Path) -> None:
        outside, inside = tmp_path / "outside", tmp_path / "inside"
        outside.mkdir()
        inside.mkdir()
        (outside / "data").write_bytes(b"x" * 100_000)
        (inside / "folder").symlink_to(outside)
        (inside / "file").symlink_to(outside / "data")
        assert view.tree_bytes(str(inside)) == blocks(inside / "folder", inside / "file")

    def test_go_on_when_a_file_vanishes_meanwhile(
        self, view: HostView, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("gone", "kept-1", "kept-2"):
            (tmp_path / name).write_bytes(b"x" * 100_000)
        scan = os.scandir

        class Vanishing:
            """The entries of a folder out of which one file is deleted once it was listed."""

            def __init__(self, path: str) -> None:
                self._entries = scan(path)

            def __enter__(self) -> Iterator[os.DirEntry[str]]:
                listed = sorted(self._entries.__enter__(), key=lambda entry: entry.name)
                (tmp_path / "gone").unlink()
                return iter(listed)

            def __exit__(self, *_: object) -> None:
                self._entries.close()

        monkeypatch.setattr(os, "scandir", Vanishing)
        assert view.tree_bytes(str(tmp_path)) == blocks(tmp_path / "kept-1", tmp_path / "kept-2")

    @pytest.mark.parametrize("name", ["missing", "file"])
    def test_are_unknown_for_what_is_no_folder(self, view: HostView, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").touch()
        assert view.tree_bytes(str(tmp_path / name)) is None


class TestNetworks:
    def test_are_those_of_the_daemons_network_namespace(self, view: HostView) -> None:
        assert view.networks() == read_networks()

    def test_loopback_is_none_of_them(self, view: HostView) -> None:
        assert not [each for each in view.networks() or () if each.network.is_loopback]
        assert not [each for each in view.addresses() or () if each.startswith("127.")]

    def test_the_way_to_loopback_is_its_interface(self, view: HostView) -> None:
        address = IPv4Address("127.0.0.1")
        assert view.ways([address]) == {address: "lo"}


class TestNoView:
    """A remote daemon's host can't be looked at, nor can that of a daemon that isn't there."""

    @pytest.mark.parametrize("endpoint", ["https://203.0.113.1:8443", "/no/such/socket"], ids=["remote", "missing"])
    def test_knows_nothing(self, endpoint: str, tmp_path: Path) -> None:
        view = HostView(endpoint)
        assert view.free_bytes("/") is None
        assert view.tree_bytes(str(tmp_path)) is None
        assert view.networks() is None
        assert view.addresses() is None
        assert view.ways([IPv4Address("127.0.0.1")]) is None
