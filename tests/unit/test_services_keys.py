"""Reading Vault's unseal keys, and keeping them to oneself."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import re
import sys
import time
import traceback
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.services import keys as module
from pytest_stagegbo.services.keys import UnsealKeys, read_keys
from pytest_stagegbo.settings.model import VaultSettings

if TYPE_CHECKING:
    from pathlib import Path

RAW = [bytes([number]) * 33 for number in range(201, 206)]
B64 = [base64.b64encode(raw).decode() for raw in RAW]
HEX = [raw.hex() for raw in RAW]
TOKEN = "hvs.CAESIJ0123456789abcdef"

INIT = {
    "unseal_keys_b64": B64,
    "unseal_keys_hex": HEX,
    "unseal_shares": 5,
    "unseal_threshold": 3,
    "recovery_keys_b64": None,
    "root_token": TOKEN,
}
PRINTED = "\n".join(f"Unseal Key {n}: {key}" for n, key in enumerate(B64, 1)) + (
    f"\n\nInitial Root Token: {TOKEN}\n\nVault initialized with 5 key shares and a key threshold of 3. Please\n"
)


def held(keys: UnsealKeys | None) -> list[str]:
    assert keys is not None
    return [json.loads(keys.request_body(index))["key"] for index in range(len(keys))]


def from_environment(text: str) -> UnsealKeys | None:
    return read_keys(VaultSettings(unseal_env="KEYS"), {"KEYS": text})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(json.dumps(INIT), B64, id="vault operator init -format=json"),
        pytest.param(json.dumps({"keys": HEX, "keys_base64": B64, "root_token": TOKEN}), B64, id="the API's init"),
        pytest.param(json.dumps({"unseal_keys_hex": HEX}), HEX, id="hexadecimal only"),
        pytest.param(json.dumps({"keys": HEX}), HEX, id="the API's, hexadecimal only"),
        pytest.param(json.dumps(B64[:3]), B64[:3], id="a bare JSON list"),
        pytest.param(PRINTED, B64, id="what vault operator init prints"),
        pytest.param("\n".join(B64), B64, id="one a line"),
        pytest.param("# from the safe\n" + "\r\n".join(HEX) + "\n\n", HEX, id="comments and line ends of Windows"),
        pytest.param(",".join(B64), B64, id="commas"),
        pytest.param(" ".join([B64[0], B64[1], B64[0]]), B64[:2], id="a key that is there twice counts once"),
        pytest.param("\ufeff" + json.dumps(INIT), B64, id="a byte order mark"),
    ],
)
def test_keys_are_found_in_every_form_that_vault_gives_them(text: str, expected: list[str]) -> None:
    assert held(from_environment(text)) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param(" ", "it is not set, or empty", id="empty"),
        pytest.param('{"unseal_keys_b64": ["' + B64[0], "begins like JSON and isn't", id="half a file"),
        pytest.param(json.dumps({"root_token": TOKEN}), "a JSON object without unseal_keys_b64", id="no keys"),
        pytest.param(json.dumps({"keys": B64[0]}), "no list of texts", id="keys that are one text"),
        pytest.param(json.dumps({"recovery_keys_b64": B64}), "recovery keys only", id="recovery keys"),
        pytest.param(f"Recovery Key 1: {B64[0]}", "recovery keys only", id="recovery keys as printed"),
        pytest.param("# nothing", "nothing but comments", id="comments"),
        pytest.param(f"{B64[0]}\nSuperSecret!", "entry 2 of 2 (12 characters) is neither base64", id="no key"),
        pytest.param("c2VjcmV0MTI=", "entry 1 of 1 (12 characters) is too short", id="short"),
        pytest.param(base64.b64encode(bytes(300)).decode(), "may be encrypted with PGP", id="encrypted"),
    ],
)
def test_what_is_no_key_is_described_and_not_shown(text: str, found: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment(text)
    message = str(caught.value)
    assert "environment variable KEYS" in message
    assert found in message
    assert_nothing_leaks(caught.value, *B64, TOKEN, "SuperSecret", "c2VjcmV0MTI")


def assert_nothing_leaks(error: BaseException, *secrets: str) -> None:
    """Not in the message, nor in what is chained to it, nor in a local variable of ours that a traceback shows."""
    seen = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    place = error.__traceback__
    while place:
        if "pytest_stagegbo" in place.tb_frame.f_code.co_filename:
            seen += repr(place.tb_frame.f_locals)
        place = place.tb_next
    assert not [secret for secret in secrets if secret in seen]


def test_no_source_is_no_keys_and_no_error() -> None:
    assert read_keys(VaultSettings(), {}) is None


def test_the_first_source_that_is_set_counts(tmp_path: Path) -> None:
    (tmp_path / "init.json").write_text(json.dumps(INIT))
    settings = VaultSettings(str(tmp_path / "init.json"), "KEYS", ("false",))
    assert held(read_keys(settings, {"KEYS": HEX[0]})) == B64
    assert held(read_keys(VaultSettings("", "KEYS", ("false",)), {"KEYS": HEX[0]})) == HEX[:1]


def test_a_variable_that_is_named_and_not_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAGE_KEYS", raising=False)
    with pytest.raises(SettingsError, match=r"environment variable STAGE_KEYS: it is not set"):
        read_keys(VaultSettings(unseal_env="STAGE_KEYS"))


class TestFile:
    def test_that_others_can_read_is_used_with_a_warning(self, tmp_path: Path) -> None:
        path = tmp_path / "init.json"
        path.write_text(json.dumps(INIT))
        path.chmod(0o644)
        keys = read_keys(VaultSettings(str(path)))
        assert held(keys) == B64
        assert keys
        assert keys.warnings == (f"{path} holds unseal keys and is open to other users (mode 0644): chmod 600 {path}",)
        path.chmod(0o600)
        keys = read_keys(VaultSettings(str(path)))
        assert keys
        assert keys.warnings == ()

    def test_may_stand_in_the_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "keys").write_text("\n".join(HEX))
        assert held(read_keys(VaultSettings("~/keys"))) == HEX

    def test_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=rf"file {re.escape(str(tmp_path))}/none: No such file"):
            read_keys(VaultSettings(f"{tmp_path}/none"))

    def test_that_is_not_a_file_of_keys_is_not_read_to_its_end(self) -> None:
        with pytest.raises(SettingsError, match="larger than 1 MiB"):
            read_keys(VaultSettings("/dev/zero"))


class TestCommand:
    def run(self, code: str) -> UnsealKeys | None:
        return read_keys(VaultSettings(unseal_command=(sys.executable, "-c", code)))

    def test_prints_the_keys(self) -> None:
        assert held(self.run(f"print({PRINTED!r})")) == B64

    def test_is_not_given_to_a_shell(self) -> None:
        with pytest.raises(SettingsError, match="No such file"):
            read_keys(VaultSettings(unseal_command=("echo $HOME",)))

    def test_that_fails_is_told_with_its_standard_error_and_without_its_output(self) -> None:
        with pytest.raises(SettingsError) as caught:
            self.run(
                f"import sys; print({B64[0]!r}, flush=True);"
                f"sys.exit('the safe is locked; so far: ' + {B64[0]!r} + ' password=hunter2hunter2')"
            )
        message = str(caught.value)
        assert "ended with status 1 and said: the safe is locked; so far: *** password=***" in message
        assert B64[0] not in message

    @pytest.mark.parametrize("where", ["stdout", "stderr"])
    def test_that_prints_without_end_is_ended(self, where: str) -> None:
        code = f"import sys\nwhile True: sys.{where}.write('x' * 65536)"
        with pytest.raises(SettingsError, match="more than 1 MiB"):
            self.run(code)

    def test_that_closes_its_output_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "COMMAND_SECONDS", 0.4)
        with pytest.raises(SettingsError, match="did not end in"):
            self.run("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(60)")

    def test_that_does_not_end_is_ended_with_all_it_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "COMMAND_SECONDS", 0.4)
        began = time.monotonic()
        with pytest.raises(SettingsError, match="did not end in") as caught:
            read_keys(VaultSettings(unseal_command=("sh", "-c", f"echo {B64[0]}; sleep 60 & sleep 60")))
        assert time.monotonic() - began < 5
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


class TestUnsealKeys:
    keys = UnsealKeys(tuple(B64), "file init.json")

    def test_show_their_number_and_source_only(self) -> None:
        assert repr(self.keys) == str(self.keys) == f"{self.keys}" == "UnsealKeys(5 keys from file init.json)"

    @pytest.mark.parametrize("copies", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_do_not_travel(self, copies: object) -> None:
        assert callable(copies)
        with pytest.raises(TypeError, match="not pickled"):
            copies(self.keys)

    def test_can_be_taken_out_of_text_in_both_notations(self) -> None:
        masker = self.keys.masker()
        assert masker.mask(f"{B64[0]} and {HEX[0]}") == "*** and ***"
        assert not [key for key in B64 + HEX if key in repr(masker)]
