"""Production as General Bots runs it: six containers in project `default`, made once and started ever after."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import LabError
from pytest_stagegbo.incus.hostnet import call_inside
from pytest_stagegbo.lab import api, pools, probe
from pytest_stagegbo.lab.command import write_atomic
from pytest_stagegbo.lab.probe import ADDRESSES, VAULT_URL
from pytest_stagegbo.progress import Progress, task
from pytest_stagegbo.workers import Workers

if TYPE_CHECKING:
    from pytest_stagegbo.lab.host import Host
    from pytest_stagegbo.lab.image import Image

__all__ = ["Production"]

_GATEWAY = "10.0.2.1"
_ALIAS = "gbo-production"
_READY_SECONDS = 120.0
_RESTORE_SECONDS = 5.0
_POLL_SECONDS = 0.05
"""Between two looks, each up to a deadline: what is waited for has no event that this could listen to."""


class Production:
    """The six containers of one lab."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.paths = host.paths

    def complete(self) -> bool:
        """Whether production was made to its end, with the programs that this version has for it."""
        try:
            return bool(json.loads(self.paths.marker.read_text()).get("programs") == _programs())
        except (OSError, ValueError):
            return False

    def make(self, image: Image, progress: Progress, quota: str = "") -> None:
        """Make production in a daemon that has nothing in it.

        Args:
            quota: `ordinary` or `simple`; empty: simple ones if the kernel knows them.
        """
        incus = self.host.incus
        with task(progress, "import", "production's network, pool and image"), Workers(1, "stagegbo lab") as aside:
            files = (str(image.metadata), str(image.rootfs))
            words = ("image", "import", *files, "--alias", _ALIAS)
            # The first client of all writes its configuration, and one that begins meanwhile may find half of it (7.0).
            incus("query", "/1.0", what="asking the lab's Incus")
            imported = aside.submit(incus, *words, what="importing the image")  # takes the longer, and needs no pool
            incus("admin", "init", "--preseed", what="setting up the lab's Incus", stdin=json.dumps(_preseed()))
            if quota != "ordinary":  # those are Incus's own doing
                pools.count_simply(self.host, pools.POOL, required=quota == "simple")
            imported.result()
        credentials = _credentials()
        write_atomic(self.paths.credentials, json.dumps(credentials, indent=1), mode=0o600)
        first, *others = (name for name in ADDRESSES if name != "system")
        with task(progress, "unpack", "unpacking the image"):
            incus("init", _ALIAS, first, what=f"creating {first}")
        workers = Workers(len(ADDRESSES), "stagegbo lab")
        with workers as threads, task(progress, "furnish", "six containers with their data"):
            made = {name: threads.submit(self._launch, name, credentials, progress) for name in others}
            made[first] = threads.submit(self._launch, first, credentials, progress, created=True)
            system = threads.submit(self._create_and_start, "system")
            made["vault"].result()
            with task(progress, "secrets", "Vault's secrets"):
                token = call_inside(self.paths.netns_file, lambda: self._fill_vault(credentials))
            for future in (*made.values(), system):
                future.result()
            with task(progress, "system", "system"):
                self._furnish("system", credentials, token)
        self.wait_ready(progress)
        about = {"image": image.rootfs.name, "incus": self.paths.version, "programs": _programs()}
        write_atomic(self.paths.marker, json.dumps(about))

    def start(self, progress: Progress, *, restoring: bool) -> None:
        """Start the containers that are not running, unseal Vault and wait until all services work.

        Args:
            progress: Is told what is being done.
            restoring: The daemon has only just come up.
        """
        with task(progress, "containers", "starting production"):
            # The daemon itself starts what ran when it ended; only what it leaves is for us.
            deadline = time.monotonic() + (_RESTORE_SECONDS if restoring else 0)
            while (stopped := self._stopped()) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)  # a poll with a deadline: the daemon is starting them
            with Workers(len(ADDRESSES), "stagegbo lab") as threads:
                list(threads.map(self._start, stopped))
        with task(progress, "unseal", "unsealing production's Vault"):
            call_inside(self.paths.netns_file, self._unseal)
        self.wait_ready(progress)

    def containers(self) -> dict[str, str]:
        """State of each container (`Running`, `Stopped`, ...); those that do not exist are left out."""
        found = api.get(self.paths.socket, "/1.0/instances?recursion=1&project=default")
        return {each["name"]: str(each["status"]) for each in found if each["name"] in ADDRESSES}

    def services(self) -> dict[str, str]:
        """`ok` or what is wrong, for each container's services."""
        return call_inside(self.paths.netns_file, probe.states)

    def wait_ready(self, progress: Progress) -> None:
        """Wait until all six answer in their own protocols.

        Raises:
            LabError: one of them did not in time; says which, and its last answer.
        """
        with task(progress, "services", "waiting for the six services"):
            deadline = time.monotonic() + _READY_SECONDS
            while failing := {name: state for name, state in self.services().items() if state != "ok"}:
                if time.monotonic() > deadline:
                    raise LabError(
                        f"services of the lab's production do not work: {', '.join(failing)}",
                        seen="\n".join(f"{name}: {state}" for name, state in failing.items()),
                        remedy=f"look inside: `stagegbo lab exec -- incus exec {next(iter(failing))} -- journalctl -b`",
                    )
                time.sleep(_POLL_SECONDS)  # a poll with a deadline, of services without events

    def _launch(self, name: str, credentials: dict[str, Any], progress: Progress, *, created: bool = False) -> None:
        with task(progress, name, name):
            if not created:
                self.host.incus("init", _ALIAS, name, what=f"creating {name}")
            self.host.incus("start", name, what=f"starting {name}")
            self._furnish(name, credentials)

    def _create_and_start(self, name: str) -> None:
        self.host.incus("init", _ALIAS, name, what=f"creating {name}")
        self.host.incus("start", name, what=f"starting {name}")

    def _furnish(self, name: str, credentials: dict[str, Any], token: str = "") -> None:
        scripts = {"system": ["botserver.py"], "llm": ["llm.py"]}.get(name, [])
        order = {
            "role": name,
            "address": ADDRESSES[name],
            "gateway": _GATEWAY,
            "credentials": credentials,
            "scripts": {script: _script(script) for script in scripts},
            "vault": VAULT_URL,
            "token": token,
        }
        argv = ["exec", name, "--", "python3", "-c", _script("furnish.py")]
        self.host.incus(*argv, what=f"furnishing {name}", stdin=json.dumps(order))

    def _stopped(self) -> list[str]:
        states = self.containers()
        if missing := set(ADDRESSES) - set(states):
            raise LabError(
                f"the lab's production lacks {', '.join(sorted(missing))}",
                seen=f"present: {', '.join(sorted(states)) or 'none'}",
                remedy="run `stagegbo lab up --fresh` to replace production",
            )
        return [name for name, state in states.items() if state != "Running"]

    def _start(self, name: str) -> None:
        try:
            self.host.incus("start", name, what=f"starting {name}")
        except LabError:
            if self.containers().get(name) != "Running":  # else the daemon was quicker
                raise

    def _fill_vault(self, credentials: dict[str, Any]) -> str:
        """Initialize and unseal Vault, write what BotServer asks for, and return a token that may read it."""
        answer = _vault("PUT", "/v1/sys/init", {"secret_shares": 5, "secret_threshold": 3}, patient=True)
        init = {
            "unseal_keys_b64": answer["keys_base64"],
            "unseal_keys_hex": answer["keys"],
            "unseal_shares": 5,
            "unseal_threshold": 3,
            "recovery_keys_b64": [],
            "recovery_keys_hex": [],
            "recovery_keys_shares": 0,
            "recovery_keys_threshold": 0,
            "root_token": answer["root_token"],
        }
        write_atomic(self.paths.vault_init, json.dumps(init, indent=1), mode=0o600)
        self._unseal()
        root = str(answer["root_token"])
        _vault("POST", "/v1/sys/mounts/secret", {"type": "kv", "options": {"version": "2"}}, token=root)
        for name, secret in credentials.items():
            # A KV store that was just mounted refuses for some milliseconds.
            _vault("POST", f"/v1/secret/data/gbo/{name}", {"data": secret}, token=root, patient=True)
        policy = 'path "secret/data/gbo/*" { capabilities = ["read"] }'
        _vault("PUT", "/v1/sys/policies/acl/botserver", {"policy": policy}, token=root)
        order = {"policies": ["botserver"], "period": "87600h", "display_name": "botserver"}
        return str(_vault("POST", "/v1/auth/token/create-orphan", order, token=root)["auth"]["client_token"])

    def _unseal(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        init = json.loads(self.paths.vault_init.read_text())
        seen: object = "no answer"
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                status, seen = probe.vault_call("GET", "/v1/sys/health")
                if status == 200:
                    return
                if status == 503:
                    for key in init["unseal_keys_b64"][: init["unseal_threshold"]]:
                        probe.vault_call("PUT", "/v1/sys/unseal", {"key": key})
            time.sleep(_POLL_SECONDS)  # a poll with a deadline: Vault elects itself first
        raise LabError(
            "production's Vault could not be unsealed",
            seen=str(seen),
            remedy="look inside: `stagegbo lab exec -- incus exec vault -- tail /opt/gbo/logs/vault/vault.log`",
        )


def _vault(method: str, path: str, body: object, *, token: str = "", patient: bool = False) -> Any:
    deadline = time.monotonic() + (_READY_SECONDS if patient else 0)
    while True:
        try:
            status, answer = probe.vault_call(method, path, body, token=token)
            seen = f"{status} {answer}"
            if status < 300:
                return answer
        except OSError as error:
            seen = str(error)
        if time.monotonic() >= deadline:
            raise LabError(
                f"production's Vault refused {method} {path}",
                seen=seen[:500],
                remedy="look inside: `stagegbo lab exec -- incus exec vault -- journalctl -b`",
            )
        time.sleep(_POLL_SECONDS)  # a poll with a deadline: as above


def _preseed() -> dict[str, Any]:
    network = {"ipv4.address": f"{_GATEWAY}/24", "ipv4.nat": "true", "ipv6.address": "none"}
    devices = {
        "root": {"type": "disk", "path": "/", "pool": pools.POOL},
        "eth0": {"type": "nic", "network": "prodbr0", "name": "eth0"},
    }
    return {
        "storage_pools": [{"name": pools.POOL, "driver": "btrfs", "config": {"size": pools.SIZE}}],
        "networks": [{"name": "prodbr0", "type": "bridge", "config": network}],
        "profiles": [{"name": "default", "devices": devices}],
    }


def _credentials() -> dict[str, Any]:
    """What Vault holds for BotServer below secret/gbo/, with production's own addresses."""

    def word() -> str:
        return secrets.token_hex(16)

    tables = {"username": "gbuser", "password": word(), "database": "botserver"}
    return {
        "tables": {"host": ADDRESSES["tables"], "port": 5432, **tables},
        "cache": {"host": ADDRESSES["cache"], "port": 6379, "password": word()},
        "drive": {"host": ADDRESSES["drive"], "port": 9100, "access_key": word(), "secret_key": word()},
        "llm": {"host": ADDRESSES["llm"], "port": 8081, "url": f"http://{ADDRESSES['llm']}:8081"},
    }


def _script(name: str) -> str:
    return importlib.resources.files("pytest_stagegbo.lab.standin").joinpath(name).read_text()


def _programs() -> str:
    """A digest of all that is put into production's containers."""
    names = ("botserver.py", "furnish.py", "llm.py")
    return hashlib.sha256("".join(map(_script, names)).encode()).hexdigest()[:12]
