"""Credentials of the stage's services, found the way BotServer finds them: in Vault, with the token of its `.env`.

What the settings name under `credentials` wins. Functions that hold a secret return what went wrong, and their
callers, who hold none, raise it: tracebacks may be printed with the local variables of every frame.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pytest_stagegbo import clocks
from pytest_stagegbo.credentials.kv import Failure, KeyValue
from pytest_stagegbo.credentials.secret import Hidden, Secret, addresses
from pytest_stagegbo.errors import (
    MissingRequirement,
    NotReady,
    ServerRefused,
    SettingsError,
    StageGboError,
    VaultSealed,
)
from pytest_stagegbo.realfiles import real_files
from pytest_stagegbo.services.keys import HOW_TO_GIVE_KEYS, LARGEST_FILE
from pytest_stagegbo.services.masking import Masker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address

    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["HOW_TO_GIVE_A_TOKEN", "Credentials", "resolve"]

ENOUGH: Mapping[str, tuple[str, ...]] = {
    "postgresql": ("user", "password"),
    "valkey": ("password",),
    "s3": ("access_key", "secret_key"),
    "vault": ("token",),
}
"""Fields by protocol that make Vault superfluous when the settings give them all."""
LOAD_PAUSE = 60.0
"""Seconds between two tries to learn what must be masked, when Vault gives nothing."""
MOST_SECRETS = 500
"""Secrets that are looked through for production's addresses."""
HOW_TO_GIVE_A_TOKEN = (
    "name the environment variable or the file that has a token with the settings vault.token_env or vault.token_file"
)


