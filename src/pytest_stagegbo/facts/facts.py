"""The world as it is, read once. Nothing here writes."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, collapse_addresses
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import replace

from pytest_stagegbo.desired import marks, objects, ownership
from pytest_stagegbo.desired.exposure import Exposure, exposures
from pytest_stagegbo.desired.own_pool import clone_pool, shares_blocks
from pytest_stagegbo.errors import StageMissing
from pytest_stagegbo.facts.bridge import detached, has_address
from pytest_stagegbo.facts.former import Former, changes_bridge, look_for_former
from pytest_stagegbo.facts.guests import Guest, find_guests
from pytest_stagegbo.facts.placement import choose_member, refuse_away
from pytest_stagegbo.facts.space import look
from pytest_stagegbo.facts.surroundings import bridges_of, pools_of, refuse_no_source
from pytest_stagegbo.facts.usage import volume_name
from pytest_stagegbo.incus.localhost import pool_folder
from pytest_stagegbo.incus.seen_networks import SeenNetworks
from pytest_stagegbo.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pytest_stagegbo.facts.space import Room
    from pytest_stagegbo.incus import Instance, Network, Project, Reader
    from pytest_stagegbo.incus.hostnet import HostNetwork
    from pytest_stagegbo.incus.hostview import HostView
    from pytest_stagegbo.incus.localhost import LocalHost
    from pytest_stagegbo.incus.records import Member, Server
    from pytest_stagegbo.settings import Settings

__all__ = ["Facts", "gather", "host_addresses", "member_addresses"]


class Facts(Struct, frozen=True):
    """What planning needs to know."""

    server: Server
    projects: Mapping[str, Project]
    sources: Mapping[str, Instance]
    """Instances that are copied, by the name that the settings give the source: production's, or golden clones."""
    clones: Mapping[str, Instance]
    """Instances of the stage's project, by name."""
    networks: Mapping[str, Network]
    """By name: the stage's bridge and production's; all of the host's where the stage's has yet to get its address."""
    acl: Mapping[str, Any] | None
    profile: Mapping[str, Any] | None
    """The stage's default profile; None while the project is missing."""
    rooms: Mapping[str, Room]
    """By pool name, of the pools that the named sources live on."""
    full_copy_bytes: Mapping[str, int | None] = field(default_factory=dict)
    """By source name, for sources on pools without copy-on-write: the bytes of a full copy, where known."""
    new_pool_free: int | None = None
    """Bytes free where the file of a pool that is yet to be created would be; None: there is none, or nobody knows."""
    former: Former = field(default_factory=Former)
    """What the stage had under another `network.name`. `networks` and `host` are without it."""
    golden: str = ""
    """The project that the sources are golden clones in; empty where they are production's own."""
    production: Mapping[str, Instance] = field(default_factory=dict)
    """Production's instances, where they are not the sources."""
    exposed: tuple[Exposure, ...] = ()
    """Ports of clones that are exposed, and what is left of such."""
    bridge_works: bool = True
    """Whether the kernel has the stage's bridge, up and with its address. False: only Incus's record is there."""
    detached: frozenset[str] = frozenset()
    """Names of running clones whose network device is not on the bridge."""
    neighbours: tuple[str, ...] = ()
    """Instances that are on the stage's bridge and not its clones, where the bridge has another address than it should.
    """
    host: tuple[HostNetwork, ...] = ()
    """Networks that the daemon's host has, as far as they are known."""
    host_seen: bool = True
    """Whether `host` is what the host's kernel said. Else it is what the API knows of interfaces, which has no routes,
    and that only where it is needed: where a bridge is made, or the stage may reach the internet."""
    guests: tuple[Guest, ...] | None = None
    """Instances that are not the stage's; None: they don't matter, since nothing leads out of the stage or into it."""
    ways: Mapping[IPv4Address, str | None] | None = None
    """By address of a clone, the interface that the host sends by; None: there is no bridge, or nobody knows."""
    member: str = ""
    """The cluster member that the stage is on, or will be; empty: the server is no cluster."""
    members: tuple[Member, ...] = ()
    """Of the cluster; empty: the server is none."""

    @property
    def host_addresses(self) -> tuple[str, ...]:
        """IPv4 addresses of the host."""
        return _addresses(self.host)

    @property
    def production_instances(self) -> Mapping[str, Instance]:
        """Instances of the source project, whatever the clones are copied from."""
        return self.production if self.golden else self.sources

    @property
    def production_networks(self) -> frozenset[str]:
        """Bridges that instances of the source project hang on."""
        return bridges_of(self.production_instances.values())

    @property
    def production_pools(self) -> frozenset[str]:
        """Storage pools that instances of the source project are on."""
        return pools_of(self.production_instances.values())

    def with_prepared(self, names: Collection[str]) -> Facts:
        """As they will be once these clones' first boots are proven."""
        clones = dict(self.clones)
        for name in names:
            if name in clones:
                clones[name] = replace(clones[name], config={**clones[name].config, marks.STATE: marks.PREPARED})
        return replace(self, clones=clones)

    def with_running(self, names: Collection[str]) -> Facts:
        """As they will be once these clones, which this tool has frozen for a while, go on."""
        frozen = {name: self.clones[name] for name in names if name in self.clones}
        thawed = {name: replace(each, status="Running") for name, each in frozen.items() if each.status == "Frozen"}
        return replace(self, clones={**self.clones, **thawed}) if thawed else self

    def production_subnets(self, settings: Settings) -> tuple[IPv4Network, ...]:
        """Production's networks: that of the settings, and those of the bridges that its containers hang on."""
        found = {settings.network.production}
        for name in self.production_networks & self.networks.keys():
            address = self.networks[name].config.get("ipv4.address", "")
            if "/" in address:
                found.add(IPv4Interface(address).network)
        return tuple(sorted(found))

    def production_sources(self, settings: Settings) -> tuple[IPv4Network, ...]:
        """Where packets of production come from: its networks, and the addresses that its containers have elsewhere."""
        guests = [each for each in self.guests or () if each.project == settings.source_project]
        own = {
            IPv4Network(address) for each in guests for address in each.addresses if isinstance(address, IPv4Address)
        }
        return tuple(collapse_addresses({*self.production_subnets(settings), *own}))

    def kept_out(self, settings: Settings) -> tuple[IPv4Network, ...]:
        """Every network that is not the internet for the stage: those of all other instances, and all that the host
        has.

        An instance that does not run now may have addresses which nobody sees. While there is one, what the access list
        rejects so far stays rejected.
        """
        found = {*self.production_subnets(settings), *map(IPv4Network, self.host_addresses)}
        found |= {each.network for each in self.host if each.interface != settings.network.name}
        found |= {IPv4Network(address) for address in member_addresses(self.members)}
        for guest in self.guests or ():
            found |= guest.networks
            found |= objects.rejected(self.acl) if guest.unknown else frozenset()
        return tuple(sorted(found))


