"""A user of this machine without root, who may use the lab's socket by its group, as Incus's packages arrange it.

The command runs in a mount namespace of its own, where that user can reach the socket, and Python, which may be in a
folder that only root may enter. Nothing of this is seen outside, and it goes with the command.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from tests.certificates import make_pair

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tests.lab.support import Ground

    from pytest_stagegbo.lab import Lab

USER = 65534
"""nobody"""
TRUSTED = "nobody"
"""Name of the certificate at the daemon's."""
ADDRESS = "127.0.0.1:8444"
"""Where the daemon listens in the lab's network."""


class Unprivileged:
    """That user.

    Args:
        folder: Everybody may enter it. The user's home and the socket are in it.
    """

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        folder.chmod(0o755)
        self.home = folder / "home"
        self.home.mkdir()
        os.chown(self.home, USER, USER)
        self._folder = folder
        self.socket = folder / "incus.sock"
        self.socket.touch()

    def given(self, file: Path) -> Path:
        """A copy of a file that this user may read."""
        copy = self._folder / file.name
        copy.write_bytes(file.read_bytes())
        return copy

    @contextlib.contextmanager
    def over_https(self, ground: Ground) -> Iterator[dict[str, str]]:
        """The environment of a command that speaks HTTPS with the daemon, with a certificate of this user's."""
        pair = make_pair(self.home, TRUSTED)
        for file in (pair.cert, pair.key):
            os.chown(file, USER, USER)
        server = self.given(self.lab.paths.incus / "server.crt")
        server.chmod(0o644)
        with FileLock(self.lab.paths.lock(f"tests-far-{self.lab.paths.name}")):
            ground.incus("config", "set", f"core.https_address={ADDRESS}")
            ground.incus("config", "trust", "add-certificate", str(pair.cert), "--name", TRUSTED)
            try:
                values = {"endpoint": f"https://{ADDRESS}", "client_cert": pair.cert, "client_key": pair.key}
                found = {**values, "server_cert": server}
                yield {f"STAGEGBO_INCUS__{name.upper()}": str(value) for name, value in found.items()}
            finally:
                ground.incus("config", "trust", "remove", pair.fingerprint[:12])
                ground.incus("config", "unset", "core.https_address")

    def run(
        self, *args: str, environment: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run `stagegbo` in the lab's network."""
        words = [sys.executable, "-m", "pytest_stagegbo", *args]
        group = str(self.lab.socket.stat().st_gid)
        user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", f"--groups={group}", "--inh-caps=-all", "--"]
        given = environment or {"STAGEGBO_INCUS__ENDPOINT": str(self.socket)}
        values = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **given}
        variables = ["env", "-i", *(f"{name}={value}" for name, value in values.items())]
        lines = ["set -eu", f"mount --bind {self.lab.socket} {self.socket}", *self._opened()]
        lines += [f"cd {self.home}", f"exec {shlex.join([*user, *variables, *words])}"]
        argv = ["nsenter", f"--net=/run/netns/{self.lab.paths.netns}", "--", "unshare", "--mount"]
        return subprocess.run(
            [*argv, "sh", "-c", "\n".join(lines)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def _opened(self) -> Iterator[str]:
        """Shell commands that let everybody get to Python and the project, and to nothing else below root's folders."""
        import pytest_stagegbo

        source = Path(pytest_stagegbo.__file__).parents[1]
        needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).absolute(), source, self._folder}
        for number, (closed, paths) in enumerate(_closed(needed).items()):
            aside = self._folder / f"aside{number}"
            yield f"mkdir -p {aside}; mount --bind {closed} {aside}; mount -t tmpfs -o mode=755 tmpfs {closed}"
            for path in paths:
                yield f"mkdir -p {path}; mount --rbind {aside / path.relative_to(closed)} {path}"


def _closed(paths: Iterable[Path]) -> dict[Path, Sequence[Path]]:
    """By the outermost folder that only its owner may enter, the paths that are below it."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(paths):
        for folder in (*reversed(path.parents), path):
            if not folder.stat().st_mode & stat.S_IXOTH:
                found.setdefault(folder, []).append(path)
                break
    return dict(found)
