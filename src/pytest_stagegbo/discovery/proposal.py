"""Settings that follow from what a production is like, each with its reason. Pure."""

from __future__ import annotations

import posixpath
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from pytest_stagegbo.discovery.records import DEFAULT_FOLDERS, Conclusion
from pytest_stagegbo.discovery.roles import DATA, ROLES, Question, assign, choose_project, is_of_role
from pytest_stagegbo.discovery.subnets import addresses, choose_bridge, choose_networks, default_places
from pytest_stagegbo.errors import SettingsError, SourceMissing
from pytest_stagegbo.settings import Layer, Settings, build, parse_size
from pytest_stagegbo.settings.model import ContainerSettings, default_containers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_stagegbo.discovery.records import Service, Sureness, Survey
    from pytest_stagegbo.discovery.roles import Assigned, Roles

__all__ = ["Asked", "Proposal", "order", "propose"]

_REMEDY = (
    "name production's project, `stagegbo init --source-project NAME`, or write stagegbo.toml by hand: docs/settings.md"
)
_GB = 10**9
_ALMOST = 0.8
"""Part of a clone's disk limit above which its source is too large for it."""


class Asked(Struct, frozen=True):
    """What the command line says."""

    source_project: str = ""
    project: str = ""
    bridge: str = ""
    more: Mapping[str, tuple[Any, str]] = {}
    """Settings that production can't tell, such as those of the connection: value and reason, by key."""


class Proposal(Struct, frozen=True):
    """All that `init` concludes."""

    source_project: str
    roles: Roles
    conclusions: tuple[Conclusion, ...]
    """Settings that differ from the defaults; no others."""
    questions: tuple[Question, ...]
    doubts: tuple[str, ...]
    """What could not be known, in whole sentences."""
    settings: Settings
    """What the conclusions and the defaults make together."""


def propose(survey: Survey, asked: Asked, answers: Mapping[str, str]) -> Proposal:
    """Conclude.

    Raises:
        SourceMissing: no project has a container of General Bots.
    """
    project, why, questions = choose_project(survey, asked.source_project, answers)
    sources = survey.projects.get(project, ())
    if not project or not sources:
        there = [f"{each.project}/{each.name}" for found in survey.projects.values() for each in found]
        raise SourceMissing(
            f"there is no container in project {project}" if project else "no project looks like a production",
            seen="containers: " + (", ".join(sorted(there)) or "none"),
            remedy=_REMEDY,
        )
    roles = assign(sources, answers)
    if not roles.assigned:
        raise SourceMissing(
            f"no container of project {project} looks like one of General Bots'",
            seen="; ".join(f"{source.name}: {reason}" for source, reason in roles.left_out),
            remedy=_REMEDY,
        )
    found = [Conclusion("source_project", project, why, "unsure" if questions and "project" not in answers else "seen")]
    found += _stage(survey, asked)
    found += [Conclusion(key, value, reason) for key, (value, reason) in asked.more.items()]
    networks = choose_networks(survey, roles.assigned)
    found.append(Conclusion("network.production", str(networks.production), networks.why))
    names = [each.name for each in roles.assigned]
    found += choose_bridge(survey, networks.production, _value(found, "project"), asked.bridge)
    found += [Conclusion(f"containers.{role}", False, f"no container is {role}") for role in roles.missing]
    subnet = IPv4Interface(_value(found, "network.address"))
    used = default_places(subnet)
    for each in roles.assigned:
        found += _container(each, roles, names)
        found += addresses(each, networks, subnet, used)
    found += _environment(roles)
    found, refused = _possible(found)
    found = _needed(found)
    settings = _settings(found)
    doubts = [*networks.doubts, *refused, *_doubts(roles, answers, settings)]
    return Proposal(
        source_project=project,
        roles=roles,
        conclusions=tuple(found),
        questions=(*questions, *roles.questions),
        doubts=tuple(doubts),
        settings=settings,
    )


def _value(found: Sequence[Conclusion], key: str) -> str:
    return next((str(each.value) for each in found if each.key == key), "")


def _stage(survey: Survey, asked: Asked) -> Iterator[Conclusion]:
    default = Settings().project
    if asked.project:
        yield Conclusion("project", asked.project, "the command line names it")
    elif default in survey.foreign:
        name = next(each for number in range(2, 100) if (each := f"{default}-{number}") not in survey.foreign)
        yield Conclusion("project", name, f"there is a project {default} that this tool did not make")