class Credentials:
    """The secrets of one stage. No request before one is wanted; each is fetched once. Safe to share by threads.

    Args:
        reader: Reads the stage's `.env` from the clone of BotServer's container.
        environ: Where environment variables that the settings name are looked up.
    """

    def __init__(self, settings: Settings, reader: Reader, *, environ: Mapping[str, str] = os.environ) -> None:
        self._settings = settings
        self._reader = reader
        self._environ = environ
        self._lock = threading.RLock()
        self._found: dict[str, Secret] = {}
        self._token: Hidden | None = None
        self._masker = Masker()
        self._leads_to_production: bool | None = None
        self._load_again = float("-inf")

    def __repr__(self) -> str:
        return f"Credentials(of {', '.join(self._found) or 'nothing yet'})"

    @real_files()
    def __getitem__(self, name: str) -> Secret:
        """The credentials of a container's service; empty when neither the settings nor Vault have any.

        A container that speaks Vault's protocol has its token.

        Raises:
            VaultSealed: Vault is sealed.
            NotReady: Vault does not answer.
            MissingRequirement: There is no token, or it may not read this.
            SettingsError: There is no such container, or a setting names a variable or file with nothing in it.
            StageMissing: The container with the token does not exist.
        """
        if name not in self._settings.containers:
            raise SettingsError.unknown("no container", [name], self._settings.containers)
        with self._lock:
            if name not in self._found:
                found = self._fetch(self._settings.containers[name])
                self._masker.add(*found.secrets())
                self._found[name] = found
            return self._found[name]

    @real_files()
    def token(self) -> str:
        """Vault's token: from the settings, or BotServer's own. Raises like `[]`."""
        vault = self._settings.vault_probe
        if vault is not None and (given := Secret(self._given(vault[0].name)).token):
            self._masker.add(given)
            return given
        return self._own_token()

    @real_files()
    def leads_to_production(self) -> bool:
        """Whether whoever follows what Vault holds ends in production, outside of the stage.

        True also when that can't be told: the token may not list the secrets, or there are too many. Secrets in
        folders count. Raises like `[]`.
        """
        with self._lock:
            if self._leads_to_production is None:
                self._leads_to_production = self._look_for_production()
            return self._leads_to_production

    def mask(self, text: str) -> str:
        """`text` without the secrets that were fetched so far, and without what looks like one."""
        with self._lock:
            return self._masker.mask(text)

    @real_files()
    def load(self) -> None:
        """Fetch everything that `mask` should know. What can't be had is left out, and not tried for a minute."""
        with self._lock:
            missing = [name for name in self._settings.containers if name not in self._found]
            if not missing or clocks.monotonic() < self._load_again:
                return
            for name in missing:
                with contextlib.suppress(StageGboError):
                    self._masker.add(*Secret(self._given(name)).secrets())
            try:
                for name in missing:
                    self[name]
            except StageGboError:  # the others would fail alike, and each would take its time
                self._load_again = clocks.monotonic() + LOAD_PAUSE

    # -- one service

    def _fetch(self, container: ContainerSettings) -> Secret:
        given = self._given(container.name)
        vault = self._settings.vault_probe
        of_vault = vault is not None and vault[0].name == container.name
        protocol = container.probes[0].protocol if container.probes else ""
        source = f"settings credentials.{container.name}"
        settings = Secret(given, source if given else "")
        wanted = ENOUGH.get(protocol, ())
        if given and wanted and all(getattr(settings, field) for field in wanted):
            return settings
        if protocol == "vault":
            return Secret({"token": self._own_token()}, "the token").merged(given, source)
        if of_vault:  # beside another service
            return self._read(container.name).merged({"token": self._own_token(), **given}, source)
        if vault is None:
            return settings
        return self._read(container.name).merged(given, source)

    def _read(self, name: str) -> Secret:
        found = self.store(self._settings.vault.kv_path).read(name)
        path = f"{self._settings.vault.kv_path.strip('/')}/{name}"
        if isinstance(found, Failure):
            self._refuse(found, path)
        if found is None:
            return Secret({})
        return Secret(found, f"Vault {path}", of_production=self._is_production)

    def _is_production(self, address: IPv4Address) -> bool:
        sources = {container.production_address for container in self._settings.containers.values()}
        return address in self._settings.network.production or address in sources

    def _look_for_production(self) -> bool:
        store = self.store(self._settings.vault.kv_path)
        folders, names = [""], set(self._settings.containers)
        while folders:
            folder = folders.pop()
            listed = store.names(folder)
            if isinstance(listed, Failure):
                if listed.status != 403:
                    self._refuse(listed, self._settings.vault.kv_path)
                return True
            folders += [folder + name for name in listed if name.endswith("/")]
            names |= {folder + name for name in listed if not name.endswith("/")}
            if len(names) + len(folders) > MOST_SECRETS:
                return True
        for name in sorted(names):
            found = store.read(name)
            if isinstance(found, Failure):
                if found.status != 403:
                    self._refuse(found, f"{self._settings.vault.kv_path}/{name}")
                return True
            if any(map(self._is_production, addresses(str(found)))):
                return True
        return False

    # -- Vault

    def store(self, path: str) -> KeyValue:
        """A key-value store of the stage's Vault: `secret`, or a folder in it. Raises like `[]`."""
        vault = self._settings.vault_probe
        if vault is None:
            raise SettingsError(
                "the stage has no Vault to read credentials from",
                remedy="give them with the settings credentials.NAME.KEY, or keep a container with a vault probe",
            )
        container, probe = vault
        token = self.token()
        return KeyValue(str(container.address), probe.port, token, path, tls=probe.tls)

    def _refuse(self, failure: Failure, path: str) -> NoReturn:
        vault = self._settings.vault_probe
        name = vault[0].name if vault else "vault"
        if failure.status == 503:
            raise VaultSealed(
                f"{name} is sealed, so the credentials in {path} can't be read",
                seen=failure.text,
                remedy=f"{HOW_TO_GIVE_KEYS}, then run `stagegbo provision`; or give credentials with the settings "
                "credentials.NAME.KEY",
            )
        if failure.status in {401, 403}:
            raise MissingRequirement(
                f"{name} denies reading {path}",
                seen=failure.text,
                remedy=f"the token is wrong, has expired or lacks a policy for it: {HOW_TO_GIVE_A_TOKEN}",
            )
        raise NotReady(
            f"{name} gave no usable answer about {path}",
            seen=failure.text,
            remedy="check with `stagegbo status` that it answers, and the setting vault.kv_path; "
            "the stage's addresses are those of its host, so a remote one has to be tunnelled",
        )

    def _own_token(self) -> str:
        with self._lock:
            if self._token is None:
                found = self._find_token()
                if not isinstance(found, Hidden):
                    raise found
                self._masker.add(found)
                self._token = found
            return self._token

    def _find_token(self) -> Hidden | StageGboError:
        vault = self._settings.vault
        if vault.token_env:
            text = self._environ.get(vault.token_env, "").strip()
            return Hidden(text) if text else _nothing(f"vault.token_env: ${vault.token_env} is not set, or empty")
        if vault.token_file:
            return _content(vault.token_file, "vault.token_file")
        where = f"{vault.env_file} of {vault.env_container} in {self._settings.project}"
        if not vault.env_container or not vault.env_file:
            return MissingRequirement("no token for Vault is given", remedy=HOW_TO_GIVE_A_TOKEN)
        try:
            content = self._reader.file(self._settings.project, vault.env_container, vault.env_file)
        except ServerRefused as error:
            return MissingRequirement(f"{where} can't be read", seen=error.seen, remedy=HOW_TO_GIVE_A_TOKEN)
        if content is None:
            return MissingRequirement(
                f"there is no {where}, where BotServer keeps its token",
                remedy=f"provision the stage, correct the settings vault.env_container and vault.env_file, or "
                f"{HOW_TO_GIVE_A_TOKEN}",
            )
        token = _variable(content.decode("utf-8", "replace"), "VAULT_TOKEN")
        return Hidden(token) if token else MissingRequirement(f"{where} has no VAULT_TOKEN", remedy=HOW_TO_GIVE_A_TOKEN)

    # -- settings

    def _given(self, name: str) -> dict[str, str]:
        """What the settings give for a container, variables and files read."""
        found: dict[str, str] = {}
        for key, value in self._settings.credentials.get(name, {}).items():
            resolved = resolve(f"credentials.{name}.{key}", key, value, self._environ)
            if isinstance(resolved, StageGboError):
                found.clear()
                raise resolved
            found[resolved[0]] = resolved[1]
        return found


