"""Plans a deployment, and reads from a clone's mark which files it runs instead of production's. Pure."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from msgspec import MsgspecError, Struct, json, structs

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.plan.steps import Step
from pytest_stagegbo.text import bytes_text, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_stagegbo.guest.builds import Inspection
    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = [
    "Artefact",
    "Build",
    "BuildStep",
    "Local",
    "build_of",
    "build_of_text",
    "database_of",
    "plan_deployment",
    "plan_undo",
    "target",
    "wanted_files",
]

State = Literal["deploying", "undoing", "done", "damaged"]


class Artefact(Struct, frozen=True):
    """A file of a build, in a clone."""

    name: str
    path: str
    real: str
    """Where links at `path` lead."""
    sha256: str
    size: int
    since: str
    """When it was deployed: ISO 8601, UTC."""
    by: str
    """`user@host`."""
    source: str
    """The path that it was copied from, on that host."""
    state: str = ""
    """What the file was like once it was in place: `guest.builds.Found.state`."""

    @property
    def short(self) -> str:
        return self.sha256[:12]


class Build(Struct, frozen=True):
    """The files of a clone that are not production's."""

    artefacts: tuple[Artefact, ...]
    state: State = "done"
    """`deploying` and `undoing` are those of a run that is under way, or was killed; `damaged`: nobody knows."""
    changed: tuple[str, ...] = ()
    """Real paths that this run changes."""
    before: tuple[Artefact, ...] = ()
    """What was deployed before this run."""
    database: str = ""
    """The container whose clean state has this build's migrations."""

    @property
    def unfinished(self) -> bool:
        return self.state != "done"

    def to_text(self) -> str:
        return json.encode(self).decode()


def build_of(clone: Instance | None) -> Build | None:
    """Return the build that a clone runs or is being given. None: it runs production's files."""
    text = clone.config.get(marks.BUILD, "") if clone is not None else ""
    return build_of_text(text) if text else None


def builds_of(clones: Mapping[str, Instance], names: Iterable[str]) -> dict[str, Build]:
    """The builds of those clones that have one, by container."""
    found = {name: build_of(clones.get(name)) for name in names}
    return {name: build for name, build in found.items() if build is not None}


def build_of_text(text: str) -> Build:
    """Make a build from what `Build.to_text` returned. Any other text gives a build with the state `damaged`."""
    try:
        return json.decode(text, type=Build)
    except MsgspecError:
        return Build((), "damaged")  # of another version, or changed by hand


class Local(Struct, frozen=True):
    """A file on this host that is to be deployed."""

    name: str
    path: str
    """In the container."""
    file: Path
    size: int
    sha256: str


def target(container: ContainerSettings, name: str) -> str:
    """Return the path of an artefact in the container. Its name is one of `containers.NAME.deploy`, or the path itself.

    Raises:
        SettingsError: it can't be deployed there.
    """
    path = container.deploy.get(name, name)
    setting = f"containers.{container.name}.deploy"
    if not path.startswith("/"):
        known = ", ".join(container.deploy) or "nothing"
        raise SettingsError(
            f"{container.name} has no artefact {name!r}{did_you_mean([name], container.deploy)}",
            seen=f"{setting} names {known}",
            remedy=f"give its whole path in the container instead (/opt/gbo/bin/{posixpath.basename(name)}=FILE), or "
            f"name it in {setting}",
        )
    if path != posixpath.normpath(path) or not path.isprintable() or path == "/":
        raise SettingsError(f"{path!r} is not the plain path of a file", remedy=f"correct it, or {setting}.{name}")
    for folder in (*container.wipe, *container.logs):
        if f"{path}/".startswith(f"{folder}/"):
            raise SettingsError(
                f"{path} lies in {folder}, which resets of {container.name} empty",
                remedy="deploy it somewhere else",
            )
    return path


def wanted_files(settings: Settings) -> dict[str, dict[str, Path]]:
    """Return the files that `pytest.deploy` names, by container and artefact. Pure.

    Raises:
        SettingsError: a word can't be understood.
    """
    found: dict[str, dict[str, Path]] = {}
    for word in settings.pytest.deploy:
        where, _, file = word.partition("=")
        name, colon, artefact = where.partition(":")
        if not colon:
            names = [each.name for each in settings.containers.values() if where in each.deploy]
            name, artefact = (names[0] if len(names) == 1 else ""), where
        if name not in settings.containers or not artefact or not file:
            raise SettingsError(
                f"pytest.deploy: {word!r} does not say which file goes where",
                remedy="write it as botserver=target/release/botserver, with a name of containers.NAME.deploy, or as "
                "system:/opt/gbo/bin/botserver=target/release/botserver",
            )
        files = found.setdefault(name, {})
        if artefact in files:
            raise SettingsError(f"pytest.deploy names {artefact} twice", remedy="give one file for each artefact")
        files[artefact] = Path(file)
    return found


