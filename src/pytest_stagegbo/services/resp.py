"""Valkey's (and Redis's) protocol, version 2: commands sent many at a time, answers in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from pytest_stagegbo.services.answer import Answer, NoAnswer
from pytest_stagegbo.services.wire import Conversation

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Refused", "Resp", "Value", "fields"]

Value = Union[bytes, int, None, "list[Value]", "Refused"]

CHUNK = 1 << 16


class Refused(Exception):
    """An error that the server answered, such as `WRONGPASS ...`. It is returned, not raised."""

    @property
    def code(self) -> str:
        return str(self).partition(" ")[0]


class Resp:
    """A connection to Valkey, for a `with` block. Methods raise `NoAnswer` for any trouble with network or server."""

    def __init__(self, host: str, port: int, timeout: float, *, tls: bool = False) -> None:
        self._conversation = Conversation(host, port, timeout, tls=tls)
        self._data = bytearray()
        self._read = 0

    def __enter__(self) -> Resp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._conversation.__exit__(kind, error, traceback)

    def ask(self, *commands: tuple[str | int | bytes, ...]) -> list[Value]:
        """Send commands at once and return their answers. An error is an answer like any other: `Refused`."""
        sent = bytearray()
        for command in commands:
            words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
            sent += b"*%d\r\n" % len(words)
            for word in words:
                sent += b"$%d\r\n%s\r\n" % (len(word), word)
        self._conversation.send(bytes(sent))
        return [self._value() for _ in commands]

    def _value(self) -> Value:
        line = self._line()
        kind, rest = line[:1], line[1:]
        try:
            if kind == b"+":
                return rest
            if kind == b"-":
                return Refused(rest.decode("utf-8", "replace"))
            if kind == b":":
                return int(rest)
            if kind == b"$":
                return None if rest == b"-1" else self._exactly(int(rest))
            if kind == b"*":
                return None if rest == b"-1" else [self._value() for _ in range(int(rest))]
        except ValueError:
            pass
        raise NoAnswer(Answer("wrong", "not Valkey's protocol"))

    def _line(self) -> bytes:
        while (end := self._data.find(b"\r\n", self._read)) < 0:
            self._more()
        line = bytes(self._data[self._read : end])
        self._read = end + 2
        return line

    def _exactly(self, count: int) -> bytes:
        while len(self._data) - self._read < count + 2:
            self._more()
        value = bytes(self._data[self._read : self._read + count])
        self._read += count + 2
        return value

    def _more(self) -> None:
        del self._data[: self._read]
        self._read = 0
        more = self._conversation.receive(CHUNK)
        if not more:
            raise NoAnswer(self._conversation.closed())
        self._data += more


def fields(info: Value) -> dict[str, str]:
    """Parse the answer of `INFO`, or one line of `CLIENT LIST`, into names and values."""
    if not isinstance(info, bytes):
        return {}
    text = info.decode("utf-8", "replace")
    lines = text.splitlines()
    if len(lines) == 1 and "=" in text and ":" not in text.partition("=")[0]:
        return dict(pair.partition("=")[::2] for pair in text.split(" ") if "=" in pair)
    return dict(line.partition(":")[::2] for line in lines if ":" in line)
