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
MOUNTED = "srv/mounted"
"""A folder that is mounted below the logs."""
OLD_IDENTITY = "0123456789abcdef"
WANTING = (
    "default.target",
    "sysinit.target",
    "local-fs.target",
    "network-pre.target",
    "basic.target",
    "multi-user.target",
    "systemd-journald.service",
    "valkey.service",
)
DROP_INS = {
    "systemd-journald.service.d": "[Service]\nExecStartPre=-{run} journald\n",
    "service.d": "[Service]\nExecStartPre=-+{run} every-service\n",
    "default.target.d": "[Unit]\nWants=early-default.service\n",
}
HOOKS = (
    "etc/network/if-up.d",
    "etc/network/if-pre-up.d",
    "etc/networkd-dispatcher/routable.d",
    "etc/networkd-dispatcher/configured.d",
    "etc/dhcp/dhclient-enter-hooks.d",
    "etc/init.d",
    "etc/cron.hourly",
)
"""Folders of programs that something else starts."""
TABLES = {
    "etc/cron.d/production": "@reboot root {run} reboot\n* * * * * root {run} cron\n",
    "var/spool/cron/crontabs/root": "@reboot {run} crontab\n",
    "etc/udev/rules.d/99-production.rules": 'ACTION=="add", RUN+="{run} udev"\n',
    "var/lib/systemd/linger/root": "",
}
"""Files whose lines something else carries out."""
LSB = """#!/bin/sh
### BEGIN INIT INFO
# Provides: production
# Required-Start:
# Required-Stop:
# Default-Start: S 2 3 4 5
# Default-Stop:
### END INIT INFO
"""
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
    stage = ground.stage("STAGE-TRAPS", "stagetrap0", 54, SETTINGS)
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
        "hijacked": ("llm", hijacked),
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


def files(ground: Ground, rootfs: Path) -> None:
    """Cache: every kind of file in the folders to wipe and in the logs, links and mounts that lead out of them, and all
    that starts by itself."""
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
    once_a_clone(ground, rootfs)
    runs_by_itself(rootfs)
    mounted = rootfs / MOUNTED
    mounted.mkdir()
    (mounted / "kept").write_text("production's\n")
    (rootfs / "opt/gbo/logs/mounted").mkdir()
    with (rootfs / "etc/fstab").open("a") as fstab:
        fstab.write(f"/{MOUNTED} /opt/gbo/logs/mounted none bind 0 0\n")
    journal = rootfs / "var/log/journal" / rootfs.joinpath("etc/machine-id").read_text().strip()
    journal.mkdir(parents=True, exist_ok=True)
    (journal / "system.journal").write_text("production's\n")
    (rootfs / "var/log/mail.log").write_text("production's\n")


def once_a_clone(ground: Ground, rootfs: Path) -> None:
    """A stage's clone that was promoted, or production restored from one: what such a clone has is in the source."""
    folder = rootfs / "var/lib/stagegbo"
    folder.mkdir()
    done = "emptied /opt/gbo/data/valkey\ncleared /opt/gbo/logs\ntruncated /var/log\n"
    (folder / "prepared").write_text(f"{done}placed \nplaced {OLD_IDENTITY}\n")
    (folder / "release").touch()
    config = {
        "environment.STAGEGBO_PLACE": f"{OLD_IDENTITY}:",
        "user.stagegbo.generation": "0123456789abcdef",
        "user.stagegbo.origin": "0123456789abcdef",
        "user.stagegbo.owner": "pytest-stagegbo",
        "user.stagegbo.proven": "true",
        "user.stagegbo.state": "prepared",
    }
    ground.put("instances/files", {"config": config}, project=TRAPS)


def runs_by_itself(rootfs: Path) -> None:
    """Every way in which a container starts something without being asked. Each writes down what it saw in the folder
    that is wiped."""
    program = rootfs / "usr/local/bin/production"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text('#!/bin/sh\nls /opt/gbo/data/valkey >"/production-$1"\n')
    program.chmod(0o755)
    run = "/usr/local/bin/production"
    systemd = rootfs / "etc/systemd"
    units = systemd / "system"
    for target in WANTING:
        name = f"early-{target.partition('.')[0]}.service"
        service = f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={run} {target}\n"
        (units / name).write_text(f"[Unit]\nDefaultDependencies=no\n{service}")
        wants = units / f"{target}.wants"
        wants.mkdir(exist_ok=True)
        (wants / name).symlink_to(units / name)
    (units / "each-second.timer").write_text("[Timer]\nOnActiveSec=1\nOnUnitActiveSec=1\n")
    (units / "each-second.service").write_text(f"[Service]\nType=oneshot\nExecStart={run} timer\n")
    (units / "timers.target.wants").mkdir(exist_ok=True)
    (units / "timers.target.wants/each-second.timer").symlink_to(units / "each-second.timer")
    for name, lines in DROP_INS.items():
        folder = units / name
        folder.mkdir()
        (folder / "production.conf").write_text(lines.format(run=run))
    control = systemd / "system.control"
    control.mkdir()
    wanted = "early-default.service multi-user.target"
    (control / "default.target").write_text(f"[Unit]\nWants={wanted}\nAfter={wanted}\nAllowIsolate=yes\n")
    for generators in ("system-generators", "system-environment-generators"):
        file = systemd / generators / "production"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{run} {generators}\n")
        file.chmod(0o755)
    (units / "seen.path").write_text("[Path]\nPathExists=/etc/hostname\nUnit=each-second.service\n")
    (units / "paths.target.wants").mkdir(exist_ok=True)
    (units / "paths.target.wants/seen.path").symlink_to(units / "seen.path")
    user = systemd / "user"
    (user / "default.target.wants").mkdir(parents=True, exist_ok=True)
    (user / "production.service").write_text(f"[Service]\nType=oneshot\nExecStart={run} user\n")
    (user / "default.target.wants/production.service").symlink_to(user / "production.service")
    for hooks in HOOKS:
        file = rootfs / hooks / "production"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{LSB}{run} {hooks.replace('/', '-')}\n")
        file.chmod(0o755)
    for level in ("rcS.d", "rc2.d", "rc5.d"):
        (rootfs / "etc" / level).mkdir(exist_ok=True)
        (rootfs / "etc" / level / "S01production").symlink_to("../init.d/production")
    for name, line in TABLES.items():
        file = rootfs / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(line.format(run=run))
    lines = "f /opt/gbo/data/valkey/tmpfiles 0644 root root - production\nno such line\n"
    (rootfs / "etc/tmpfiles.d/production.conf").write_text(lines)
    (rootfs / "etc/rc.local").write_text(f"#!/bin/sh\n{run} rc-local\n")
    (rootfs / "etc/rc.local").chmod(0o755)


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


def hijacked(_: Ground, rootfs: Path) -> None:
    """llm, whose first process is another program than systemd."""
    (rootfs / "sbin/init").unlink()
    (rootfs / "sbin/init").write_text("#!/bin/sh\nexec sleep 3600\n")
    (rootfs / "sbin/init").chmod(0o755)


def halting(_: Ground, rootfs: Path) -> None:
    """llm, whose service switches the container off."""
    unit(rootfs, "/bin/systemctl poweroff --force --force")
