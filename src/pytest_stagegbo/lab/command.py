"""Running the machine's commands, with what they print kept for the one who has to find out what failed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import LabError, MissingRequirement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.progress import Progress

__all__ = ["PATH", "install_missing", "missing_packages", "remove_tree", "require_root", "run", "write_atomic"]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Search path for system tools; a person's own path often lacks the sbin folders."""

_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setsid": "util-linux",
    "losetup": "mount",
    "mksquashfs": "squashfs-tools",
}
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SEEN_LINES = 15


def run(
    argv: Sequence[str],
    *,
    log: Path,
    what: str,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> str:
    """Run a command to its end and return its standard output.

    Standard error goes to `log`; standard output does so too unless it is empty, and only when the command
    failed, since it may hold secrets when it did not.

    Raises:
        LabError: it could not be started, took longer than `timeout` seconds or ended with another status than 0.
    """
    with log.open("ab") as stream:
        stream.write(f"$ {shlex.join(argv)[:400]}\n".encode())
        stream.flush()
        start = stream.tell()
        try:
            done = subprocess.run(
                argv,
                input=stdin.encode() if stdin is not None else None,
                stdin=subprocess.DEVNULL if stdin is None else None,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8", **(env or {})},
                timeout=timeout,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"{what} failed", seen=str(error)[:500], remedy=f"see {log}") from error
        if done.returncode:
            stream.write(done.stdout)
    if done.returncode:
        with log.open("rb") as stream:
            stream.seek(start)
            lines = stream.read().decode(errors="replace").splitlines()
        raise LabError(
            f"{what} failed with status {done.returncode}",
            seen="\n".join(lines[-_SEEN_LINES:]) or "nothing was printed",
            remedy=f"see {log}",
        )
    return done.stdout.decode(errors="replace")


def require_root() -> None:
    """Raise `MissingRequirement` unless this process may make namespaces and mounts."""
    if os.geteuid() != 0:
        raise MissingRequirement(
            "the lab needs root: it makes network and mount namespaces",
            seen=f"running as uid {os.geteuid()}",
            remedy="run it with sudo",
        )


def missing_packages() -> list[str]:
    """Debian packages that the lab needs and this machine lacks."""
    missing = {package for tool, package in _PACKAGES.items() if shutil.which(tool, path=PATH) is None}
    if not _KEYRING.exists():  # so it is on Ubuntu, whose own keyring does not sign Debian's suites
        missing.add("debian-archive-keyring")
    return sorted(missing)


def install_missing(progress: Progress, log: Path) -> None:
    """Install what `missing_packages` names.

    Raises:
        MissingRequirement: this machine has no apt-get, or apt-get failed.
    """
    from pytest_stagegbo.progress import task

    packages = missing_packages()
    if not packages:
        return
    command = f"apt-get install -y {' '.join(packages)}"
    if shutil.which("apt-get", path=PATH) is None:
        raise MissingRequirement(
            f"the lab needs these Debian packages: {', '.join(packages)}",
            seen="no apt-get on this machine",
            remedy="install the tools of these packages by hand, or use a Debian or Ubuntu machine",
        )
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    try:
        with task(progress, "apt", command):
            if not any(Path("/var/lib/apt/lists").glob("*Packages*")):
                run(["apt-get", "update"], log=log, what="apt-get update", env=env)
            try:
                run(install, log=log, what=command, env=env)
            except LabError:  # lists that are too old name files which are gone
                run(["apt-get", "update"], log=log, what="apt-get update", env=env)
                run(install, log=log, what=command, env=env)
    except LabError as error:
        raise MissingRequirement(
            f"the lab needs these Debian packages: {', '.join(packages)}",
            seen=error.seen,
            remedy=f"make this work, then try again: apt-get update && {command}",
        ) from error


def write_atomic(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a file under another name, then give it its own: it is there as a whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def remove_tree(path: Path) -> None:
    """Delete a folder, and refuse while anything is mounted below it: that would be deleted too.

    Raises:
        LabError: something is mounted below `path`.
    """
    if not path.exists():
        return
    inside = [point for point in _mount_points() if point == path or path in point.parents]
    if inside:
        raise LabError(
            f"{path} cannot be deleted, since something is mounted there",
            seen="\n".join(map(str, inside)),
            remedy="unmount it, then try again",
        )
    shutil.rmtree(path)


def _mount_points() -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]