def gather(
    reader: Reader,
    settings: Settings,
    *,
    need_source: bool = True,
    need_stage: bool = False,
    golden: str = "",
    parent: str = "",
) -> Facts:
    """Read the facts: about a dozen requests, the slowest beside the others.

    Args:
        golden: Project to copy from instead of production's.
        parent: The stage that this one is a slot or the golden copy of.
        need_source: Whether it is an error that the source project does not exist.
        need_stage: Whether it is one that the stage's project does not exist.

    Raises:
        SourceMissing: the source project does not exist.
        StageMissing: the stage's project does not exist.
        MemberAway: the stage's member of the cluster is away.
    """
    server = reader.server()
    seen = reader.seen_networks or SeenNetworks()
    with Workers(4, "stagegbo facts") as pool:
        # Incus works out what uses a network or an access list by reading every instance and profile of every project.
        bridge = pool.submit(reader.network, settings.network.name)
        acl = pool.submit(reader.acl, objects.acl_name(settings))
        stage = pool.submit(reader.instances, settings.project)
        forwards = pool.submit(reader.forwards, settings.network.name)
        link = None if server.clustered else pool.submit(reader.link, settings.network.name)
        asked_profile = pool.submit(reader.profile, settings.project)
        projects = reader.projects()
        if need_source:
            refuse_no_source(settings, projects)
        if need_stage and settings.project not in projects:
            raise StageMissing(f"there is no project {settings.project}", remedy="run `stagegbo provision`")
        production = reader.instances(settings.source_project)
        exists = settings.project in projects
        clones = stage.result() if exists else {}
        sources = production
        if golden:
            copied = reader.instances(golden)
            sources = {c.source_name: copied[c.name] for c in settings.containers.values() if c.name in copied}
        if server.clustered:
            reader.set_member(choose_member(settings, clones, sources or production, server.name, reader.place))
            refuse_away(reader, settings.project, clones.values())
        if link is None:  # of the interface on the stage's member
            link = pool.submit(reader.link, settings.network.name)
        host = reader.host()
        host_networks = host.networks()
        found = bridge.result()
        if found is not None:
            found = ownership.with_marks(found, acl.result())
        own = _is_own(found, settings, parent, projects)
        networks = pool.submit(_networks, reader, settings, found, bridges_of(production.values()), seen, own=own)
        profile = asked_profile.result() if exists else None
        rooms = _rooms(reader, host, settings, sources)
        former = Former()
        if found is None or changes_bridge(projects.get(settings.project), settings):
            former = look_for_former(reader, settings, parent, projects, seen)
        if host_networks is not None:
            host_networks = tuple(each for each in host_networks if each.interface not in former.networks)
        return Facts(
            server=server,
            projects=projects,
            sources=sources,
            clones=clones,
            networks={
                name: found if name == settings.network.name and found is not None else each
                for name, each in networks.result().items()
                if name not in former.networks
            },
            member=reader.member,
            members=reader.members(),
            exposed=exposures(forwards.result(), acl.result()) if own else (),
            bridge_works=_works(link.result(), found, settings),
            detached=_detached(reader, settings, link.result(), clones),
            neighbours=_neighbours(reader, settings, found) if own else (),
            host=host_networks if host_networks is not None else _by_api(reader, settings, found),
            host_seen=host_networks is not None,
            guests=find_guests(reader, projects) if settings.network.internet or forwards.result() else None,
            ways=host.ways(c.address for c in settings.containers.values()) if found else None,
            acl=acl.result(),
            former=former,
            profile=profile,
            rooms=rooms,
            new_pool_free=_new_pool_free(host, settings, rooms),
            full_copy_bytes=_full_copies(reader, host, settings, sources, clones, rooms),
            golden=golden,
            production=production if golden else {},
        )


