"""Sources that are hard to clone safely: copies of production's containers in project `PROD-GBO1`, with traps."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.lab.support import SIX, TRAPS, immutable, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.support import Ground, Stage

MANY = 10_000
ODD_NAMES = (
    "with spaces in it.rdb",
    "with\na newline.rdb",
    "-rf",
    "--",
    "*",
    "'quotes' \"both\" $HOME `id`",
    "\\",
    "ü",
)
OUTSIDE = "srv/outside"
"""A folder that nothing may be deleted from."""
DRIVE_ADDRESS = "10.0.2.24"
"""Where the running source with all the devices is: its original keeps running beside it."""
HARDWARE_ADDRESS = "10:66:6a:00:00:01"

PROFILE: dict[str, dict[str, Any]] = {
    "config": {
        "limits.memory": "1GiB",
        "environment.COMPANY": "gbo",
        "user.note": "production's",
        "cloud-init.user-data": "#cloud-config\n{}",
    },
    "devices": {"shared": {"type": "disk", "source": "/srv", "path": "/mnt/shared"}},
}
CONFIG = {
    "boot.autostart": "true",
    "boot.autostart.priority": "10",
    "cloud-init.network-config": "version: 1",
    "environment.OWN": "kept",
    "limits.processes": "4000",
    "raw.lxc": "lxc.environment = TRAP=1",
    "security.nesting": "true",
    "security.privileged": "true",
    "snapshots.schedule": "@daily",
    "user.cron": "production's",
}
DEVICES = {
    "eth0": {
        "type": "nic",
        "name": "eth0",
        "network": "prodbr0",
        "hwaddr": HARDWARE_ADDRESS,
        "ipv4.address": DRIVE_ADDRESS,
    },
    "eth1": {"type": "nic", "name": "eth1", "nictype": "p2p"},
    "web": {"type": "proxy", "listen": "tcp:127.0.0.1:9900", "connect": "tcp:127.0.0.1:9100"},
    "host": {"type": "disk", "source": "/root", "path": "/mnt/host"},
    "fuse": {"type": "unix-char", "source": "/dev/fuse", "path": "/dev/fuse"},
    "backup": {"type": "disk", "pool": "pool", "source": "backup", "path": "/mnt/backup"},
}


def one_container(name: str, source: str) -> str:
    """Settings of a stage with a single container."""
    others = "".join(f"{other} = false\n" for other in SIX if other != name)
    return f'source_project = "{TRAPS}"\n[containers]\n{others}{name}.source = "{source}"\n'


SETTINGS = f"""source_project = "{TRAPS}"
[containers]
system = false
tables = false
vault = false
llm = false
cache.source = "files"
drive.source = "devices"
"""


def provision(ground: Ground) -> Stage:
    """Build the traps and clone those that can be cloned."""
    build(ground)
    stage = ground.stage("STAGE-TRAPS", "stagetrap0", 4, SETTINGS)
    planned = stage.json("provision", "--dry-run")
    done = stage.run("provision")
    (stage.config.with_suffix(".plan")).write_text(json.dumps(planned))
    (stage.config.with_suffix(".log")).write_text(done.stderr)
    return stage


def build(ground: Ground) -> None:
    """Make the project and all sources at once."""
    ground.incus("project", "create", TRAPS, "-c", "features.images=false")
    root = {"type": "disk", "path": "/", "pool": "pool"}
    ground.put("profiles/default", {"config": {}, "devices": {"root": root}}, method="PUT", project=TRAPS)
    sources = {
        "devices": ("drive", devices),
        "files": ("cache", files),
        "stuck": ("cache", stuck),
        "broken": ("llm", broken),
        "halting": ("llm", halting),
    }
    with ThreadPoolExecutor(len(sources)) as threads:
        originals = [original for original, _ in sources.values()]
        list(threads.map(lambda name, original: copy(ground, original, name), sources, originals))
    for name, (_, trap) in sources.items():
        trap(ground, ground.rootfs(name, TRAPS))


def copy(ground: Ground, original: str, name: str) -> None:
    ground.incus("copy", original, name, "--instance-only", "--target-project", TRAPS)


def devices(ground: Ground, rootfs: Path) -> None:
    """Drive, running: everything that a clone must not inherit, and its data behind a link."""
    ground.incus("profile", "create", "company", project=TRAPS)
    ground.put("profiles/company", PROFILE, method="PUT", project=TRAPS)
    ground.incus("storage", "volume", "create", "pool", "backup", project=TRAPS)
    (ground.host / "srv").exists()
    interfaces = rootfs / "etc/network/interfaces"
    interfaces.with_name("production").write_text(interfaces.read_text().replace("10.0.2.14", DRIVE_ADDRESS))
    interfaces.unlink()
    interfaces.symlink_to("production")
    data = rootfs / "opt/gbo/data/minio"
    data.rename(rootfs / "srv/minio")
    data.symlink_to("/srv/minio")
    ground.incus("snapshot", "create", "devices", "before-traps", project=TRAPS)
    document = {"profiles": ["default", "company"], "config": CONFIG, "devices": DEVICES}
    ground.put("instances/devices", document, project=TRAPS)
    ground.incus("start", "devices", project=TRAPS)
    until(lambda: "9900" in ground.inside("ss", "-Hlt").stdout, "the proxy of the source listens")


def files(_: Ground, rootfs: Path) -> None:
    """Cache: every kind of file in the folders to wipe and in the logs, and links that lead out of them."""
    outside = rootfs / OUTSIDE
    outside.mkdir()
    (outside / "kept").write_text("production's\n")
    os.link(outside / "kept", rootfs / "opt/gbo/data/valkey/hard-link")
    for folder in (rootfs / "opt/gbo/data/valkey", rootfs / "opt/gbo/logs/valkey"):
        for name in ODD_NAMES:
            (folder / name).write_text("x")
            (folder / f"folder {name}").mkdir()
            (folder / f"folder {name}" / name).write_text("x")
        (folder / ".hidden/deep").mkdir(parents=True)
        (folder / ".hidden/deep/.file").write_text("x")
        (folder / "link").symlink_to(f"/{OUTSIDE}")
        os.mkfifo(folder / "pipe")
    (rootfs / "opt/gbo/data/valkey/appendonly.aof").write_text("*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n")
    many = rootfs / "opt/gbo/data/valkey/many"
    many.mkdir()
    for number in range(MANY):
        (many / f"{number}.rdb").touch()
    owned = rootfs / "opt/gbo/logs/owned by others"
    owned.mkdir()
    os.chown(owned, 1234, 4321)
    owned.chmod(0o2751)


def stuck(_: Ground, rootfs: Path) -> None:
    """Cache, with a file that can't be deleted."""
    file = rootfs / "opt/gbo/data/valkey/immutable"
    file.write_text("x")
    immutable(file, True)


def unit(rootfs: Path, command: str) -> None:
    """Replace the command of llm's service, run as root."""
    file = rootfs / "etc/systemd/system/llm.service"
    lines = file.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("User=", "Group=", "ExecStart="))]
    kept.insert(kept.index("[Service]") + 1, f"ExecStart={command}")
    file.write_text("\n".join(kept) + "\n")


def broken(_: Ground, rootfs: Path) -> None:
    """llm, whose service ends as soon as it begins."""
    unit(rootfs, "/bin/sh -c 'echo no such model: smollm2; exit 3'")


def halting(_: Ground, rootfs: Path) -> None:
    """llm, whose service switches the container off."""
    unit(rootfs, "/bin/systemctl poweroff --force --force")
