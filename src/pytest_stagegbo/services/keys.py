"""Reads Vault's unseal keys from a file, a variable or a command.

A key is a secret that opens all others, so it stays out of arguments, logs, errors and reprs. That includes the
local variables of frames that an error passes through, which `pytest --showlocals` prints: functions that hold
keys return what went wrong, and their callers, who hold none, raise it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import selectors
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.services.masking import Masker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.settings.model import VaultSettings

__all__ = ["HOW_TO_GIVE_KEYS", "UnsealKeys", "read_keys"]

HOW_TO_GIVE_KEYS = (
    "give the unseal keys by one of the settings of vault: unseal_file (an init.json, or one key a line), "
    "unseal_env (the name of an environment variable that holds them) or unseal_command (a command that prints them)"
)
COMMAND_SECONDS = 30.0
LARGEST_FILE = 1024 * 1024

_LABELLED = re.compile(r"(?i)^\s*unseal key(?: \d+)?\s*[:=]\s*(\S+)\s*$")
_RECOVERY_ONLY = "it holds recovery keys only, which don't unseal: this Vault unseals itself"


class UnsealKeys:
    """Unseal keys. They can't be pickled, and the `repr` shows only their number and source."""

    __slots__ = ("_keys", "source", "warnings")

    def __init__(self, keys: tuple[str, ...], source: str, warnings: tuple[str, ...] = ()) -> None:
        self._keys = keys
        self.source = source
        """Where they came from, for people: `file /root/init.json`."""
        self.warnings = warnings
        """What is unwise about the source, a sentence each."""

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"UnsealKeys({len(self)} key{'' if len(self) == 1 else 's'} from {self.source})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("unseal keys are not pickled")

    def request_body(self, index: int) -> bytes:
        """Return the request body for one key. Don't call it where an error could be raised afterwards."""
        return json.dumps({"key": self._keys[index]}).encode()

    def masker(self) -> Masker:
        """Return a masker that removes these keys from text, in both forms in which Vault writes them."""
        masker = Masker(self._keys)
        for key in self._keys:
            raw = _decoded(key)
            if raw is not None:
                masker.add(raw.hex(), base64.b64encode(raw).decode())
        return masker


def read_keys(settings: VaultSettings, environ: Mapping[str, str] | None = None) -> UnsealKeys | None:
    """Read the keys from the first source that is set. Return `None` if none is set.

    Args:
        environ: Instead of the process's environment.

    Raises:
        SettingsError: A source is set and gives no keys. Says which and what was found, never its content.
    """
    found = _find(settings, environ)
    del environ  # holds keys, and this frame is about to be part of a traceback
    if isinstance(found, str):
        raise SettingsError(
            f"the unseal keys of Vault can't be read from {found}",
            remedy=HOW_TO_GIVE_KEYS + "; keys are base64 or hexadecimal, as `vault operator init` prints them",
        )
    return found


def _find(settings: VaultSettings, environ: Mapping[str, str] | None) -> UnsealKeys | str | None:
    """Return the keys, or the end of a sentence that says which source has none and why."""
    if settings.unseal_file:
        return _from_file(settings.unseal_file)
    if settings.unseal_env:
        text = (os.environ if environ is None else environ).get(settings.unseal_env, "")
        source = f"environment variable {settings.unseal_env}"
        return _parse(text, source) if text.strip() else f"{source}: it is not set, or empty"
    if settings.unseal_command:
        return _from_command(settings.unseal_command)
    return None


def _from_file(name: str) -> UnsealKeys | str:
    path = Path(name)
    source = f"file {path}"
    try:
        path = path.expanduser()
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(LARGEST_FILE + 1)
    except (OSError, RuntimeError, ValueError) as error:
        return f"{source}: {getattr(error, 'strerror', None) or error}"
    if len(data) > LARGEST_FILE:
        return f"{source}: it is larger than 1 MiB"
    warnings: tuple[str, ...] = ()
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        readers = f"mode {stat.S_IMODE(mode):04o}"
        warnings = (f"{path} holds unseal keys and is open to other users ({readers}): chmod 600 {path}",)
    return _parse(data.decode("utf-8", "replace"), source, warnings)