def _container(each: Assigned, roles: Roles, names: Sequence[str]) -> Iterator[Conclusion]:
    """Everything about one container but its addresses."""
    prefix, source = f"containers.{each.name}", each.source
    default = default_containers().get(each.name)
    if source.name != each.name:
        yield Conclusion(f"{prefix}.source", source.name, f"{each.why}", each.sure)
    own = _own(each)
    if own:
        yield Conclusion(f"{prefix}.probes", [_probe(one) for one in own], own[0].why, _least(own))
        yield from _units(prefix, own, default)
        yield from _data(prefix, each, own[0])
    if each.name == "system":
        yield from _system(prefix, roles, own, names)
    folders = [folder for one in own for folder in one.logs if not _is_below(folder, ("/opt/gbo/logs", "/var/log"))]
    if folders:
        logs = ["/opt/gbo/logs", *dict.fromkeys(folders)]
        yield Conclusion(f"{prefix}.logs", logs, f"{own[0].unit} writes its output there")
    if source.used > _ALMOST * parse_size(Settings().disk_limit):
        limit = f"{-(-int(source.used * 1.5) // (5 * _GB)) * 5}GB"
        yield Conclusion(f"{prefix}.disk_limit", limit, f"its source uses {source.used / _GB:.1f} GB")


def _own(each: Assigned) -> list[Service]:
    """The services that a container is cloned for."""
    services = each.source.services
    if each.is_extra:
        return [service for service in services if service.protocol in DATA] or list(services)
    own = [service for service in services if is_of_role(service, each.name)]
    if each.name == "system":
        return sorted({service.unit: service for service in own}.values(), key=lambda one: one.unit)
    return own[:1]


