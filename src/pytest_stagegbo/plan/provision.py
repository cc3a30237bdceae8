"""Plans a provisioning. `make_plan` is a pure function, so a dry run and a real run use the same code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, structs

from pytest_stagegbo.desired import marks, objects
from pytest_stagegbo.desired.allowlist import clone_config, clone_nic, disk_limit, root_disk, unconfined
from pytest_stagegbo.desired.own_pool import clone_pool, shares_blocks
from pytest_stagegbo.desired.versions import stale_reason
from pytest_stagegbo.facts.former import changes_bridge
from pytest_stagegbo.facts.subnets import refuse_taken
from pytest_stagegbo.guest import holds_services
from pytest_stagegbo.guest.hooks import read_hooks
from pytest_stagegbo.plan.access_list import access_list
from pytest_stagegbo.plan.builds import build_of
from pytest_stagegbo.plan.capsules import is_copy
from pytest_stagegbo.plan.former import left_by_others, removal
from pytest_stagegbo.plan.notes import details, notes_on, own_networks
from pytest_stagegbo.plan.objections import costs, refuse, shortage
from pytest_stagegbo.plan.pool_objections import refuse_left_behind
from pytest_stagegbo.plan.secrets import plan_secrets
from pytest_stagegbo.plan.steps import (
    AdoptClone,
    AttachClone,
    AwaitClone,
    AwaitRoom,
    CopyClone,
    CreatePool,
    MendBuild,
    PrepareClone,
    RefreshClone,
    RemoveClone,
    ResizeClone,
    RunHooks,
    SetAcl,
    SetNetwork,
    SetProfile,
    SetProject,
    StartClone,
    Step,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["Plan", "foundations", "make_plan"]


class Plan(Struct, frozen=True):
    """The steps of a provisioning, and notes that a person should read before they are carried out."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    """What only a look at the details is about, for `--debug`."""

    @property
    def changes(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.changes)


def make_plan(
    facts: Facts, settings: Settings, *, recreate: bool = False, to_replace: Collection[str] = (), parent: str = ""
) -> Plan:
    """Return the steps that lead from `facts` to a provisioned stage. Pure, but for reading the files of hooks.

    Args:
        recreate: Replace every clone, also those that are as they should be.
        to_replace: Names of clones to replace, however they are.
        parent: The stage that this one is a slot or the golden copy of.

    Raises:
        StageGboError: there is a reason not to start; see `objections.refuse`.
    """
    sources = [facts.sources[c.source_name] for c in settings.containers.values() if c.source_name in facts.sources]
    pools = [clone_pool(source, settings) for source in sources]
    replacing = frozenset(settings.containers if recreate else to_replace)
    copying = [c for c in settings.containers.values() if _stale(facts, settings, c, replacing) is not None]
    leaving = [facts.clones[c.name].pool for c in copying if c.name in facts.clones]
    leaving += [clone.pool for name, clone in facts.clones.items() if _unnamed(settings, name, clone)]
    refuse(facts, settings, copying, parent, frozenset(leaving))
    replaced = {container.name for container in copying}
    kept = [each for name, each in facts.clones.items() if name not in replaced and marks.is_clone(each, settings)]
    refuse_left_behind(kept, facts.production_instances, settings)
    ways = facts.ways if facts.bridge_works else None  # a bridge that the kernel lost is set up again
    refuse_taken(settings, facts.networks, facts.host, ways, parent=parent)
    steps: list[Step] = list(foundations(facts, settings, pools[0], parent))
    removals = frozenset(f"remove:{name}" for name in facts.clones)
    if _leaves_bridge(facts, settings):  # Incus changes a project's bridge once nothing in it is on another one
        first = removal(facts.former, removals)
        gone = removals | {step.key for step in first}
        steps = [*first, *(structs.replace(step, after=step.after | gone) for step in steps)]
    founded = frozenset(step.key for step in steps)
    steps.extend(
        AwaitRoom(subject=pool, cost=cost, after=founded | removals)
        for pool, cost in costs(facts, settings, copying).items()
        if shortage(facts.rooms[pool], settings, cost) is not None
    )
    # The last first: by default that is llm, which loads a model, while system comes last, which needs all others.
    for container in reversed(list(settings.containers.values())):
        steps.extend(_clone_steps(facts, settings, container, replacing, founded, parent))
    vault = marks.vault_container(settings)
    secrets = plan_secrets(facts, settings, new_vault=vault in copying)
    if secrets is not None:
        steps.append(secrets)
    after = _removable_after(facts, settings, founded)
    steps.extend(
        RemoveClone(subject=name, reason="the settings no longer name it", after=after)
        for name, clone in sorted(facts.clones.items())
        if _unnamed(settings, name, clone)
    )
    notes = (*left_by_others(facts, settings, parent), *notes_on(facts, settings, copying))
    return Plan(tuple(steps), notes, tuple(details(facts, settings)))


def _leaves_bridge(facts: Facts, settings: Settings) -> bool:
    """Whether clones and everything else have to leave a bridge with the former name first."""
    return bool(facts.former) or changes_bridge(facts.projects.get(settings.project), settings)


def _removable_after(facts: Facts, settings: Settings, founded: frozenset[str]) -> frozenset[str]:
    """Return the keys of steps after which a clone may be removed."""
    return frozenset() if _leaves_bridge(facts, settings) else founded


def _unnamed(settings: Settings, name: str, clone: Instance) -> bool:
    """Whether an instance is a clone that this tool made and that the settings no longer name."""
    return marks.is_clone(clone, settings) and name not in settings.containers and not is_copy(clone)


def foundations(facts: Facts, settings: Settings, pool: str, parent: str) -> list[Step]:
    """Return steps for project, access list, bridge and profile, each only if it is missing or different.

    Args:
        pool: Of the profile's root disk.
        parent: As for `make_plan`.
    """
    steps: list[Step] = []
    project = facts.projects.get(settings.project)
    wanted = objects.project(settings, own_networks=own_networks(facts, settings), parent=parent)
    if project is None or not _has(project.config, wanted) or objects.lifted(project.config):
        steps.append(SetProject(subject=settings.project, create=project is None))
    wanted_acl = access_list(facts, settings, parent=parent)
    if facts.acl is None or any(facts.acl.get(key) != wanted_acl[key] for key in ("ingress", "egress", "config")):
        # After the project: a client that may not make it leaves nothing behind that names it.
        after = frozenset({f"project:{settings.project}"})
        steps.append(SetAcl(subject=objects.acl_name(settings), create=facts.acl is None, after=after))
    own = settings.storage.own
    if own and own not in facts.rooms:
        steps.append(CreatePool(subject=own, size=settings.storage.create))
    network = facts.networks.get(settings.network.name)
    if network is not None and network.is_half_made:
        network = None
    if network is None or not facts.bridge_works or not _has(network.config, objects.network(settings, parent)):
        after = frozenset({f"project:{settings.project}", f"access-list:{objects.acl_name(settings)}"})
        steps.append(SetNetwork(subject=settings.network.name, create=network is None, after=after))
    managed = project is not None and objects.managed_nics(dict(project.config))
    profile = facts.profile or {}
    if (
        project is None
        or profile.get("devices") != objects.profile_devices(settings, pool, managed=managed)
        or profile.get("config") != objects.profile_config(settings)
    ):
        after = frozenset({f"project:{settings.project}", f"network:{settings.network.name}", f"pool:{pool}"})
        steps.append(SetProfile(subject="default", create=False, pool=pool, after=after))
    return steps


def _clone_steps(
    facts: Facts,
    settings: Settings,
    container: ContainerSettings,
    replacing: frozenset[str],
    founded: frozenset[str],
    parent: str,
) -> list[Step]:
    name = container.name
    clone = facts.clones.get(name)
    answered = frozenset(f"await:{other}" for other in container.needs)
    secured: frozenset[str] = frozenset()
    vault = marks.vault_container(settings)
    if vault is not None and container != vault and marks.reads_vault(container, settings):
        secured = frozenset({f"secrets:{vault.name}"})
    needed = before_start = answered | secured
    reason = _stale(facts, settings, container, replacing)
    steps: list[Step] = []
    if reason is not None:
        source = facts.sources[container.source_name]
        # Slots go back to their golden copy; the stage itself, to a snapshot.
        unconfirmed = bool(facts.golden) and (bool(parent) or not container.may_restore)
        pool = clone_pool(source, settings)
        copy = CopyClone(
            subject=name,
            container=container,
            pool=pool,
            limit=_limit(facts, container, settings),
            location=facts.member,
            in_full=not shares_blocks(source, pool, facts.member),
            dropped=clone_config(source, container, settings, managed=True, golden=bool(facts.golden)).dropped,
            unconfirmed=unconfirmed,
            after=founded | {f"remove:{name}", f"room:{pool}"} | _holders(facts, container),
        )
        if clone is not None and not _leaves_bridge(facts, settings) and _may_refresh(clone, copy, source):
            steps.append(RefreshClone(subject=name, copy=copy, reason=reason, after=copy.after))
        else:
            if clone is not None:
                steps.append(RemoveClone(subject=name, reason=reason, after=_removable_after(facts, settings, founded)))
            steps.append(copy)
        # What the hooks of a golden clone have changed is in its copies.
        prepared = structs.replace(container, hooks=()) if facts.golden else container
        if not unconfirmed:
            steps.append(PrepareClone(subject=name, container=prepared, after=frozenset({f"copy:{name}"})))
        if prepared.hooks:
            after = frozenset({f"prepare:{name}"})
            steps.append(RunHooks(subject=name, container=container, hooks=read_hooks(container), after=after))
        started = prove = True
        if holds_services(container):
            before_start = secured  # where production's secrets are replaced, not even the boot comes before that
    else:
        assert clone is not None  # else it were stale
        wanted = root_disk(clone.pool, _limit(facts, container, settings))
        if dict(clone.devices.get("root", {})) != wanted:
            steps.append(ResizeClone(subject=name, limit=wanted.get("size", ""), after=founded))
        if marks.INSTANCE not in clone.config:
            steps.append(AdoptClone(subject=name, after=founded))
        off = _off_the_bridge(facts, settings, container, clone)
        if off:
            bridge = settings.network.name
            after = founded | {f"resize:{name}"}  # which writes the devices that it has read
            steps.append(AttachClone(subject=name, container=container, bridge=bridge, reason=off, after=after))
        started = bool(off) or not clone.is_running
        prove = clone.config.get(marks.PROVEN) != "true"
    if started:
        own = {f"{verb}:{name}" for verb in ("copy", "prepare", "hooks", "resize", "attach")}
        after = founded | before_start | own
        steps.append(StartClone(subject=name, after=after))
    build = build_of(clone) if reason is None else None
    if build is not None and build.unfinished:
        steps.append(MendBuild(subject=name, after=needed | {f"start:{name}"} | founded))
    ready = needed | {f"start:{name}", f"mend:{name}"} | founded
    steps.append(AwaitClone(subject=name, container=container, prove=prove, after=ready))
    return steps


def _off_the_bridge(facts: Facts, settings: Settings, container: ContainerSettings, clone: Instance) -> str:
    """Return why the clone has to be put on the stage's bridge again. Empty: it is on it, or will be once it starts."""
    managed = objects.managed_nics(dict(facts.projects[settings.project].config))
    if not _has(clone.devices.get("eth0", {}), clone_nic(container, settings, managed=managed)):
        return "its network device was changed or taken away"
    network = facts.networks.get(settings.network.name)
    if clone.is_running and (network is None or network.is_half_made):
        return "the bridge is made again"
    return "its interface is not on the bridge" if container.name in facts.detached else ""