def database_of(container: ContainerSettings, settings: Settings) -> ContainerSettings | None:
    """Return the container whose database a build of `container` may migrate: one that it needs and that has `data`."""
    found = (settings.containers[name] for name in container.needs if name in settings.containers)
    return next((each for each in found if each.data), None)


class BuildStep(Step, frozen=True, kw_only=True):
    """A step of a deployment. `verb` says which; `subject` is the container that it is done to."""

    verb: ClassVar[str] = "build"
    action: Literal["receive", "stop", "rewind", "swap", "first-start", "keep", "production", "start"]
    said: str
    local: Local | None = None
    """What to receive."""

    @property
    def key(self) -> str:
        return f"{self.action}:{self.local.path if self.local else self.subject}"

    @property
    def text(self) -> str:
        return self.said


def plan_deployment(
    container: ContainerSettings,
    database: ContainerSettings | None,
    inspection: Inspection,
    build: Build | None,
    wanted: Sequence[Local],
) -> tuple[BuildStep, ...]:
    """Return the steps that deploy these files to a clone. There are none when it has them all.

    Args:
        database: Whose clean state has to move, too.
        inspection: At every path of `wanted`, in their order.
        build: What was deployed, and finished.

    Raises:
        SettingsError: one of the paths can't be a file.
    """
    files = {found.path: found for found in inspection.files}
    for local in wanted:
        found = files[local.path]
        if found.kind not in {"file", "absent"}:
            what = "is no file" if found.kind == "other" else "is in a folder that is not there"
            raise SettingsError(f"{local.path} {what} in {container.name}", remedy="give the path of a file")
    deployed = {each.path: each for each in build.artefacts} if build is not None else {}
    changed = [
        local
        for local in wanted
        if local.path not in deployed
        or (deployed[local.path].sha256, deployed[local.path].state) != (local.sha256, files[local.path].state)
    ]
    if not changed:
        return ()
    name, stopped = container.name, inspection.units_of(local.path for local in changed)
    steps = [
        BuildStep(
            subject=name,
            action="receive",
            local=local,
            said=f"{name}: copy {local.name} ({bytes_text(local.size)}, SHA-256 {local.sha256[:12]}) beside "
            f"{local.path}",
        )
        for local in changed
    ]
    reason = "runs it" if any(dict(inspection.users)[local.path] for local in changed) else "may read it"
    paths = ", ".join(local.path for local in changed)
    steps.append(BuildStep(subject=name, action="stop", said=f"{name}: stop {', '.join(stopped)}, which {reason}"))
    if database is not None:
        said = f"{database.name}: go back to production's data, for the build to start on"
        steps.append(BuildStep(subject=database.name, action="rewind", said=said))
    steps.append(
        BuildStep(subject=name, action="swap", said=f"{name}: put {paths} in place, with owner and mode as before")
    )
    steps.extend(_starts(container, database))
    return _in_order(steps)


def plan_undo(
    container: ContainerSettings, database: ContainerSettings | None, build: Build | None
) -> tuple[BuildStep, ...]:
    """Return the steps that bring production's files back to a clone. There are none when it has no others."""
    if build is None:
        return ()
    name = container.name
    paths = ", ".join(each.path for each in build.artefacts) or "what was deployed"
    steps = [
        BuildStep(subject=name, action="stop", said=f"{name}: stop {', '.join(container.units)}"),
        BuildStep(subject=name, action="production", said=f"{name}: put production's files back for {paths}"),
    ]
    if database is not None:
        said = f"{database.name}: go back to production's data"
        steps.append(BuildStep(subject=database.name, action="rewind", said=said))
    steps.append(BuildStep(subject=name, action="start", said=_start_text(container)))
    return _in_order(steps)


def _starts(container: ContainerSettings, database: ContainerSettings | None) -> Iterator[BuildStep]:
    name = container.name
    if database is not None:
        said = f"{name}: start the build for the first time, and wait until it answers"
        yield BuildStep(subject=name, action="first-start", said=said)
        said = f"{database.name}: what the build has migrated is the clean state from now on"
        yield BuildStep(subject=database.name, action="keep", said=said)
    yield BuildStep(subject=name, action="start", said=_start_text(container))


def _start_text(container: ContainerSettings) -> str:
    emptied = f"empty {', '.join(container.wipe)}, " if container.wipe else ""
    return f"{container.name}: {emptied}start, and wait until it answers"


def _in_order(steps: Sequence[BuildStep]) -> tuple[BuildStep, ...]:
    found: list[BuildStep] = []
    for step in steps:
        found.append(structs.replace(step, after=frozenset(each.key for each in found)))
    return tuple(found)


def shown(builds: Mapping[str, Build]) -> list[str]:
    """A line for each artefact that was deployed, by container."""
    return [
        f"{name} runs {each.name} {each.short}, deployed {each.since} by {each.by}"
        + (f" ({build.state})" if build.unfinished else "")
        for name, build in builds.items()
        for each in build.artefacts
    ]