def _from_command(argv: tuple[str, ...]) -> UnsealKeys | str:
    source = f"command {argv[0]}"
    try:
        # A session of its own, so that whatever it started ends with it when time is up.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except (OSError, ValueError) as error:
        return f"{source}: {getattr(error, 'strerror', None) or error}"
    with process:
        try:
            found = _output(process, source)
        finally:
            if process.poll() is None:
                _end(process)
    if isinstance(found, str):
        return found
    out, err = found
    text = out.decode("utf-8", "replace")
    if process.returncode:
        # Standard error is shown, without anything that stands in standard output too.
        said = Masker(re.split(r"[\s,\"']+", text)).mask(err.decode("utf-8", "replace").strip()[-500:])
        return f"{source}: it ended with status {process.returncode}" + (f" and said: {said}" if said else "")
    return _parse(text, source)


def _output(process: subprocess.Popen[bytes], source: str) -> tuple[bytes, bytes] | str:
    """Return standard output and error of a command that has ended, or why there is none: it took too long, for
    example."""
    deadline = clocks.monotonic() + COMMAND_SECONDS
    late = f"{source}: it did not end in {COMMAND_SECONDS:.0f} s"
    outputs = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for pipe in outputs:
            assert pipe is not None
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - clocks.monotonic()))
            if not ready:
                return late
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                kept = outputs[key.fileobj]  # type: ignore[index]
                kept += data
                if len(kept) > LARGEST_FILE:
                    return f"{source}: it printed more than 1 MiB"
    try:
        process.wait(max(0.0, deadline - clocks.monotonic()))
    except subprocess.TimeoutExpired:
        return late
    return bytes(outputs[process.stdout]), bytes(outputs[process.stderr])


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def _parse(text: str, source: str, warnings: tuple[str, ...] = ()) -> UnsealKeys | str:
    text = text.removeprefix("\ufeff").strip()
    if not text:
        return f"{source}: it is empty"
    found = _json_keys(text) if text[0] in "{[" else _text_keys(text)
    if isinstance(found, str):
        return f"{source}: {found}"
    keys = tuple(dict.fromkeys(key.strip() for key in found))
    for number, key in enumerate(keys, 1):
        raw = _decoded(key)
        if raw is None:
            return f"{source}: entry {number} of {len(keys)} ({len(key)} characters) is neither base64 nor hexadecimal"
        if len(raw) > 64:
            return f"{source}: entry {number} has {len(raw)} bytes and may be encrypted with PGP: decrypt it first"
        if len(raw) < 16:
            return f"{source}: entry {number} of {len(keys)} ({len(key)} characters) is too short for an unseal key"
    return UnsealKeys(keys, source, warnings)


def _json_keys(text: str) -> list[str] | str:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return "it begins like JSON and isn't"
    if isinstance(content, dict):
        for name in ("unseal_keys_b64", "keys_base64", "unseal_keys_hex", "keys", "unseal_keys"):
            if content.get(name):
                content = content[name]
                break
        else:
            if any(content.get(name) for name in ("recovery_keys_b64", "recovery_keys_base64", "recovery_keys")):
                return _RECOVERY_ONLY
            return "a JSON object without unseal_keys_b64, unseal_keys_hex, keys_base64 or keys"
    if isinstance(content, list) and content and all(isinstance(key, str) for key in content):
        return content
    return "JSON, and its keys are no list of texts"


def _text_keys(text: str) -> list[str] | str:
    """Return the keys in the text of `vault operator init`, or in any other text every word outside of comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    labelled = [match[1] for line in lines if (match := _LABELLED.match(line))]
    if labelled:
        return labelled
    if any(line.lstrip().lower().startswith("recovery key") for line in lines):
        return _RECOVERY_ONLY
    return [word for line in lines for word in re.split(r"[\s,]+", line) if word] or "nothing but comments"


def _decoded(key: str) -> bytes | None:
    """Decode a key as Vault does: as hexadecimal if that is possible, otherwise as base64."""
    try:
        return bytes.fromhex(key)
    except ValueError:
        pass
    try:
        return base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        return None
