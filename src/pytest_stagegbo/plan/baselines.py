"""Which baselines there are, by the parts that the containers have, and which of them may be used. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import MsgspecError, Struct, json

from pytest_stagegbo.errors import BaselineMissing, SettingsError
from pytest_stagegbo.guest.baselines import NEW
from pytest_stagegbo.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.plan.builds import Build
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = [
    "About",
    "Found",
    "Part",
    "build_words",
    "check_name",
    "chosen",
    "clone_id",
    "keepers",
    "parse_parts",
    "resolve",
    "usable",
]


class About(Struct, frozen=True):
    """What is written beside the copies of one container."""

    key: str
    name: str
    since: str
    """When it was saved: ISO 8601, UTC."""
    by: str
    """`user@host`."""
    containers: tuple[str, ...]
    """All that the baseline has."""
    build: tuple[str, ...]
    """The builds that the stage ran, as `build_words` says them."""
    clones: dict[str, str]
    """By container, which clone it was."""
    copied: str
    """When production was copied: the oldest of these clones."""
    run: str = ""
    """The run of pytest that alone may use it; empty: any."""
    origin: str = ""
    """The project of the slot that it was saved in."""


class Part(Struct, frozen=True):
    """What a container has."""

    folder: str
    size: int
    about: About | None
    """None: it was never finished."""


class Found(Struct, frozen=True):
    """What the parts of all containers make."""

    whole: dict[str, About]
    """By name, the latest."""
    sizes: dict[str, int]
    """By name, bytes in all containers."""
    broken: dict[str, str]
    """By name, why it can't be used."""
    garbage: dict[str, tuple[str, ...]]
    """By container, folders that nobody needs."""
    folders: dict[str, dict[str, tuple[str, ...]]]
    """By name and container, the folders of all its versions."""


def check_name(name: str) -> None:
    """Raise `SettingsError` for what is no name of a baseline."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise SettingsError(
            f"{name!r} is no name of a baseline",
            remedy="use up to 64 letters, digits, dots, dashes and underscores, a letter or digit first",
        )


def keepers(settings: Settings) -> list[ContainerSettings]:
    """The containers that a baseline can have: those with folders which resets bring back. There may be none."""
    return [each for each in settings.containers.values() if _can_keep(each)]


def chosen(settings: Settings, names: Sequence[str]) -> list[ContainerSettings]:
    """The containers of a new baseline: those named, or all that have folders which resets bring back.

    Raises:
        SettingsError: a container is unknown, or nothing can be kept of it.
    """
    able = {each.name: each for each in keepers(settings)}
    unknown = [name for name in names if name not in settings.containers]
    if unknown:
        raise SettingsError.unknown("no container", unknown, able)
    unable = [name for name in names if name not in able]
    if unable or not able:
        raise SettingsError(
            f"no baseline can have {', '.join(unable) or 'any container of this stage'}",
            seen="it has no folders in `wipe` and no database in `data`, or its reset is a restore",
            remedy="choose from " + ", ".join(able) if able else "set containers.tables.data",
        )
    return [each for name, each in able.items() if not names or name in names]


def _can_keep(container: ContainerSettings) -> bool:
    return container.reset == "hot" if container.data else bool(container.wipe) and container.reset != "restore"


def clone_id(clone: Instance) -> str:
    """What tells a clone from the one that replaces it."""
    return f"{clone.config.get('volatile.uuid', '')} {clone.created_at}"


def build_words(builds: Mapping[str, Build]) -> tuple[str, ...]:
    """What the stage runs in place of production's files: `system botserver 0123456789ab`, a text for each file."""
    return tuple(
        sorted(f"{name} {each.name} {each.short}" for name, build in builds.items() for each in build.artefacts)
    )


def parse_parts(text: str) -> tuple[Part, ...]:
    """What `guest.baselines.list_script` printed."""
    parts = []
    for line in text.splitlines():
        folder, size, about = line.split("\t", 2)
        parts.append(Part(folder, int(size), _about(about)))
    return tuple(parts)


def _about(text: str) -> About | None:
    try:
        return json.decode(text, type=About)
    except MsgspecError:
        return None


def resolve(parts: Mapping[str, Sequence[Part]], clones: Mapping[str, Instance], build: tuple[str, ...]) -> Found:
    """Say what there is.

    A baseline whose parts are not all there was lost with a clone, or is being deleted. Before the first part has got
    its final name there is none.

    Args:
        parts: By container that was looked into.
        clones: Those that are there now.
        build: What the stage runs.
    """
    there: dict[str, dict[str, Part]] = {}
    abouts: dict[str, About] = {}
    garbage: dict[str, list[str]] = {}
    for name, found in parts.items():
        for part in found:
            about = part.about
            if about is None or about.clones.get(name) != clone_id(clones[name]):
                garbage.setdefault(name, []).append(part.folder)
            else:
                there.setdefault(about.key, {})[name] = part
                abouts[about.key] = about
    latest: dict[str, str] = {}
    broken: dict[str, str] = {}
    folders: dict[str, dict[str, tuple[str, ...]]] = {}
    for key, about in sorted(abouts.items(), key=lambda item: item[1].since):
        own = there[key]
        if all(part.folder.endswith(NEW) for part in own.values()):  # of a save that was killed
            for name, part in own.items():
                garbage.setdefault(name, []).append(part.folder)
            continue
        of_name = folders.setdefault(about.name, {})
        for name, part in own.items():
            of_name[name] = (*of_name.get(name, ()), part.folder)
        if missing := [name for name in about.containers if name not in own]:
            broken[about.name] = _missing(missing, parts)
            continue
        if before := latest.get(about.name):  # the version that was replaced
            for name, part in there[before].items():
                garbage.setdefault(name, []).append(part.folder)
        latest[about.name] = key
        broken.pop(about.name, None)
        if about.build != build:
            broken[about.name] = f"it is of {_shown(about.build)}, and the stage runs {_shown(build)}"
    return Found(
        whole={name: abouts[key] for name, key in latest.items()},
        sizes={name: sum(part.size for part in there[key].values()) for name, key in latest.items()},
        broken=broken,
        garbage={name: tuple(names) for name, names in garbage.items()},
        folders=folders,
    )


def _missing(names: Sequence[str], looked: Iterable[str]) -> str:
    asleep = [name for name in names if name not in set(looked)]
    if asleep:
        return f"{', '.join(asleep)} does not run, so what it has is not known"
    return f"{', '.join(names)} has no part of it any more: it was copied or restored since, or the baseline deleted"


def _shown(build: tuple[str, ...]) -> str:
    return f"the build {', '.join(build)}" if build else "production's build"


def usable(found: Found, name: str, run: str = "") -> About:
    """The baseline of that name. Raises `BaselineMissing`.

    Args:
        run: The run of pytest that wants it.
    """
    if name in found.broken:
        raise BaselineMissing(
            f"baseline {name} can't be used: {found.broken[name]}",
            remedy=f"save it again: `stagegbo baseline save {name} --replace`",
        )
    about = found.whole.get(name)
    if about is None or (about.run and about.run != run):
        others = sorted(each for each, other in found.whole.items() if not other.run or other.run == run)
        raise BaselineMissing(
            f"the stage has no baseline {name}{did_you_mean([name], others)}"
            + (", but for one that another run of pytest has saved for itself" if about is not None else ""),
            seen="there are " + ", ".join(others) if others else "there is none",
            remedy=f"bring the stage into that state, then `stagegbo baseline save {name}`",
        )
    return about
