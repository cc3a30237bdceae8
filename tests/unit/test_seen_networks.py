"""Networks that are read once in a run: what is there now is known, and what may change is read by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from fakes import network
from msgspec.structs import replace

from pytest_stagegbo.incus.seen_networks import SeenNetworks

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Network, Reader


class Host:
    """A reader of networks. It notes what is asked of it."""

    def __init__(self) -> None:
        self.there = {name: network(name, "10.9.0.1/24") for name in ("one", "two")}
        self.asked: list[str] = []

    def networks(self) -> dict[str, Network]:
        self.asked.append("all")
        return dict(self.there)

    def network_names(self) -> list[str]:
        return list(self.there)

    def network(self, name: str) -> Network | None:
        self.asked.append(name)
        return self.there.get(name)

    def add(self, name: str, *, half_made: bool = False) -> None:
        self.there[name] = replace(network(name, "10.9.1.1/24"), status="Pending" if half_made else "Created")


def test_each_is_read_once_and_what_is_new_or_gone_is_seen() -> None:
    host, seen = Host(), SeenNetworks()
    reader = cast("Reader", host)
    assert seen.all(reader) == host.there
    assert seen.all(reader) == host.there
    host.add("three")
    del host.there["one"]
    assert seen.all(reader) == host.there
    assert seen.all(reader) == host.there
    assert host.asked == ["all", "three"]


def test_named_ones_are_those_that_exist() -> None:
    host, seen = Host(), SeenNetworks()
    reader = cast("Reader", host)
    for _ in range(2):
        assert seen.named(reader, ["one", "none"]) == {"one": host.there["one"]}
    assert host.asked == ["one", "none", "none"]


def test_all_are_all_after_some_were_asked_for_by_name() -> None:
    host, seen = Host(), SeenNetworks()
    reader = cast("Reader", host)
    seen.named(reader, ["one"])
    assert seen.all(reader) == host.there


def test_one_that_a_cluster_has_not_made_yet_is_read_again() -> None:
    host, seen = Host(), SeenNetworks()
    reader = cast("Reader", host)
    seen.all(reader)
    host.add("three", half_made=True)
    assert seen.all(reader)["three"].is_half_made
    host.add("three")
    assert not seen.all(reader)["three"].is_half_made
