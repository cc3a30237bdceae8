"""What the stage is like right now. Reads and asks; never writes."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from pytest_stagegbo.desired import marks, objects, ownership
from pytest_stagegbo.desired.exposure import Exposure, exposures
from pytest_stagegbo.facts import space
from pytest_stagegbo.facts.host_path import find_trouble
from pytest_stagegbo.facts.quotas import burden, remedy, unseen
from pytest_stagegbo.facts.usage import used_bytes
from pytest_stagegbo.plan.builds import Artefact, build_of
from pytest_stagegbo.services import ask
from pytest_stagegbo.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_stagegbo.facts.space import Room
    from pytest_stagegbo.incus import Instance, Reader
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["ContainerStatus", "StageStatus", "stage_status"]


class ContainerStatus(Struct, frozen=True):
    """One clone."""

    name: str
    address: str
    state: str
    """`ready`, `sealed`, `starting`, `failed`, `stopped`, `frozen`, `deploying`, `unfinished`, `missing` or `foreign`.
    `deploying`: a deployment is under way, or was interrupted."""
    answers: tuple[str, ...]
    """What each probe heard, with its port."""
    source: str
    created_at: str
    disk_used: int | None
    """Bytes that the clone has for itself, as the storage driver counts them."""
    disk_limit: str
    deployed: tuple[Artefact, ...] = ()
    """Files that are not production's."""
    frozen_by: str = ""
    """The test that has it frozen until it ends. Empty: none; if it is frozen, somebody has paused it."""

    @property
    def is_well(self) -> bool:
        """Whether it answers, or will do so for whoever asks for it next."""
        return self.state == "ready" or bool(self.frozen_by)


class StageStatus(Struct, frozen=True):
    """The whole stage."""

    project: str
    exists: bool
    network: str
    server: str
    containers: tuple[ContainerStatus, ...]
    exposed: tuple[Exposure, ...] = ()
    """What others than the host can reach, and what is left of such."""
    trouble: str = ""
    """What keeps the host from the whole stage; empty: nothing that can be seen from here."""
    warnings: tuple[str, ...] = ()
    """What endangers production's pool now, with what to do."""
    burdens: tuple[str, ...] = ()
    """What the pools' quotas cost production while stages come and go."""
    unseen: tuple[str, ...] = ()
    """Which pools' quotas can't be read from here, with what to do."""
    member: str = ""
    """The cluster member that the stage is on; empty: the server is no cluster, or there is no stage."""

    @property
    def ready(self) -> bool:
        return bool(self.containers) and all(container.is_well for container in self.containers)


def stage_status(
    reader: Reader,
    settings: Settings,
    parent: str = "",
    *,
    disk: bool = True,
    frozen: Mapping[str, str] = MappingProxyType({}),
) -> StageStatus:
    """Look at every clone and ask every service once.

    Args:
        parent: The stage that this one is a slot or the golden copy of.
        disk: Ask what each clone has for itself, one request for each.
        frozen: By container, the test that has frozen it.
    """

    def look(container: ContainerSettings) -> ContainerStatus:
        by = frozen.get(container.name, "")
        return _container(settings, container, clones.get(container.name), frozen_by=by)

    with Workers(len(settings.containers) + 2, "stagegbo status") as threads:
        asked_list = threads.submit(reader.acl, objects.acl_name(settings))
        forwards = threads.submit(reader.forwards, settings.network.name)
        projects = reader.projects()
        project = projects.get(settings.project)
        clones = reader.instances(settings.project) if project is not None else {}
        looks = threads.map(look, settings.containers.values())  # begun here
        server, host = reader.server(), reader.host()
        pools = space.pool_names(reader, settings, clones) if clones else []
        rooms = [space.look(reader, name, host) for name in pools]
        used = used_bytes(reader, host, {room.pool.name: room.pool for room in rooms}, clones.values() if disk else ())
        containers = tuple(replace(each, disk_used=used.get(each.name)) for each in looks)
        acl = asked_list.result() if project is not None else None
    own = project is not None
    if acl is not None:
        own = ownership.belongs(acl.get("config") or {}, settings, parent, projects)
    return StageStatus(
        project=settings.project,
        exists=project is not None,
        network=settings.network.name,
        server=f"Incus {server.version} at {reader.endpoint}",
        member=reader.member if project is not None else "",
        containers=containers,
        warnings=tuple(text for room in rooms for text in _warnings(room, settings)),
        burdens=tuple(text for room in rooms if (text := burden(room.pool, room.quotas, settings))),
        unseen=tuple(text for room in rooms if (text := unseen(room))),
        exposed=exposures(forwards.result(), acl) if own else (),
        trouble=_trouble(reader, settings) if any(each.state in {"failed", "starting"} for each in containers) else "",
    )


def _warnings(room: Room, settings: Settings) -> Iterator[str]:
    """What is wrong with a pool: limits that do not hold, too little room."""
    if room.quotas is not None and not room.quotas.hold:
        advice = remedy(room.pool, room.quotas)
        yield f"disk limits on pool {room.pool.name} do not hold now: {room.quotas}; {advice}"
    tightest = room.tightest(settings)
    if tightest.margin < 0:
        yield f"too little room on {tightest}; `stagegbo provision --recreate` gives back what the stage took"


def _trouble(reader: Reader, settings: Settings) -> str:
    found = find_trouble(reader, settings)
    return "" if found is None else f"{found.text}; what to do: {found.remedy}"


def _container(
    settings: Settings, container: ContainerSettings, clone: Instance | None, *, frozen_by: str
) -> ContainerStatus:
    state, answers = "missing", []
    build = build_of(clone)
    if clone is not None:
        if not marks.is_clone(clone, settings):
            state = "foreign"
        elif clone.config.get(marks.STATE) != marks.PREPARED:
            state = "unfinished"
        elif not clone.is_running:
            state = "frozen" if clone.status == "Frozen" else "stopped"
        else:
            found = [(probe, ask(probe, str(container.address))) for probe in container.probes]
            answers = [f"{probe.port}: {answer}" for probe, answer in found]
            states = {answer.state for _, answer in found} - {"ready"}
            state = "ready" if not states else "sealed" if "sealed" in states else "failed"
            state = "starting" if states == {"starting"} else state
            state = "deploying" if build is not None and build.unfinished else state
    return ContainerStatus(
        name=container.name,
        address=str(container.address),
        state=state,
        answers=tuple(answers),
        source=f"{settings.source_project}/{container.source_name}",
        created_at=clone.created_at if clone is not None else "",
        disk_used=None,
        disk_limit=container.disk_limit or settings.disk_limit,
        deployed=build.artefacts if build is not None else (),
        frozen_by=frozen_by if state == "frozen" else "",
    )
