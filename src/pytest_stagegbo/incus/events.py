"""Lifecycle events of a daemon: who did what to which object, of all projects.

The daemon keeps no history of them, and drops a listener that reads too slowly. SFTP raises none.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_stagegbo.incus.channel import Stream

__all__ = ["PATH", "Event", "EventSource", "Events"]

PATH = "/1.0/events?type=lifecycle&all-projects=true"


class Event(Struct, frozen=True):
    """Something happened to an object of the daemon."""

    action: str
    """Such as `instance-updated`."""
    path: tuple[str, ...]
    """Path of the object, below `/1.0`."""
    project: str
    requestor: str
    """User and protocol, such as `root over unix`; empty: the daemon did it by itself, or does not say."""
    at: str
    """ISO 8601, by the daemon's clock."""
    writing: bool
    """Whether this process had a write under way when it heard of it."""
    context: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_api(cls, data: Mapping[str, Any], *, writing: bool) -> Event:
        found = data.get("metadata") or {}
        url, by = urlsplit(str(found.get("source", ""))), found.get("requestor") or {}
        named = parse_qs(url.query).get("project", [""])[0]
        return cls(
            action=str(found.get("action", "")),
            path=tuple(unquote(each) for each in url.path.split("/") if each)[1:],
            project=str(found.get("project") or data.get("project") or named or "default"),
            requestor=f"{by.get('username', '')} over {by.get('protocol', '')}" if by else "",
            at=str(data.get("timestamp", "")),
            writing=writing,
            context=found.get("context") or {},
        )

    def __str__(self) -> str:
        by = f"by {self.requestor}" if self.requestor else "nobody says by whom"
        return f"{self.action} /1.0/{'/'.join(self.path)} of project {self.project} at {self.at[:19]}, {by}"


class Writes(Protocol):
    """Who knows of the writes of this process."""

    def writing(self) -> bool:
        """Whether one is under way, or ended a moment ago."""


class EventSource(Protocol):
    """Events as they come."""

    def read(self, timeout: float) -> Iterator[Event]:
        """Those that came within `timeout` seconds, which may be none. Raises `ChannelBroken` at the end."""

    def close(self) -> None: ...


class Events:
    """Events from the daemon's socket."""

    def __init__(self, stream: Stream, writes: Writes) -> None:
        self._stream = stream
        self._writes = writes
        self._text = b""

    def read(self, timeout: float) -> Iterator[Event]:
        self._text += self._stream.read(timeout)
        writing = self._writes.writing()
        while self._text:
            try:
                text = self._text.decode()
                data, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                return  # the rest of it is still to come
            self._text = text[end:].lstrip().encode()
            yield Event.from_api(data, writing=writing)

    def close(self) -> None:
        self._stream.close()
