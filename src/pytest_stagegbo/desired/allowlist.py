"""What of a production container's configuration its clone may keep. Everything else is taken away and reported.

Incus merges the source's own config and devices into a copy, and does not check a restricted project's rules
again after that (up to 6.0.6 and 7.0.1), so the request itself has to name what must not come along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.own_pool import clone_pool
from pytest_stagegbo.desired.versions import own_version
from pytest_stagegbo.guest import PLACE, boot_environment, boot_folder, boot_folder_of, confinement, identity, variable
from pytest_stagegbo.incus.dialect import FIRST_START

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus import Device, Instance
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = [
    "CloneConfig",
    "at_rest_config",
    "clone_config",
    "clone_nic",
    "disk_limit",
    "nic",
    "root_disk",
    "unconfined",
    "violations",
]

KEPT_PREFIXES = (
    "environment.",
    "image.",
    "limits.cpu",
    "limits.disk.priority",
    "limits.kernel.",
    "limits.memory",
    "limits.processes",
)
"""Describe what runs or how much it may use; none of them reaches out of the container."""

LOW_LEVEL = frozenset({"limits.memory.swap", "limits.memory.oom_priority"})
"""Have one of these prefixes, and a restricted project refuses a copy that names them."""

NIC_KEYS = frozenset(
    {
        "type",
        "name",
        "network",
        "nictype",
        "parent",
        "ipv4.address",
        "security.mac_filtering",
        "security.ipv4_filtering",
    }
)
"""All that a clone's network device may have: `hwaddr`, `host_name` and `ipv4.routes` reach out of the stage."""

OWN_PLACE = f"environment.{PLACE}"
"""A clone's identity and address, so it is never taken over."""

SYSTEMD_PREFIX = "environment.SYSTEMD_"
"""What PID 1 looks for and where. Only a full boot keeps production's."""

SERVER_PREFIXES = ("volatile.", "image.", "user.")
"""Set by the server, by this tool, or by people, to whom `user.` belongs: Incus does nothing about it."""

CLOUD_INIT = frozenset({"user.meta-data", "user.network-config", "user.user-data", "user.vendor-data"})
"""Keys of people's that a boot may follow, if the container has cloud-init."""


class CloneConfig(Struct, frozen=True):
    """The overrides of a copy request, and what they take away."""

    config: dict[str, str]
    """To set, and with an empty value to unset."""
    devices: dict[str, Device]
    dropped: tuple[str, ...]
    """For people: each key and device that the source has and the clone will not."""


def nic(settings: Settings, *, managed: bool) -> Device:
    """The stage's network device, by network name where the project sees the bridge, else by its parent."""
    link = {"network": settings.network.name} if managed else {"nictype": "bridged", "parent": settings.network.name}
    return {"type": "nic", "name": "eth0", **link}


def clone_nic(container: ContainerSettings, settings: Settings, *, managed: bool) -> Device:
    """A clone's own network device: that of the stage, with the clone's address and no other."""
    return {
        **nic(settings, managed=managed),
        "ipv4.address": str(container.address),
        "security.mac_filtering": "true",
        "security.ipv4_filtering": "true",
    }


def root_disk(pool: str, size: str) -> Device:
    """Without a size there is no limit."""
    return {"type": "disk", "path": "/", "pool": pool, **({"size": size} if size else {})}


def disk_limit(container: ContainerSettings, settings: Settings, *, golden: bool) -> str:
    """The limit of a clone's root disk; empty: none. A golden copy on a pool of the stage's own is as large as
    production, and the pool is its limit.

    Args:
        golden: The clone is copied from a golden clone.
    """
    return "" if settings.storage.own and not golden else container.disk_limit or settings.disk_limit


def clone_config(
    source: Instance, container: ContainerSettings, settings: Settings, *, managed: bool, golden: bool
) -> CloneConfig:
    """The overrides that make a safe clone of `source`. Pure, but for the clone's identity, which is new each time.

    Allowed keys are taken from the expanded config, since profiles of production do not exist in the stage.

    Args:
        golden: `source` is a golden clone of this tool's, whose marks count. Any other may have been a clone once.
    """
    kept = {
        key: value
        for key, value in source.expanded_config.items()
        if _is_kept(key) and key != OWN_PLACE and (container.boot == "full" or not key.startswith(SYSTEMD_PREFIX))
    }
    own = {key for key in source.config if not key.startswith("volatile.")}
    place = variable(container, settings, golden=golden)
    folder = boot_folder(identity(source.config.get(OWN_PLACE, "") if golden else place))
    config = {
        **{key: "" for key in own if key not in kept},
        **kept,
        **confinement(folder),
        **FIRST_START,
        OWN_PLACE: place,
        "boot.autostart": "false",
        **_stays(source),
        marks.OWNER: marks.OWNER_VALUE,
        marks.STATE: marks.BUILDING,
        marks.INSTANCE: marks.identity(settings.project, container.name),
        marks.SOURCE: f"{source.project}/{source.name}",
        marks.VERSION: own_version(),
        marks.FINGERPRINT: marks.fingerprint(container, settings),
        marks.GENERATION: source.config.get(marks.GENERATION, "") if golden else "",
        marks.ORIGIN: (source.config.get(marks.ORIGIN) if golden else "") or marks.origin(source),
    }
    devices: dict[str, Device] = {name: {"type": "none"} for name in source.devices}
    devices["root"] = root_disk(clone_pool(source, settings), disk_limit(container, settings, golden=golden))
    devices["eth0"] = clone_nic(container, settings, managed=managed)
    return CloneConfig(config, devices, _dropped(source, kept))