def _holders(facts: Facts, container: ContainerSettings) -> frozenset[str]:
    """Return the removals that free the container's address: Incus refuses a second NIC with that address."""
    address = str(container.address)
    return frozenset(
        f"remove:{name}"
        for name, clone in facts.clones.items()
        if any(device.get("ipv4.address") == address for device in clone.devices.values())
    )


def _stale(facts: Facts, settings: Settings, container: ContainerSettings, replacing: frozenset[str]) -> str | None:
    """Return why the clone has to be copied, or copied again. None: it is as the settings want it."""
    clone = facts.clones.get(container.name)
    if clone is None:
        return "it is missing"
    if not marks.is_clone(clone, settings):
        return None  # `refuse` speaks of it
    if clone.config.get(marks.STATE) != marks.PREPARED:
        return "an interrupted run left it unfinished"
    if clone.config.get(marks.FINGERPRINT) != marks.fingerprint(container, settings):
        return stale_reason(clone)
    if clone.status == "Error":
        return "Incus reports it as broken"
    build = build_of(clone)
    if build is not None and build.state == "damaged":
        return "what is known of the build in it was damaged"
    if unconfined(clone, settings):
        return "what confines its boot was taken away"
    if settings.storage.own and clone.pool != settings.storage.own:
        return f"it is on pool {clone.pool}"
    if facts.golden and _older(clone, facts.sources.get(container.source_name)):
        return "its golden copy was refreshed"
    return "a new copy was requested" if container.name in replacing else None


def _older(clone: Instance, golden: Instance | None) -> bool:
    """Whether a clone is of another generation than the golden clone. Clones that were copied from production itself,
    before there was a golden copy, stay."""
    own = clone.config.get(marks.GENERATION)
    return bool(own) and golden is not None and golden.config.get(marks.GENERATION) != own


def _limit(facts: Facts, container: ContainerSettings, settings: Settings) -> str:
    return disk_limit(container, settings, golden=bool(facts.golden))


def _may_refresh(clone: Instance, copy: CopyClone, source: Instance) -> bool:
    """Whether a full copy can be refreshed instead of made again. Incus copies owners of files as they
    are on the disk, so source and copy must have the same shift of user ids."""
    shift = "volatile.last_state.idmap"
    if clone.pool != copy.pool or clone.status == "Error" or not copy.in_full:
        return False
    if copy.location not in {"", source.location}:
        return False  # "Instance storage pool not found" (6.0.4): Incus looks for the source on the clone's member
    return (clone.config.get(shift) or "[]") == (source.config.get(shift) or "[]")


def _has(config: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(config.get(key) == value for key, value in wanted.items())