def resolve(setting: str, key: str, value: str, environ: Mapping[str, str]) -> tuple[str, str] | StageGboError:
    """Name and value of what a setting such as `password_env = "MY_PW"` gives, or why it can't be had.

    Args:
        setting: The whole name of the setting, for people.
    """
    if key.endswith("_env"):
        if value not in environ:
            return _nothing(f"{setting}: ${value} is not set")
        return key.removesuffix("_env"), Hidden(environ[value])
    if key.endswith("_file"):
        content = _content(value, setting)
        return content if isinstance(content, StageGboError) else (key.removesuffix("_file"), content)
    return key, Hidden(value)


def _nothing(what: str) -> SettingsError:
    return SettingsError(f"credentials can't be read from {what}", remedy="set it, or correct the setting")


def _content(name: str, setting: str) -> Hidden | SettingsError:
    """A file's text without the white space around it."""
    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            return _nothing(f"{setting}: {name} is larger than 1 MiB")
        text = data.decode().strip()
    except (OSError, RuntimeError, ValueError) as error:
        return _nothing(f"{setting}: {name}: {getattr(error, 'strerror', None) or type(error).__name__}")
    return Hidden(text) if text else _nothing(f"{setting}: {name} is empty")


def _variable(text: str, name: str) -> str:
    """A variable's value in the text of an `.env` file; the last one wins, as for a shell."""
    found = ""
    for line in text.splitlines():
        key, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and key.strip() == name:
            value = value.strip()
            if value[:1] in {'"', "'"} and value[:1] in value[1:]:
                found = value[1:].partition(value[0])[0]
            else:
                found = value.partition(" #")[0].strip()
    return found
