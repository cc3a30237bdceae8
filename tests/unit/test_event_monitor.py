"""Lifecycle events: read off the daemon's socket, told to be production's, and whose doing they are."""

from __future__ import annotations

import json
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from fakes import bare_host, network
from msgspec.structs import replace

from pytest_stagegbo.errors import OperationFailed
from pytest_stagegbo.incus.channel import ChannelBroken
from pytest_stagegbo.incus.events import Event, Events
from pytest_stagegbo.settings import Settings
from pytest_stagegbo.verify import event_monitor as module
from pytest_stagegbo.verify.event_monitor import MOST, EventMonitor, is_ours, is_productions

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = replace(Settings(), source_project="PROD-GBO")
FACTS = replace(
    bare_host(SETTINGS), networks={"prodbr0": network("prodbr0", "10.0.2.1/24", **{"security.acls": "edge, inner"})}
)
ROOT = {"username": "root", "protocol": "unix", "address": "@"}


def event(path: str = "instances/cache", project: str = "PROD-GBO", **changes: Any) -> Event:
    found = Event("instance-exec", tuple(path.split("/")), project, "root over unix", "2026-01-01T00:00:00Z", True)
    return replace(found, **changes)


def sent(action: str, source: str, **metadata: Any) -> bytes:
    document = {"type": "lifecycle", "timestamp": "2026-01-01T00:00:00Z", "project": "STAGE-GBO"}
    return json.dumps({**document, "metadata": {"action": action, "source": source, **metadata}}).encode()


