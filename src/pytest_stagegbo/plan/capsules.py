"""Which capsules a stage has, which of them have to go, and what the stage is like that one is opened as. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import MsgspecError, Struct, json

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import CapsuleMissing
from pytest_stagegbo.plan.baselines import clone_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_stagegbo.incus import Instance
    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.settings.model import CapsuleSettings

__all__ = ["About", "Capsule", "Pinned", "chosen", "copies", "due", "files_id", "held_by", "is_copy", "resolve"]

COPIES = 12
"""Most copies of replaced clones in a stage: its project has room for twice as many containers."""


class About(Struct, frozen=True):
    """What a capsule is."""

    key: str
    """Its identifier: 8 hexadecimal digits."""
    test: str
    """The failed test, as pytest names it."""
    since: str
    """The moment that is kept: ISO 8601, UTC."""
    by: str
    """`user@host`."""
    containers: tuple[str, ...]
    """Those that it has; the first one has the mark that makes it whole."""
    clones: dict[str, str]
    """By container, whose files they are: see `files_id`."""
    sizes: dict[str, int]
    """By container, the bytes of its part."""
    phase: str = ""
    """In which the test failed: `setup`, `call` or `teardown`."""
    slot: int = 0
    build: tuple[str, ...] = ()
    """The builds that the stage ran, as `baselines.build_words` says them; none: production's."""
    copied: str = ""
    """When production was copied."""
    marks: tuple[str, ...] = ()
    """The names of the test's markers."""
    seed: str = ""
    """That of pytest-randomly; empty: there is none."""
    left_out: dict[str, str] = {}
    """By container that the test used and that is not kept, why."""

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    @property
    def moment(self) -> float:
        """Epoch seconds."""
        return datetime.fromisoformat(self.since).timestamp()


class Capsule(Struct, frozen=True):
    """A capsule, and where its parts are."""

    about: About
    holders: dict[str, str]
    """By container, the instance that has its part: the clone, or a copy of it that was kept when it was replaced."""
    marked: tuple[str, ...]
    """Instances with the capsule's mark."""

    @property
    def key(self) -> str:
        return self.about.key

    @property
    def lost(self) -> tuple[str, ...]:
        """Containers whose part is gone, since somebody replaced the clone without this tool."""
        return tuple(name for name in self.about.containers if name not in self.holders)


def files_id(clone: Instance) -> str:
    """What tells the files of a clone from those that it has once it is copied again, or restored: then there is
    another first boot."""
    return f"{clone_id(clone)} {clone.config.get(marks.BOOTED, '')}".rstrip()


def is_copy(instance: Instance) -> bool:
    """Whether it is kept for capsules alone, as a copy of a clone that was replaced."""
    return marks.KEPT_FROM in instance.config and marks.is_ours(instance.config)


def held_by(copy: Instance) -> frozenset[str]:
    """The capsules that a copy has parts of. One that is not finished has none: whoever made it was killed."""
    if copy.config.get(marks.STATE) != marks.PREPARED:
        return frozenset()
    return frozenset(copy.config.get(marks.HOLDS, "").split())


def copies(instances: Iterable[Instance], settings: Settings) -> list[Instance]:
    """The copies among a stage's instances, whether they are finished or not."""
    return [each for each in instances if is_copy(each) and marks.is_clone(each, settings)]


def resolve(instances: Mapping[str, Instance], settings: Settings) -> list[Capsule]:
    """The capsules of a stage, the oldest first.

    Args:
        instances: All of the stage's project, by name.
    """
    abouts: dict[str, About] = {}
    marked: dict[str, list[str]] = {}
    parts: dict[tuple[str, str], str] = {}
    for instance in instances.values():
        if not marks.is_clone(instance, settings) or instance.config.get(marks.STATE) != marks.PREPARED:
            continue
        for name, value in instance.config.items():
            if name.startswith(marks.CAPSULE) and (about := _about(value)) is not None:
                abouts[about.key] = about
                marked.setdefault(about.key, []).append(instance.name)
        if is_copy(instance):
            for key in held_by(instance):
                parts[key, instance.config[marks.KEPT_FROM]] = instance.name
    found = []
    for key, about in abouts.items():
        holders = {}
        for name in about.containers:
            clone = instances.get(name)
            if (key, name) in parts:
                holders[name] = parts[key, name]
            elif clone is not None and files_id(clone) == about.clones.get(name):
                holders[name] = name
        found.append(Capsule(about, holders, tuple(marked[key])))
    return sorted(found, key=lambda each: (each.about.since, each.key))


def _about(text: str) -> About | None:
    """What a mark says; None: somebody has changed it, so it is no capsule's."""
    try:
        found = json.decode(text, type=About)
        is_whole = bool(found.containers) and found.moment > 0
    except (MsgspecError, ValueError):
        return None
    return found if is_whole else None


class Pinned(Struct, frozen=True):
    """What a copy of a replaced clone keeps from being freed, beside the parts of capsules in it."""

    capsules: frozenset[str]
    """The copy is there as long as one of them is."""
    size: int
    """Bytes that the copy alone has."""


def due(
    capsules: Sequence[Capsule],
    limits: CapsuleSettings,
    now: float,
    *,
    age: float,
    size: int,
    pinned: Sequence[Pinned] = (),
) -> tuple[str, ...]:
    """The capsules that have to go, the oldest first.

    Args:
        now: Epoch seconds.
        age: Seconds after which one goes.
        size: Bytes that all of them may have, with what copies pin for them.
        pinned: By copies of replaced clones.
    """
    old = [each.key for each in capsules if now - each.about.moment > age]
    left = [each for each in capsules if each.key not in old]
    while left and (len(left) > limits.count or _size(left, pinned) > size):
        old.append(left.pop(0).key)
    return tuple(old)


def _size(capsules: Sequence[Capsule], pinned: Sequence[Pinned]) -> int:
    keys = {each.key for each in capsules}
    return sum(each.about.size for each in capsules) + sum(each.size for each in pinned if keys & each.capsules)


def chosen(capsules: Sequence[Capsule], word: str) -> Capsule:
    """The capsule with this identifier, or the only one whose identifier begins with it. Raises `CapsuleMissing`."""
    found = [each for each in capsules if re.fullmatch("[0-9a-f]+", word) and each.key.startswith(word)]
    if len(found) == 1:
        return found[0]
    several = f"{word} is the beginning of {' and '.join(each.key for each in found)}"
    raise CapsuleMissing(
        several if found else f"the stage has no capsule {word}",
        seen="" if found else "there are " + (", ".join(each.key for each in capsules) or "none"),
        remedy="`stagegbo capsule list` shows them",
    )