def at_rest_config(source: Instance, container: ContainerSettings, settings: Settings) -> CloneConfig:
    """The overrides of a copy of a golden clone that other clones are copied from in its place. It is never started.

    It keeps the identity of the golden clone, by which its files are found, and has no network device. It has no
    generation until it is whole.
    """
    made = clone_config(source, container, settings, managed=True, golden=True)
    config = {**made.config, OWN_PLACE: source.config.get(OWN_PLACE, ""), marks.GENERATION: ""}
    root = root_disk(clone_pool(source, settings), disk_limit(container, settings, golden=False))
    return replace(made, config=config, devices={**made.devices, "root": root, "eth0": {"type": "none"}})


EVACUATION = "cluster.evacuate"


def _stays(source: Instance) -> dict[str, str]:
    """In a cluster, a clone of a member that is evacuated is stopped, and started again when that member is back. Incus
    would take each clone to a member of its own choice otherwise, and a stage is whole on one."""
    return {EVACUATION: "stop"} if source.location not in {"", "none"} else {}


def _dropped(source: Instance, kept: Mapping[str, str]) -> tuple[str, ...]:
    keys = [f"config {key}" for key in sorted(source.expanded_config) if key not in kept and not _is_bookkeeping(key)]
    devices = []
    for name, device in sorted(source.expanded_devices.items()):
        is_root = device.get("type") == "disk" and device.get("path") == "/"
        if is_root or (name == "eth0" and device.get("type") == "nic"):
            continue  # replaced by the stage's own
        detail = device.get("source") or device.get("connect") or device.get("network") or device.get("parent") or ""
        devices.append(f"device {name} ({device.get('type', '?')}{' ' + detail if detail else ''})")
    return tuple(keys + devices)


def _is_kept(key: str) -> bool:
    return key.startswith(KEPT_PREFIXES) and key not in LOW_LEVEL


def _is_bookkeeping(key: str) -> bool:
    return key.startswith("volatile.")


def violations(clone: Instance, settings: Settings) -> list[str]:
    """What a clone carries that it must not be started with, judged by its expanded configuration. Pure.

    An empty list means safe: every device is the stage's root disk or its one network device, no key is outside
    the allowlist, and its next boot starts nothing but what the settings name.
    """
    problems = unconfined(clone, settings)
    for key, value in clone.expanded_config.items():
        if not value or _is_kept(key) or (key.startswith(SERVER_PREFIXES) and key not in CLOUD_INIT):
            continue
        if (key, value) in {("boot.autostart", "false"), (EVACUATION, "stop")}:
            continue
        problems.append(f"config {key}")
    for name, device in clone.expanded_devices.items():
        kind = device.get("type", "")
        if kind == "none":
            continue
        if name == "root" and kind == "disk" and device.get("path") == "/" and "source" not in device:
            continue
        if name == "eth0" and kind == "nic" and _is_on_the_bridge(device, settings):
            problems.extend(f"device {name} with {key}" for key in sorted(device.keys() - NIC_KEYS))
            continue
        problems.append(f"device {name} ({kind})")
    return problems


def unconfined(clone: Instance, settings: Settings) -> list[str]:
    """Keys that a clone lacks or has otherwise, and without which its next boot starts production's units. Pure."""
    container = settings.containers.get(clone.name)
    if container is None:
        return []
    folder = boot_folder_of(clone.expanded_config)
    wanted = boot_environment(container, folder or boot_folder(identity(clone.config.get(OWN_PLACE, ""))))
    return [f"config {key} is not {value}" for key, value in wanted.items() if clone.expanded_config.get(key) != value]


def _is_on_the_bridge(device: Device, settings: Settings) -> bool:
    links = {device[key] for key in ("network", "parent") if key in device}
    return links == {settings.network.name} and device.get("nictype", "bridged") == "bridged"
