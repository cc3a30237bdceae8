"""Unseals Vault. No key gets into a frame that raises: see `pytest_stagegbo.services.keys`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import NotReady, VaultSealed
from pytest_stagegbo.services import vault
from pytest_stagegbo.services.answer import Answer, NoAnswer
from pytest_stagegbo.services.keys import HOW_TO_GIVE_KEYS, UnsealKeys, read_keys
from pytest_stagegbo.services.masking import mask
from pytest_stagegbo.services.webrequest import request
from pytest_stagegbo.settings.model import ProbeSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["UnsealKeys", "read_keys", "unseal"]

ANSWER_SECONDS = 5.0
"""For one answer of Vault; opening the barrier takes longer than a health check."""


def unseal(
    host: str,
    port: int,
    tls: bool,
    keys: UnsealKeys | None,
    timeout: float,
    *,
    container: str = "vault",
    clock: Callable[[], float] = clocks.monotonic,
    sleep: Callable[[float], None] = clocks.sleep,
) -> Answer:
    """Open Vault with as many of `keys` as it wants, and wait until it is ready.

    A Vault that is open already is only waited for. Progress that somebody else made is reset first, since their
    shares and these may not belong together.

    Raises:
        VaultSealed: It stays sealed: no keys, too few, or not this Vault's.
        NotReady: It didn't answer, or was opened and not ready in `timeout` seconds.
    """
    ends = clock() + timeout
    call = _Calls(container, host, port, tls)
    status = call.status(max(ends - clock(), 0.1))
    if not status.get("initialized", True):
        raise VaultSealed(
            f"{container}: this Vault was never initialised", remedy="check that its data were cloned with it"
        )
    if status["sealed"]:
        wanted = _wanted(container, status, keys)
        assert keys is not None
        if status.get("progress"):
            call.reset(max(ends - clock(), 0.1))
        for index in range(len(keys)):
            status = call.submit(keys, index, wanted, max(ends - clock(), 0.1))
            if not status["sealed"]:
                break
        if status["sealed"]:
            raise VaultSealed(
                f"{container} is still sealed after all {len(keys)} keys from {keys.source}",
                seen=f"it counts {status.get('progress')} of {wanted} keys",
                remedy="somebody else may be unsealing or resetting it at the same time; try again",
            )
    return _until_ready(container, ProbeSettings("vault", port, tls=tls), host, ends, timeout, clock, sleep)


def _wanted(container: str, status: Mapping[str, Any], keys: UnsealKeys | None) -> int:
    """Return how many keys Vault wants. Raises `VaultSealed` if there are fewer."""
    wanted = int(status.get("t") or 1)
    kind = str(status.get("type") or "shamir")
    if kind != "shamir":
        raise VaultSealed(
            f"{container} is sealed by {mask(kind)}, and keys don't open it",
            remedy="this Vault unseals itself when it reaches its key service, which the stage's "
            "isolation may keep it from",
        )
    if keys is None:
        raise VaultSealed(f"{container} is sealed and wants {wanted} unseal keys", remedy=HOW_TO_GIVE_KEYS)
    if len(keys) < wanted:
        raise VaultSealed(
            f"{container} is sealed and wants {wanted} unseal keys",
            seen=f"{len(keys)} different keys in {keys.source}",
            remedy="add the missing keys there",
        )
    return wanted


def _until_ready(
    container: str,
    probe: ProbeSettings,
    host: str,
    ends: float,
    timeout: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Answer:
    pause = 0.01
    while True:
        answer = vault.ask(probe, host, min(ANSWER_SECONDS, max(ends - clock(), 0.1)))
        if answer.ready:
            return answer
        if clock() >= ends:
            raise NotReady(
                f"{container} was given its keys and is not ready after {timeout:.1f} s",
                seen=str(answer),
                remedy="a Raft cluster of several nodes can't elect a leader from one clone; see Vault's log",
            )
        sleep(min(pause, max(ends - clock(), 0)))
        pause = min(pause * 1.5, 0.1)


class _Calls:
    """Requests to Vault about its seal. No method has a key in a frame that raises."""

    def __init__(self, container: str, host: str, port: int, tls: bool) -> None:
        self._container = container
        self._host = host
        self._port = port
        self._tls = tls

    def status(self, timeout: float) -> dict[str, Any]:
        return self._checked(self._call("GET", "/v1/sys/seal-status", b"", timeout), "its seal")

    def reset(self, timeout: float) -> dict[str, Any]:
        return self._checked(self._call("PUT", "/v1/sys/unseal", b'{"reset": true}', timeout), "a reset")

    def submit(self, keys: UnsealKeys, index: int, wanted: int, timeout: float) -> dict[str, Any]:
        found = self._submit(keys, index, timeout)
        if isinstance(found, str):
            raise VaultSealed(
                f"{self._container} is sealed and refused {_which(index, wanted, len(keys))} from {keys.source}",
                seen=found,
                remedy="they may belong to another Vault, or be older than a rekey; "
                f"only the first {wanted} that are given are used",
            )
        return self._checked(found, f"key number {index + 1}")

    def _submit(self, keys: UnsealKeys, index: int, timeout: float) -> tuple[int, dict[str, Any]] | Answer | str:
        """Send one key, and return Vault's answer or its refusal. A refusal may quote the key, so it is masked here."""
        found = self._call("PUT", "/v1/sys/unseal", keys.request_body(index), timeout)
        if isinstance(found, Answer) or found[0] == 200:
            return found
        status, document = found
        errors = document.get("errors")
        text = " ".join("; ".join(map(str, errors)).split()) if isinstance(errors, list) else ""
        text = f"HTTP {status} {keys.masker().mask(text)[:300]}".rstrip()
        return text if status == 400 else Answer("wrong", text)

    def _checked(self, found: tuple[int, dict[str, Any]] | Answer, what: str) -> dict[str, Any]:
        if isinstance(found, tuple):
            status, document = found
            if status == 200 and isinstance(document.get("sealed"), bool):
                return document
            found = Answer("wrong", f"HTTP {status} {mask(str(document.get('errors', '')))}".rstrip())
        raise NotReady(
            f"{self._container} gave no usable answer about {what}",
            seen=str(found),
            remedy=f"check that Vault listens at {self._host}:{self._port}, and its probe's tls setting",
        )

    def _call(self, method: str, path: str, body: bytes, timeout: float) -> tuple[int, dict[str, Any]] | Answer:
        limit = min(ANSWER_SECONDS, timeout)
        try:
            reply = request(self._host, self._port, path, limit, tls=self._tls, method=method, body=body)
        except NoAnswer as nothing:
            return nothing.answer
        return reply.status, vault.document(reply)


def _which(index: int, wanted: int, given: int) -> str:
    if index + 1 < wanted or wanted == 1:
        return f"key number {index + 1} of {given}"
    # Vault takes any share until it has enough of them, and then can't tell which one is wrong.
    return f"keys number {index + 2 - wanted} to {index + 1} of {given}, one or all of which are wrong,"
