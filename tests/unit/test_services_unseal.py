"""Opening a Vault. The Vault here keeps its seal as the real one does, and its shares are compared, not combined."""

from __future__ import annotations

import base64
import json
import threading
import traceback
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import pytest
from fakes import PatientServer

from pytest_stagegbo.errors import NotReady, VaultSealed
from pytest_stagegbo.services.answer import Answer
from pytest_stagegbo.services.keys import UnsealKeys
from pytest_stagegbo.services.unseal import unseal

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = [base64.b64encode(bytes([number]) * 33).decode() for number in range(201, 206)]
WRONG = base64.b64encode(bytes(33)).decode()


class Vault:
    def __init__(self) -> None:
        self.sealed = True
        self.initialized = True
        self.type = "shamir"
        self.threshold = 3
        self.elections = 2
        """Health checks that a standby answers before it is active."""
        self.given: list[str] = []
        self.log: list[str] = []
        vault = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                vault.log.append(self.path)
                self.reply(*vault.get(self.path))

            def do_PUT(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                vault.log.append("reset" if sent.get("reset") else "key")
                self.reply(*vault.put(sent))

            def reply(self, status: int, content: dict[str, Any]) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = PatientServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def status(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "initialized": self.initialized,
            "sealed": self.sealed,
            "t": self.threshold,
            "n": 5,
            "progress": len(self.given),
        }

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        if path == "/v1/sys/seal-status":
            return 200, self.status()
        if path == "/v1/sys/leader":
            return 200, {"ha_enabled": True, "leader_address": ""}
        if self.sealed:
            return 503, {"initialized": True, "sealed": True}
        self.elections -= 1
        standby = self.elections >= 0
        return 429 if standby else 200, {"initialized": True, "sealed": False, "standby": standby, "version": "1.20.4"}

    def put(self, sent: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if sent.get("reset"):
            self.given.clear()
            return 200, self.status()
        if len(base64.b64decode(sent["key"])) < 20:
            return 400, {"errors": [f"key is shorter than minimum 20 bytes: {sent['key']}"]}
        if sent["key"] not in self.given:
            self.given.append(sent["key"])
        if len(self.given) >= self.threshold:
            fits = set(self.given) <= set(GOOD)
            self.given.clear()
            if not fits:
                return 400, {"errors": ["invalid key: cipher: message authentication failed"]}
            self.sealed = False
        return 200, self.status()


@pytest.fixture
def vault() -> Iterator[Vault]:
    vault = Vault()
    yield vault
    vault.server.shutdown()
    vault.server.server_close()
    vault.thread.join(5)


class Time:
    """Passes only when somebody sleeps."""

    now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)


def open_(vault: Vault, *keys: str, given: bool = True, timeout: float = 10) -> Answer:
    held = UnsealKeys(keys, "file init.json") if given else None
    time = Time()
    return unseal("127.0.0.1", vault.port, False, held, timeout, clock=time.clock, sleep=time.sleep)


def failure(vault: Vault, *keys: str, given: bool = True) -> VaultSealed:
    with pytest.raises(VaultSealed) as caught:
        open_(vault, *keys, given=given)
    error = caught.value
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    place = error.__traceback__
    while place:
        if "pytest_stagegbo" in place.tb_frame.f_code.co_filename:
            shown += repr(place.tb_frame.f_locals)
        place = place.tb_next
    assert not [key for key in keys if key in shown], "an error must not carry a key"
    return error


def test_it_takes_as_many_keys_as_are_wanted_and_waits_for_an_active_node(vault: Vault) -> None:
    assert open_(vault, *GOOD) == Answer("ready", "HTTP 200 active, version 1.20.4")
    assert vault.log.count("key") == 3
    assert vault.log.count("/v1/sys/health") == 3


def test_an_open_vault_is_left_as_it_is(vault: Vault) -> None:
    vault.sealed = False
    assert open_(vault, given=False).ready
    assert not {"key", "reset"} & set(vault.log)


def test_keys_that_somebody_else_gave_are_not_counted(vault: Vault) -> None:
    vault.given.append(WRONG)
    assert open_(vault, *GOOD).ready
    assert vault.log[1] == "reset"


def test_one_key_is_enough_if_vault_says_so(vault: Vault) -> None:
    vault.threshold = 1
    assert open_(vault, GOOD[0]).ready


def test_without_keys_the_error_says_how_to_give_them(vault: Vault) -> None:
    error = failure(vault, given=False)
    assert error.message == "vault is sealed and wants 3 unseal keys"
    assert all(name in error.remedy for name in ("unseal_file", "unseal_env", "unseal_command"))


def test_too_few_keys_are_not_even_tried(vault: Vault) -> None:
    error = failure(vault, *GOOD[:2])
    assert error.seen == "2 different keys in file init.json"
    assert "key" not in vault.log


def test_a_key_that_vault_refuses_is_named_by_its_number(vault: Vault) -> None:
    short = base64.b64encode(b"0123456789abcdefghi").decode()
    error = failure(vault, GOOD[0], short, *GOOD[2:])
    assert error.message == "vault is sealed and refused key number 2 of 5 from file init.json"
    assert error.seen == "HTTP 400 key is shorter than minimum 20 bytes: ***"


def test_keys_that_do_not_fit_together_are_named_by_their_numbers(vault: Vault) -> None:
    """Vault notices only when it has enough of them, and can't tell which one is wrong."""
    error = failure(vault, GOOD[0], WRONG, *GOOD[2:])
    assert "refused keys number 1 to 3 of 5, one or all of which are wrong" in error.message
    assert "message authentication failed" in error.seen
    assert "rekey" in error.remedy


def test_a_vault_that_was_never_initialised_is_told_apart(vault: Vault) -> None:
    vault.initialized = False
    assert "never initialised" in failure(vault, *GOOD).message


def test_a_seal_that_keys_do_not_open_is_told_apart(vault: Vault) -> None:
    vault.type = "awskms"
    assert "sealed by awskms" in failure(vault, *GOOD).message


def test_a_vault_that_stays_a_standby_is_not_ready(vault: Vault) -> None:
    vault.elections = 10**6
    with pytest.raises(NotReady, match=r"not ready after 2\.0 s") as caught:
        open_(vault, *GOOD, timeout=2)
    assert "a standby, and no node is active" in caught.value.seen


def test_what_is_not_vault_gets_no_key(vault: Vault) -> None:
    vault.get = lambda path: (404, {"path": path})  # type: ignore[method-assign]
    with pytest.raises(NotReady, match="no usable answer about its seal"):
        open_(vault, *GOOD)
    assert "key" not in vault.log


def test_a_vault_that_is_gone_is_not_ready(vault: Vault) -> None:
    vault.server.shutdown()
    vault.server.server_close()
    with pytest.raises(NotReady, match="refused: connection refused"):
        open_(vault, *GOOD)