class Stream:
    """A socket that gives what it was laid out to give, in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def read(self, timeout: float) -> bytes:
        assert timeout > 0
        if not self._pieces:
            raise ChannelBroken("the daemon has closed it")
        return self._pieces.pop(0)

    def write(self, data: bytes) -> None:
        raise AssertionError(f"nobody writes to events: {data!r}")

    def close(self) -> None:
        self._pieces.clear()


class Busy:
    def __init__(self, *, writing: bool) -> None:
        self._writing = writing

    def writing(self) -> bool:
        return self._writing


def test_events_are_read_however_the_socket_cuts_them() -> None:
    first = sent("instance-exec", "/1.0/instances/a%20b?project=P", requestor=ROOT, context={"command": ["true", "ü"]})
    second = sent("project-updated", "/1.0/projects/P")
    both = first + b"\n" + second
    events = Events(Stream(both[:7], both[7:90], both[90:]), Busy(writing=True))
    found = [each for _ in range(3) for each in events.read(1)]
    assert [(each.action, each.path) for each in found] == [
        ("instance-exec", ("instances", "a b")),
        ("project-updated", ("projects", "P")),
    ]
    assert found[0].requestor == "root over unix"
    assert found[0].writing
    assert found[0].context == {"command": ["true", "ü"]}
    assert found[1].requestor == ""
    with pytest.raises(ChannelBroken):
        list(events.read(1))


@pytest.mark.parametrize(
    ("source", "metadata", "project"),
    [
        pytest.param("/1.0/profiles/x?project=Q", {"project": "P"}, "P", id="what-it-says"),
        pytest.param("/1.0/profiles/x", {}, "STAGE-GBO", id="where-it-was-sent"),
    ],
)
def test_an_event_has_a_project(source: str, metadata: dict[str, str], project: str) -> None:
    (found,) = Events(Stream(sent("x", source, **metadata)), Busy(writing=False)).read(1)
    assert found.project == project
    assert not found.writing


@pytest.mark.parametrize(
    ("found", "productions"),
    [
        pytest.param(event("instances/cache"), True, id="instance"),
        pytest.param(event("instances/cache/snapshots/s"), True, id="snapshot"),
        pytest.param(event("profiles/default"), True, id="profile"),
        pytest.param(event("storage-pools/tank/volumes/custom/v"), True, id="volume"),
        pytest.param(event("storage-pools/tank", "default"), True, id="pool"),
        pytest.param(event("projects/PROD-GBO", "default"), True, id="project"),
        pytest.param(event("networks/prodbr0", "default"), True, id="network"),
        pytest.param(event("network-acls/inner", "default"), True, id="access-list"),
        pytest.param(event("instances/cache", "STAGE-GBO"), False, id="the-stages-instance"),
        pytest.param(event("networks/stagebr0", "default"), False, id="the-stages-network"),
        pytest.param(event("network-acls/stagebr0-isolation", "default"), False, id="the-stages-access-list"),
        pytest.param(event("storage-pools/other", "default"), False, id="another-pool"),
        pytest.param(event("projects/STAGE-GBO", "default"), False, id="the-stages-project"),
        pytest.param(event("certificates/x", "default"), False, id="certificate"),
    ],
)
def test_what_is_productions(found: Event, productions: bool) -> None:
    assert is_productions(found, SETTINGS, FACTS) is productions


@pytest.mark.parametrize(
    ("found", "ours"),
    [
        pytest.param(event(), True, id="the-same-requestor-while-writing"),
        pytest.param(event(requestor=""), True, id="nobody-says-by-whom"),
        pytest.param(event(writing=False), False, id="this-process-did-nothing"),
        pytest.param(event(requestor="ada over tls"), False, id="somebody-else"),
        pytest.param(event(action="instance-shutdown", requestor=""), False, id="it-halted"),
    ],
)
def test_whose_doing_it_was(found: Event, ours: bool) -> None:
    assert is_ours(found, event("instances/llm", "STAGE-GBO")) is ours


class Source:
    """Events that a test lets come."""

    def __init__(self) -> None:
        self.coming: deque[Event | Exception] = deque()
        self.closed = threading.Event()

    def read(self, timeout: float) -> Iterator[Event]:
        if not self.coming:
            self.closed.wait(min(timeout, 0.01))
            return
        found = self.coming.popleft()
        if isinstance(found, Exception):
            raise found
        yield found

    def close(self) -> None:
        self.closed.set()

    def sentinel(self, word: str) -> None:
        self.coming.append(event("instances/llm", "STAGE-GBO", context={"command": ["true", word]}))


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def watch(source: Source) -> Iterator[EventMonitor]:
    found = EventMonitor(source, lambda each: is_productions(each, SETTINGS, FACTS))
    yield found
    found.close()
    assert source.closed.is_set()


def test_what_comes_between_sentinels_is_counted(source: Source, watch: EventMonitor) -> None:
    source.coming.append(event())  # before the first
    watch.sentinel(source.sentinel)
    source.coming.extend([event(), event(writing=False), event(project="OTHER")])
    watch.sentinel(source.sentinel)
    assert (watch.heard, watch.production) == (5, 2)
    assert (watch.ours, watch.others) == ([event()], [event(writing=False)])


def test_a_flood_is_counted_and_not_kept(source: Source, watch: EventMonitor) -> None:
    watch.sentinel(source.sentinel)
    source.coming.extend([event(writing=False)] * (MOST + 5))
    source.coming.append(event())
    watch.sentinel(source.sentinel)
    assert (watch.production, len(watch.others), len(watch.ours)) == (MOST + 6, MOST, 1)


@pytest.mark.parametrize("end", [ChannelBroken("the daemon has closed it"), ValueError("bad file descriptor")])
def test_a_connection_that_was_lost_is_no_silence(source: Source, watch: EventMonitor, end: Exception) -> None:
    watch.sentinel(source.sentinel)
    source.coming.append(end)
    with pytest.raises(OperationFailed, match="were lost") as raised:
        watch.sentinel(lambda _: None)
    assert str(end).partition("\n")[0] in raised.value.seen


def test_a_sentinel_that_is_not_heard_is_an_error(watch: EventMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with pytest.raises(OperationFailed, match="were lost"):
        watch.sentinel(lambda _: None)
