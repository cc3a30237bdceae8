"""The `incus` client, where it is there: for commands that need its terminal, or follow what is written.

It gets the stage's project, and a configuration folder of its own, so that the client's current project and remotes are
neither used nor changed, and a daemon on another host is known to it by the same certificates as to this package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.remedies import aimed
from pytest_stagegbo.errors import MissingRequirement
from pytest_stagegbo.facts.bridge import REMEDY, find_fault

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.settings import IncusSettings

__all__ = ["client_settings", "hand_over", "incus_client", "need_running", "no_client"]

LOCAL = "local"
"""The client's name for the daemon of this host."""


def need_running(engine: StageEngine, name: str, arguments: argparse.Namespace) -> None:
    """Raise `StageMissing` when a clone does not run; warn when its bridge is not as it has to be."""
    clone = engine.running_clone(name)
    fault = find_fault(engine.reader, engine.settings, [clone])
    if fault:  # what runs in the clone may still be looked at
        print(aimed(f"{fault}; {REMEDY}", arguments), file=sys.stderr)


def incus_client(context: Context, engine: StageEngine) -> list[str] | None:
    """How to call the `incus` client; None where there is none."""
    if context.lab is not None and engine.reader.is_local:
        return context.lab.exec_argv(["incus"])
    found = shutil.which("incus")
    return [found] if found else None


def hand_over(client: Sequence[str], context: Context, name: str, argv: Sequence[str]) -> int:
    """Become the client. Returns only when that fails."""
    environment = dict(os.environ)
    remote = LOCAL
    reader = context.engine().reader
    if not reader.is_local:
        remote = "stage"
        environment["INCUS_CONF"] = client_settings(context.loaded.settings.incus, remote)
    elif context.lab is None:
        environment["INCUS_SOCKET"] = reader.endpoint
        environment["INCUS_CONF"] = client_settings(context.loaded.settings.incus, remote)
    environment.pop("INCUS_REMOTE", None)
    environment.pop("INCUS_PROJECT", None)
    command = [*client, "exec", "--project", context.loaded.settings.project, f"{remote}:{name}", "--", *argv]
    sys.stdout.flush()
    leases = sys.modules.get("pytest_stagegbo.leases.process")
    if leases is not None:
        leases.close_all()
    os.execvpe(command[0], command, environment)


def client_settings(incus: IncusSettings, remote: str) -> str:
    """A configuration folder for the `incus` client, in which a daemon on another host has the name `remote`.

    Nobody is left to remove it once this process has become the client. So the same settings have the same folder.
    """
    links = {
        "client.crt": incus.client_cert,
        "client.key": incus.client_key,
        f"servercerts/{remote}.crt": incus.server_cert,
    }
    links = {name: str(Path(path).absolute()) for name, path in links.items() if path and remote != LOCAL}
    entry = {"addr": incus.endpoint, "protocol": "incus", "auth_type": "tls", "public": False}
    remotes = {} if remote == LOCAL else {"default-remote": remote, "remotes": {remote: entry}}
    folder = _own_folder() / hashlib.sha256(json.dumps([remotes, links]).encode()).hexdigest()[:16]
    if not folder.exists():
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        if remotes:
            (made / "config.yml").write_text(json.dumps(remotes))
        (made / "servercerts").mkdir()
        for name, path in links.items():
            (made / name).symlink_to(path)
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(folder)
    return str(folder)


def _own_folder() -> Path:
    """A temporary folder that only this user can write to; a new one when somebody else has that name."""
    folder = Path(tempfile.gettempdir()) / f"stagegbo-client-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix="stagegbo-"))


def no_client(what: str) -> MissingRequirement:
    """The error of a command that needs the terminal of the `incus` client."""
    return MissingRequirement(
        f"`{what}` needs the incus client, for its terminal",
        seen="no `incus` in the path",
        remedy="install it (Debian: apt-get install incus-client), or use `stagegbo exec NAME -- CMD`",
    )
