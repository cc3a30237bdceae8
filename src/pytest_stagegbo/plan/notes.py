"""What people should know of a provisioning beside its steps. Pure."""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

from pytest_stagegbo.desired.allowlist import clone_config
from pytest_stagegbo.desired.own_pool import clone_pool
from pytest_stagegbo.facts.quotas import burden, unseen
from pytest_stagegbo.facts.subnets import neighbours
from pytest_stagegbo.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["details", "notes_on", "own_networks"]


def own_networks(facts: Facts, settings: Settings) -> bool:
    """`features.networks` can't be changed while instances exist, so an existing project keeps what it has."""
    project = facts.projects.get(settings.project)
    return project is None or project.config.get("features.networks") == "true"


def details(facts: Facts, settings: Settings) -> Iterator[str]:
    """What only `--debug` shows."""
    if settings.project not in facts.projects:
        yield (
            "features.networks=true is requested, as in the staging guide; if the server refuses it without OVN, the "
            f"project gets features.networks=false with access to {settings.network.name} only. The bridge itself is "
            "made in project default, where Incus keeps all bridges"
        )
    elif not own_networks(facts, settings):
        yield (
            f"project {settings.project} has features.networks=false: this server refuses true without OVN; "
            f"restricted.networks.access={settings.network.name} keeps the stage to its own bridge"
        )


def notes_on(facts: Facts, settings: Settings, copying: Sequence[ContainerSettings]) -> list[str]:
    """Warnings, a line each.

    Args:
        copying: The containers that are copied.
    """
    notes = [
        f"the host's other network {each.network} ({each}) is wider than the stage's subnet {settings.network.subnet}: "
        "what it has there can't be reached from this host while the stage is up; set another network.address"
        for each in neighbours(settings, facts.host)
    ]
    if not facts.host_seen and settings.network.name not in facts.networks:
        notes.append(
            f"whether a route or a VPN of the daemon's host has {settings.network.subnet} can't be seen from here: its "
            "API knows the addresses of interfaces only"
        )
    if settings.network.twins and copying and not facts.golden:
        notes.extend(_other_subnets(facts, settings))
    notes.extend(
        f"pool {name} is a file, and the room on the file system below it can't be seen from here: watch it on the "
        "daemon's host, since a stage that fills it stops production too"
        for name, room in sorted(facts.rooms.items())
        if room.is_blind and copying
    )
    notes.extend(
        text for _, room in sorted(facts.rooms.items()) if copying and not facts.golden and (text := unseen(room))
    )
    notes.extend(
        f"{text}; `stagegbo doctor` says what can be done"
        for _, room in sorted(facts.rooms.items())
        if copying and not facts.golden and (text := burden(room.pool, room.quotas, settings))
    )
    for container in copying:
        source = facts.sources[container.source_name]
        dropped = clone_config(source, container, settings, managed=True, golden=bool(facts.golden)).dropped
        if dropped and not facts.golden:  # whose own notes have said it
            notes.append(f"{container.name}: the clone will not have {', '.join(dropped)}")
        if clone_pool(source, settings) != source.pool:
            continue
        pool = facts.rooms[source.pool].pool
        if not pool.copy_on_write:
            size = facts.full_copy_bytes.get(source.name)
            cost = (
                bytes_text(size)
                if size is not None
                else "an unknown number of bytes (only root on its host can see it)"
            )
            notes.append(
                f"{container.name}: pool {pool.name} ({pool.driver}) has no copy-on-write: a full copy of {cost}, "
                "and of a running source not crash-consistent"
            )
    return notes


def _other_subnets(facts: Facts, settings: Settings) -> Iterator[str]:
    """Twins answer for the addresses that the settings name; production's own bridge may say something else."""
    for name in sorted(facts.production_networks):
        network = facts.networks.get(name)
        address = network.config.get("ipv4.address", "") if network is not None else ""
        if "/" in address and IPv4Interface(address).network != settings.network.production:
            yield (
                f"production's bridge {name} is {IPv4Interface(address).network}, and network.production says "
                f"{settings.network.production}: the clones answer for addresses that production does not have; set "
                "network.production, and production_address where the last number differs"
            )