def _probe(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = {"protocol": service.protocol, "port": service.port}
    if service.path:
        found["path"] = service.path
    if service.tls:
        found["tls"] = True
    return found


def _units(prefix: str, services: Sequence[Service], default: ContainerSettings | None) -> Iterator[Conclusion]:
    units = []
    for service in services:
        unit = service.unit
        if service.protocol == "postgresql" and unit.startswith("postgresql@"):
            unit = "postgresql.service"  # starts every cluster, as Debian arranges it
        units += [each for each in (unit, *service.requires) if each and each not in units]
    known = default.units if default is not None else ()
    if units and (not set(units) <= set(known) or (default is not None and len(units) < len(default.probes))):
        yield Conclusion(f"{prefix}.units", units, f"{services[0].program} runs in it")


def _data(prefix: str, each: Assigned, service: Service) -> Iterator[Conclusion]:
    """What is emptied and kept."""
    if service.protocol == "postgresql" and service.data:
        yield Conclusion(f"{prefix}.data", service.data, service.why, service.sure)
        yield Conclusion(f"{prefix}.reset", "hot", "a reset brings the database back to its state at cloning")
    elif service.protocol in {"valkey", "s3"}:
        if service.data:
            yield Conclusion(f"{prefix}.wipe", [service.data], service.why, service.sure)
        yield Conclusion(f"{prefix}.reset", "hot", f"a reset empties {each.name}")
    elif service.protocol == "vault":
        yield Conclusion(f"{prefix}.reset", "restore", "a reset brings it back to its state at cloning")


def _system(prefix: str, roles: Roles, own: Sequence[Service], names: Sequence[str]) -> Iterator[Conclusion]:
    (each,) = (each for each in roles.assigned if each.name == "system")
    default = default_containers()["system"]
    extras = [other for other in roles.assigned if other.is_extra and other.source.services]
    if extras:
        text = " and ".join(other.name for other in extras)
        needs = [name for name in default.needs if name in names] + [other.name for other in extras]
        yield Conclusion(f"{prefix}.needs", needs, f"{text} may be BotServer's, too, so it starts first", "likely")
    joined = [
        other.name
        for other in extras
        for service in other.source.services
        if any((address.ip, service.port) in each.source.connections for address in other.source.addresses)
    ]
    if joined:
        writes = [name for name in default.writes_to if name in names] + list(dict.fromkeys(joined))
        yield Conclusion(f"{prefix}.writes_to", writes, f"BotServer is connected to {', '.join(joined)}")
    found = each.source.environment
    if found is not None and found.work.startswith("/"):
        yield Conclusion(f"{prefix}.wipe", [posixpath.normpath(found.work)], f"WORK_DIR in {found.path}")
    for service in own:
        stem = service.unit.removesuffix(".service")
        if stem in default.deploy and service.executable and posixpath.basename(service.executable) == stem:
            yield Conclusion(f"{prefix}.deploy.{stem}", service.executable, f"{service.unit} starts it")


def _environment(roles: Roles) -> Iterator[Conclusion]:
    for each in roles.assigned:
        if each.name == "system" and each.source.environment is not None:
            path = each.source.environment.path
            yield Conclusion("vault.env_file", path, "BotServer reads where Vault is from it")


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(f"{path}/".startswith(f"{folder}/") for folder in folders)


def _least(services: Sequence[Service]) -> Sureness:
    ascending: list[Sureness] = ["unsure", "likely", "seen"]
    return min((each.sure for each in services), key=ascending.index)


def _doubts(roles: Roles, answers: Mapping[str, str], settings: Settings) -> Iterator[str]:
    for each in roles.assigned:
        source, name = each.source, each.name
        if source.sight == "names":
            yield (
                f"{name}: what {source.name} runs, and on which ports, can't be seen from here ({source.blind}). The "
                "defaults are taken. Run init as root on the daemon's host, or look at the clone after the first "
                f"provision: `stagegbo exec {name} -- ss -ltnp`"
            )
        elif not source.services:
            yield f"{name}: nothing in {source.name} listens now, so its ports are the defaults"
        elif each.sure == "unsure":
            yield f"{name} is {source.name}, perhaps: {each.why}"
        for folder in settings.containers[name].wipe if source.sight != "names" else ():
            if folder in DEFAULT_FOLDERS and folder not in source.folders:
                yield f"{name}: {source.name} has no folder {folder}, which `wipe` names by default"
        own = _own(each)
        for service in source.services:
            if service not in own and service.protocol in DATA:
                yield (
                    f"{name}: {source.name} also runs {service.program} on {service.port}. A clone is for one kind of "
                    "service, so that one does not start: docs/init.md#gaps"
                )
        for service in own:
            if service.sure == "unsure" and service.protocol == "vault":
                yield f"{name}: whether {service.program} speaks TLS is not known: {service.why}"
            elif service.sure == "unsure":
                yield f"{name}: which protocol {service.program} speaks on {service.port} is not known; tcp is assumed"
            elif service.protocol in {"valkey", "s3"} and not service.data:
                yield f"{name}: where {service.program} keeps its data is not known. Set `wipe`, or production's stays"
        if name == "system" and source.sight != "names" and source.environment is None:
            yield "system: no file with VAULT_ADDR was found, so where BotServer reads its token is the default"
    if any(each.name == "vault" for each in roles.assigned):
        yield "vault: below which path it has the credentials is not asked; General Bots' is secret/gbo"
    for question in roles.questions:
        if question.key not in answers and question.key.startswith("role."):
            yield f"{question.text} {question.default} is taken"


# Only what differs ----------------------------------------------------------------------------------------------


def _settings(found: Sequence[Conclusion]) -> Settings:
    return build([Layer.from_dotted("stagegbo.toml", {each.key: each.value for each in found})])


def _possible(found: list[Conclusion]) -> tuple[list[Conclusion], list[str]]:
    """Conclusions that settings take, and a sentence for each that they refuse: data in /mnt itself, for example."""
    try:
        _settings(found)
    except SettingsError:
        pass
    else:
        return found, []
    kept, refused = [each for each in found if not each.key.endswith(_REFUSABLE)], []
    for each in found:
        if each.key.endswith(_REFUSABLE):
            try:
                _settings([*kept, each])
            except SettingsError:
                refused.append(f"{each.key}: {each.why}, which settings refuse as {each.value!r}. The default is taken")
            else:
                kept.append(each)
    return kept, refused


_REFUSABLE = (".wipe", ".data", ".logs", ".units", ".reset")
"""Ends of keys whose values come from production's files, so that settings may refuse them. What leans on another comes
later."""


def _needed(found: Sequence[Conclusion]) -> list[Conclusion]:
    """Those without which the settings would be others. What does not change anything is a default."""
    return _dropped(list(found), list(found), _settings(found))


def _dropped(kept: list[Conclusion], group: list[Conclusion], whole: Settings) -> list[Conclusion]:
    """What is kept, without those of a group that the settings don't need. Most are defaults, so halves are tried."""
    fewer = [each for each in kept if each not in group]
    try:
        if _settings(fewer) == whole:
            return fewer
    except SettingsError:  # an address that has to be given, for example
        pass
    if len(group) < 2:
        return kept
    half = len(group) // 2
    return _dropped(_dropped(kept, group[:half], whole), group[half:], whole)


def order(name: str) -> tuple[int, str]:
    """Where a container stands in lists: General Bots' six in their order, then others by name."""
    return (ROLES.index(name), "") if name in ROLES else (len(ROLES), name)
