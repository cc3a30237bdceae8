"""Reading from the daemon. Nothing here, and nothing that is handed only this, can write.

`Reader` is what the rest of the package holds of production: it has no method that sends anything but GET.
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from pytest_stagegbo.errors import ServerRefused
from pytest_stagegbo.incus import away, dialect
from pytest_stagegbo.incus.hostnet import HostNetwork
from pytest_stagegbo.incus.records import Instance, Network, Pool, Project
from pytest_stagegbo.incus.retries import retried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.incus.events import EventSource
    from pytest_stagegbo.incus.localhost import LocalHost
    from pytest_stagegbo.incus.records import Member, Server
    from pytest_stagegbo.incus.seen_networks import SeenNetworks

__all__ = ["Reader"]

COMMANDS = frozenset({"Executing command", "Showing console"})
"""Descriptions of operations that last as long as a person or a test wants."""


class Reader:
    """Facts about a daemon, of any project.

    Args:
        locate: Finds the member of a cluster that the stage is on. What differs between members, such as pools and the
            interfaces of bridges, is that of this member.
        place: The member that was chosen for the stage, should it have to be made; empty: none was.
    """

    def __init__(self, connection: Connection, locate: Callable[[Reader], str] | None = None, place: str = "") -> None:
        self._connection = connection
        self._locate = locate
        self.place = place
        self._member: str | None = None
        self.seen_networks: SeenNetworks | None = None
        """What a run that makes several slots has seen of networks."""

    @property
    def member(self) -> str:
        """The cluster member that the stage is on, or would be; empty: the server is no cluster. It is looked for once:
        see `set_member`."""
        if self._locate is None or not self.server().clustered:
            return ""
        if self._member is None:
            self._member = self._locate(self)
        return self._member

    def set_member(self, member: str) -> None:
        """The stage is known to be on this member from now on."""
        self._member = member

    @property
    def is_here(self) -> bool:
        """Whether the stage is on the host whose daemon answers, and this process on it, too."""
        return self.is_local and self.member in {"", self.server().name}

    def host(self) -> LocalHost:
        """The stage's host, as far as this process may look at it. Of another host nothing can be known."""
        from pytest_stagegbo.incus.localhost import LocalHost

        return LocalHost(self.endpoint, here=self.is_here)

    @property
    def elsewhere(self) -> str:
        """In words, which other host the stage is on; empty: it is on the host of this process."""
        if self.is_here:
            return ""
        return f"cluster member {self.member}" if self.member else "another host"

    def members(self) -> tuple[Member, ...]:
        """Of the cluster, by name. Empty: the server is no cluster."""
        return away.members(self._connection) if self.server().clustered else ()

    def why_away(self) -> str:
        """In words, why nothing can be done on the stage's member. Empty: something can, or the server is no cluster.
        That member itself is asked."""
        return away.why_away(self._connection, self.member) if self.member else ""

    def _there(self) -> dict[str, str]:
        """Parameters that aim a request at the stage's member."""
        return {"target": self.member} if self.member else {}

    @property
    def endpoint(self) -> str:
        return self._connection.endpoint

    @property
    def is_local(self) -> bool:
        return self._connection.is_local

    def events(self) -> EventSource:
        """Lifecycle events of all projects, from now on. Raises `ChannelBroken`."""
        return self._connection.events()

    def server(self) -> Server:
        return self._connection.server()

    def projects(self) -> dict[str, Project]:
        return {
            item["name"]: Project(
                item["name"], item.get("description", ""), item.get("config") or {}, tuple(item.get("used_by") or ())
            )
            for item in self._connection.get("projects", recursion=1)
        }

    def instances(self, project: str) -> dict[str, Instance]:
        """Every instance of a project; empty when the project does not exist."""
        try:
            items = self._connection.get("instances", project=project, recursion=1)
        except ServerRefused as error:
            if error.status == 404:
                return {}
            raise
        return {item["name"]: Instance.from_api(item, project) for item in items}

    def instances_of_all_projects(self) -> list[Instance]:
        params: dict[str, str | int] = {"all-projects": "true", "recursion": 1}
        found = self._connection.get("instances", **params)
        return [Instance.from_api(item, str(item.get("project"))) for item in found]

    def instance(self, project: str, name: str) -> Instance | None:
        found = self._find("instances", name, project=project)
        return None if found is None else Instance.from_api(found, project)

    def init(self, project: str, name: str) -> int:
        """The first process of a running instance, by its number on the daemon's host; 0: there is none."""
        return int(self._connection.get("instances", name, "state", project=project).get("pid") or 0)

    def is_worked_on(self, project: str, name: str) -> bool:
        """Whether the daemon is changing the instance; commands that run in it don't count."""
        found = self._connection.get("operations", project=project, recursion=1) or {}
        working = (each for each in found.get("running") or () if each.get("description") not in COMMANDS)
        named = (url for each in working for url in (each.get("resources") or {}).get("instances") or ())
        return any(urlsplit(url).path.rpartition("/")[2] == quote(name) for url in named)

    def is_at_work(self) -> bool:
        """Whether the daemon does something that takes long, for anybody; commands in instances don't count."""
        found = self._connection.get("operations", recursion=1, **{"all-projects": "true"}) or {}
        return any(each.get("description") not in COMMANDS for each in found.get("running") or ())

    def snapshots(self, project: str, name: str) -> frozenset[str]:
        """Names of an instance's snapshots; none when it does not exist."""
        try:
            urls = self._connection.get("instances", name, "snapshots", project=project)
        except ServerRefused as error:
            if error.status == 404:
                return frozenset()
            raise
        return frozenset(_names(urls))

    def snapshot(self, project: str, name: str, snapshot: str) -> Instance | None:
        """A snapshot of an instance, with the configuration of its moment."""
        found = self._find("instances", name, "snapshots", snapshot, project=project)
        return None if found is None else Instance.from_api(found, project)

    def networks(self) -> dict[str, Network]:
        """Every network and network interface of the host.

        Slow where there are many: for each, Incus works out what uses it by reading every instance and profile of
        every project, ten milliseconds of the daemon's (Incus 6.0).
        """
        return {item["name"]: Network.from_api(item) for item in self.documents("networks", project="default")}

    def network_names(self) -> list[str]:
        """Names of all networks, for which Incus need not work out what uses them."""
        return _names(self._connection.get("networks", project="default"))

    def network(self, name: str) -> Network | None:
        found = self._find("networks", name, project="default")
        return None if found is None else Network.from_api(found)

    def link(self, network: str) -> dict[str, Any] | None:
        """The state of a bridge's interface, or of any other of the stage's host; None when the kernel has no such
        interface, whatever the daemon's record says."""
        return self._find("networks", network, "state", project="default", **self._there())

    def _find(self, *path: str, **params: str | int) -> dict[str, Any] | None:
        """A document of the API; None when it does not exist."""
        try:
            return self.document(*path, **params)
        except ServerRefused as error:
            if error.status == 404 and not dialect.lost_another_acl(error):
                return None
            raise

    def documents(self, *path: str, **params: str | int) -> list[dict[str, Any]]:
        """A list of the API as it is (`recursion=1` is added); empty where the server or the driver has none."""
        try:
            found: list[dict[str, Any]] = self._connection.get(*path, **{"recursion": 1, **params}) or []
        except ServerRefused as error:
            if dialect.knows_no(error):
                return []
            raise
        return found

    def document(self, *path: str, **params: str | int) -> dict[str, Any]:
        """A document of the API as it is."""
        found: dict[str, Any] = self._connection.get(*path, **params)
        return found

    def acls(self, project: str = "default") -> dict[str, dict[str, Any]]:
        found = retried(lambda: self._connection.get("network-acls", project=project, recursion=1))
        return {item["name"]: item for item in found}

    def acl_names(self) -> list[str]:
        """Names of all access lists, for which Incus need not work out what uses them."""
        return _names(self._connection.get("network-acls", project="default"))

    def acl(self, name: str, project: str = "default") -> dict[str, Any] | None:
        return retried(lambda: self._find("network-acls", name, project=project))

    def forwards(self, network: str) -> list[dict[str, Any]]:
        """Network forwards of a bridge; none where there is no such bridge."""
        return self.documents("networks", network, "forwards", project="default")

    def host_networks(self) -> tuple[HostNetwork, ...]:
        """IPv4 networks of the host's network interfaces that Incus knows, but for loopback's. No routes: the API has
        none. One request for each interface."""
        found = []
        for name in self.network_names():
            state = self.link(name) or {}
            for each in state.get("addresses") or ():
                if each["family"] == "inet":
                    own = IPv4Interface(f"{each['address']}/{each.get('netmask') or 32}")
                    found.append(HostNetwork(own.network, name, own.ip))
        return tuple(each for each in found if not each.network.network_address.is_loopback)

    def profile(self, project: str, name: str = "default") -> dict[str, Any] | None:
        return self._find("profiles", name, project=project)

    def pool(self, name: str) -> Pool:
        there = self._there()
        data = self._connection.get("storage-pools", name, **there)
        space = self._connection.get("storage-pools", name, "resources", **there).get("space") or {}
        return Pool(
            name=name,
            driver=str(data.get("driver", "")),
            source=str((data.get("config") or {}).get("source", "")),
            total=int(space.get("total", 0)),
            used=int(space.get("used", 0)),
            config=data.get("config") or {},
            used_by=tuple(data.get("used_by") or ()),
        )

    def has_pool(self, name: str) -> bool:
        return self._find("storage-pools", name) is not None

    def memory_available(self) -> int:
        """Bytes of the host's memory that are not in use, as the daemon counts them."""
        memory = self._connection.get("resources", **self._there()).get("memory") or {}
        return max(0, int(memory.get("total", 0)) - int(memory.get("used", 0)))

    def cores(self) -> int:
        """Processor cores of the host."""
        return int((self._connection.get("resources", **self._there()).get("cpu") or {}).get("total", 1))

    def volume_usage(self, pool: str, project: str, instance: str) -> int | None:
        """Bytes that an instance's root volume uses, as its driver counts them; None where it does not."""
        try:
            state = self._connection.get(
                "storage-pools", pool, "volumes", "container", instance, "state", project=project
            )
        except ServerRefused:
            return None
        usage = (state or {}).get("usage") or {}
        used = usage.get("used")
        return int(used) if isinstance(used, int) and used >= 0 else None

    def console(self, project: str, instance: str) -> str:
        """What a running container has written to its console lately; empty where the daemon can't tell."""
        try:
            content = self._connection.read_bytes("instances", instance, "console", project=project)
        except ServerRefused:
            return ""
        return content.decode("utf-8", "replace")

    def file(self, project: str, instance: str, path: str) -> bytes | None:
        """The content of a file inside an instance; None when it does not exist."""
        try:
            return self._connection.read_bytes("instances", instance, "files", project=project, path=path)
        except ServerRefused as error:
            if error.status == 404:
                return None
            raise

    def file_pieces(self, project: str, instance: str, path: str) -> Iterator[bytes]:
        """The content of a file inside an instance, however large; nothing when it does not exist."""
        try:
            yield from self._connection.read_pieces("instances", instance, "files", project=project, path=path)
        except ServerRefused as error:
            if error.status != 404:
                raise


def _names(urls: Iterable[str]) -> list[str]:
    """The names in a list of URLs, which is what the API returns without `recursion`."""
    return [unquote(urlsplit(url).path.rpartition("/")[2]) for url in urls]