def _is_own(bridge: Network | None, settings: Settings, parent: str, projects: Mapping[str, Project]) -> bool:
    return bridge is not None and ownership.belongs(bridge.config, settings, parent, projects)


def _works(link: Mapping[str, Any] | None, bridge: Network | None, settings: Settings) -> bool:
    if bridge is None or bridge.is_half_made or bridge.config.get("ipv4.address") != str(settings.network.address):
        return True  # it is made, or set up, anyway
    return link is not None and link.get("state") == "up" and has_address(link, settings)


def _detached(
    reader: Reader, settings: Settings, link: Mapping[str, Any] | None, clones: Mapping[str, Instance]
) -> frozenset[str]:
    found = detached(link, clones.values())
    if found and link is not None:  # a clone that was started between the two looks has got another interface
        found &= detached(reader.link(settings.network.name), reader.instances(settings.project).values())
    return found


def _neighbours(reader: Reader, settings: Settings, bridge: Network | None) -> tuple[str, ...]:
    if bridge is None or bridge.config.get("ipv4.address") == str(settings.network.address):
        return ()
    return tuple(
        f"{each.project}/{each.name}"
        for each in reader.instances_of_all_projects()
        if bridge.name in bridges_of([each])
        and not (each.project == settings.project and marks.is_clone(each, settings))
    )


def _networks(
    reader: Reader,
    settings: Settings,
    bridge: Network | None,
    production: Collection[str],
    seen: SeenNetworks,
    *,
    own: bool,
) -> Mapping[str, Network]:
    """All of them only where the stage's subnet may clash with that of any, or its bridge is another's."""
    if bridge is None or not own or not _is_made(settings, bridge):
        return seen.all(reader)
    found = seen.named(reader, sorted(name for name in production if name != settings.network.name))
    return {bridge.name: bridge, **found}


def _by_api(reader: Reader, settings: Settings, bridge: Network | None) -> tuple[HostNetwork, ...]:
    """One request for each interface, so only where it matters."""
    return reader.host_networks() if settings.network.internet or not _is_made(settings, bridge) else ()


def _is_made(settings: Settings, bridge: Network | None) -> bool:
    return bridge is not None and bridge.config.get("ipv4.address") == str(settings.network.address)


def _rooms(reader: Reader, host: LocalHost, settings: Settings, sources: Mapping[str, Instance]) -> Mapping[str, Room]:
    wanted = [sources[c.source_name] for c in settings.containers.values() if c.source_name in sources]
    pools = {clone_pool(each, settings) for each in wanted}
    own = settings.storage.own
    if own and not reader.has_pool(own):
        pools.discard(own)
    return {name: look(reader, name, host) for name in sorted(filter(None, pools))}


def _new_pool_free(host: LocalHost, settings: Settings, rooms: Mapping[str, Room]) -> int | None:
    wanted = settings.storage.own and settings.storage.own not in rooms
    return host.free_bytes(DISKS) if wanted else None


DISKS = "/var/lib/incus"
"""Incus puts the files of pools below this."""


def _full_copies(
    reader: Reader,
    host: HostView,
    settings: Settings,
    sources: Mapping[str, Instance],
    clones: Mapping[str, Instance],
    rooms: Mapping[str, Room],
) -> Mapping[str, int | None]:
    full_copies: dict[str, int | None] = {}
    for container in settings.containers.values():
        source = sources.get(container.source_name)
        target = "" if source is None else clone_pool(source, settings)
        there = clones.get(container.name)
        if source is None or (there is not None and there.pool == target):
            continue
        if not shares_blocks(source, target, reader.member):
            found = reader.pool(source.pool)
            size = host.tree_bytes(f"{pool_folder(found)}/containers/{volume_name(source)}")
            known = reader.volume_usage(source.pool, source.project, source.name) if size is None else size
            full_copies[source.name] = known
            continue
        pool = rooms[source.pool].pool
        if not pool.copy_on_write:
            folder = f"{pool.source}/containers/{volume_name(source)}"
            full_copies[source.name] = host.tree_bytes(folder)
    return full_copies


def member_addresses(members: Iterable[Member]) -> tuple[str, ...]:
    """IPv4 addresses of a cluster's members, as far as they are no names."""
    return tuple(each.address for each in members if re.fullmatch(r"[0-9.]+", each.address))


def host_addresses(reader: Reader) -> tuple[str, ...]:
    """Every IPv4 address of the stage's host, but for loopback's, as far as it can be known."""
    found = reader.host().networks()
    if found is not None:
        return _addresses(found)
    known = [each for each in reader.members() if each.name == reader.member]
    return tuple(sorted({*_addresses(reader.host_networks()), *member_addresses(known)}))


def _addresses(networks: Iterable[HostNetwork]) -> tuple[str, ...]:
    return tuple(map(str, sorted({each.address for each in networks if each.address is not None})))
