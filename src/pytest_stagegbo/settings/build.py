"""Builds settings from layers. It is pure: it reads no file, no environment and no clock.

The steps: take each layer apart into single values, convert every one (a mistake counts wherever it stands, even
when a higher layer overrules it), let the highest layer win for each key, fill in the defaults, and check what came
out. Whatever was wrong on the way ends up in one :class:`~pytest_stagegbo.errors.SettingsError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.settings import keys
from pytest_stagegbo.settings.checks import check
from pytest_stagegbo.settings.convert import BadValue, convert
from pytest_stagegbo.settings.keys import KeyPath, dotted
from pytest_stagegbo.settings.model import (
    CapsuleSettings,
    ContainerSettings,
    ExposeSettings,
    IncusSettings,
    LimitSettings,
    NetworkSettings,
    PytestSettings,
    Settings,
    SlotSettings,
    StorageSettings,
    TimeoutSettings,
    VaultSettings,
    default_containers,
)
from pytest_stagegbo.text import nearest

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagegbo.settings.layers import Layer
    from pytest_stagegbo.settings.problem import Problem

__all__ = ["Loaded", "build", "resolve"]

DEFAULT = "default"

_UNIT_SUFFIXES = (
    *(".service", ".socket", ".device", ".mount", ".automount", ".swap"),
    *(".target", ".path", ".timer", ".slice", ".scope"),
)
_NOWHERE = IPv4Address(0)
"""Stands in for an address that is missing, which is a problem already reported."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, with the source of each value."""

    settings: Settings
    origins: Mapping[str, str] = dataclasses.field(repr=False)
    """For every dotted key, where the value that won stands (`$STAGEGBO_PROJECT`,
    `pyproject.toml [tool.stagegbo] project`, `default`)."""
    file: Path | None = None
    """The file that was read, if any."""


class _Value(Struct, frozen=True):
    value: object
    where: str


def build(layers: Sequence[Layer]) -> Settings:
    """Build the settings from the defaults and `layers`, of which the last has the highest precedence.

    Raises:
        SettingsError: Something is wrong. The message lists every problem with where it stands.
    """
    return resolve(layers).settings


def resolve(layers: Sequence[Layer]) -> Loaded:
    """Build the settings as :func:`build` does, and return the source of every value, too."""
    return _Resolution(layers).result()


class _Resolution:
    """One run of :func:`resolve`, with the values that were given and the problems that were found."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.problems: list[str] = []
        self.given: dict[KeyPath, _Value] = {}
        """What won, converted."""
        self.failed: set[str] = set()
        """Dotted keys with a value that could not be converted; nothing that follows from them is reported."""
        self.named: dict[str, str] = {}
        """Containers that some layer has a table for, and where it stands first."""
        self.derived: dict[KeyPath, str] = {}
        """Origins of values that were neither given nor plain defaults."""
        for layer in layers:
            self._take(layer)

    def result(self) -> Loaded:
        settings = Settings(
            **self._fields(Settings, ()),
            incus=IncusSettings(**self._fields(IncusSettings, ("incus",))),
            network=NetworkSettings(**self._fields(NetworkSettings, ("network",))),
            vault=VaultSettings(**self._fields(VaultSettings, ("vault",))),
            timeouts=TimeoutSettings(**self._fields(TimeoutSettings, ("timeouts",))),
            pytest=PytestSettings(**self._fields(PytestSettings, ("pytest",))),
            expose=ExposeSettings(**self._fields(ExposeSettings, ("expose",))),
            capsules=CapsuleSettings(**self._fields(CapsuleSettings, ("capsules",))),
            slots=SlotSettings(**self._fields(SlotSettings, ("slots",))),
            storage=StorageSettings(**self._fields(StorageSettings, ("storage",))),
            limits=LimitSettings(**self._fields(LimitSettings, ("limits",))),
        )
        settings = structs.replace(
            settings,
            containers=MappingProxyType(dict(self._containers(settings.network))),
            credentials=self._named("credentials"),
            secrets=self._named("secrets"),
        )
        self.problems += [
            self._render(problem) for problem in check(settings) if not self.failed.intersection(problem.keys)
        ]
        if self.problems:
            raise _error(list(dict.fromkeys(self.problems)))
        return Loaded(settings, MappingProxyType(dict(self._origins(settings))))

    # What was given ---------------------------------------------------------------------------------------------

    def _take(self, layer: Layer) -> None:
        self.problems += layer.problems
        raw = dict(self._flat(layer, layer.values, ()))
        answered = {question for path, value in raw.items() if value and (question := _question(path))}
        self.given = {path: value for path, value in self.given.items() if _question(path) not in answered}
        for path, value in raw.items():
            key = keys.find(path)
            assert key is not None, "_flat yields known keys only"
            where = layer.where(path)
            try:
                self.given[path] = _Value(_tidy(path, convert(key, value)), where)
            except BadValue as error:
                self.failed.add(dotted(path))
                self.problems += [f"{where}{fault.part}: {fault.text}" for fault in error.faults]

    def _flat(self, layer: Layer, table: Mapping[str, Any], path: KeyPath) -> Iterator[tuple[KeyPath, object]]:
        """The known keys in `table` with their raw values; what is not known is a problem."""
        for name, value in table.items():
            here = (*path, name)
            if value is None:
                continue
            if path == ("containers",):
                self.named.setdefault(name, layer.where(here))
            if keys.find(here):
                yield here, value
            elif not keys.is_table(here):
                self.problems.append(f"{layer.where(here)}: {_unknown(here)}")
            elif isinstance(value, Mapping):
                yield from self._flat(layer, value, here)
            elif path == ("containers",) and isinstance(value, (bool, str)):
                yield (*here, "enabled"), value  # `containers.llm = false`
            else:
                self.problems.append(f"{layer.where(here)}: {dotted(here)} is a table of settings, not one value")

    # What it makes ----------------------------------------------------------------------------------------------

    def _fields(self, model: type[Any], table: KeyPath) -> dict[str, Any]:
        """The given values of the keys directly in `table`."""
        paths = ((*table, field.name) for field in structs.fields(model))
        return {path[-1]: self.given[path].value for path in paths if path in self.given}

    def _containers(self, network: NetworkSettings) -> Iterator[tuple[str, ContainerSettings]]:
        defaults = default_containers()
        dropped = {path[1] for path, given in self.given.items() if path[-1] == "enabled" and not given.value}
        kept = [name for name in dict.fromkeys((*defaults, *self.named)) if name not in dropped]
        self._check_dropped(dropped, defaults)
        for name in kept:
            table = ("containers", name)
            fields = self._fields(ContainerSettings, table)
            default_deploy = defaults[name].deploy if name in defaults else {}
            deploy = {path[3]: str(given.value) for path, given in self.given.items() if path[:3] == (*table, "deploy")}
            fields["deploy"] = MappingProxyType({**default_deploy, **deploy})
            if name in defaults:
                default = self._moved(defaults[name], network)
                for field in {"needs", "writes_to"} - fields.keys():
                    fields[field] = tuple(other for other in getattr(default, field) if other in kept)
                yield name, structs.replace(default, **fields)
            else:
                yield name, ContainerSettings(**{"name": name, "address": self._own_address(name, defaults), **fields})

    def _named(self, table: str) -> Mapping[str, Mapping[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for path, given in self.given.items():
            if path[0] == table:
                found.setdefault(path[1], {})[path[2]] = str(given.value)
        return MappingProxyType({name: MappingProxyType(values) for name, values in found.items()})

    def _own_address(self, name: str, defaults: Iterable[str]) -> IPv4Address:
        """Report a problem if a container without a default has no address, and return a placeholder for the
        address."""
        key = f"containers.{name}.address"
        if ("containers", name, "address") not in self.given and key not in self.failed:
            near = nearest(name, defaults)
            hint = f"; did you mean {near}?" if near else ""
            self.problems.append(f"{self.named[name]}: a container of your own needs an `address`{hint}")
            self.failed |= {key, f"containers.{name}"}
        return _NOWHERE

    def _check_dropped(self, dropped: set[str], defaults: Iterable[str]) -> None:
        known = {*defaults, *(path[1] for path in self.given if path[0] == "containers" and path[-1] != "enabled")}
        for name in sorted(dropped - known):
            near = nearest(name, known)
            hint = f"; did you mean {near}?" if near else ""
            where = self.given[("containers", name, "enabled")].where
            self.problems.append(f"{where}: there is no container {name!r} to leave out{hint}")

    def _moved(self, container: ContainerSettings, network: NetworkSettings) -> ContainerSettings:
        """Return a default container with its addresses moved to subnets that are not the default ones."""
        plain = NetworkSettings()
        address, production = container.address, container.production_address
        if network.subnet != plain.subnet:
            address = _same_place(address, plain.subnet, network.subnet)
            self.derived["containers", container.name, "address"] = "default, moved with network.address"
        if network.production != plain.production and production is not None:
            production = _same_place(production, plain.production, network.production)
            self.derived["containers", container.name, "production_address"] = "default, moved with network.production"
        return structs.replace(container, address=address, production_address=production)

    # Where it stands --------------------------------------------------------------------------------------------

    def _origins(self, settings: Settings) -> Iterator[tuple[str, str]]:
        for path in keys.all_keys():
            if path[0] in keys.NAMED:
                yield from ((dotted(here), self._origin(here)) for here in self.given if here[0] == path[0])
                continue
            if keys.ANY not in path:
                yield dotted(path), self._origin(path)
                continue
            if path[:3] == keys.DEPLOY:
                for name, container in settings.containers.items():
                    places = [("containers", name, "deploy", artefact) for artefact in container.deploy]
                    yield from ((dotted(here), self._origin(here)) for here in places)
                continue
            for name in settings.containers:
                here = ("containers", name, *path[2:])
                yield dotted(here), self._origin(here)

    def _origin(self, path: KeyPath) -> str:
        given = self.given.get(path)
        return given.where if given else self.derived.get(path, DEFAULT)

    def _render(self, problem: Problem) -> str:
        # What somebody wrote comes first: that is what can be corrected.
        first, *others = sorted(problem.keys, key=lambda key: self._path(key) not in self.given)
        part = problem.part if first == problem.keys[0] else ""
        text = f"{self._where(first)}{part}: {problem.text}"
        return text + (f" (see also {', '.join(map(self._where, others))})" if others else "")

    def _where(self, key: str) -> str:
        path = self._path(key)
        if path in self.given:
            return self.given[path].where
        if path[0] in keys.NAMED and len(path) == 2:  # a table: where its first value stands
            return next((value.where for given, value in self.given.items() if given[:2] == path), key)
        if path[0] == "containers" and len(path) == 2:
            return self.named.get(path[1], key)
        return key if keys.is_table(path) else f"{key} ({self._origin(path)})"

    def _path(self, key: str) -> KeyPath:
        """Split a dotted key. A container's name may be malformed, and contain dots itself."""
        table, _, rest = key.partition(".")
        if table == "secrets":
            return (table, *rest.rsplit(".", 1))
        if table != "containers" or not rest:
            return tuple(key.split("."))
        return (table, rest) if rest in self.named else (table, *rest.rsplit(".", 1))


def _question(path: KeyPath) -> KeyPath:
    """Return the group that a key belongs to. The highest layer that sets a key of a group hides the group's keys in
    lower layers. The groups are: the sources of the unseal keys, those of the token, and those of each credential.
    Empty: none."""
    if path[0] == "vault":
        question = path[1].partition("_")[0]
        return ("vault", question) if question in {"unseal", "token"} else ()
    if path[0] in keys.NAMED and len(path) == 3:
        return (*path[:2], path[2].removesuffix("_env").removesuffix("_file"))
    return ()


def _unknown(path: KeyPath) -> str:
    if path[:1] == ("containers",) and path[2:] == ("name",):
        return "a container's name is that of its table; `source` names the one to clone"
    return f"unknown key {path[-1]!r}{keys.suggest(path)}"


def _tidy(path: KeyPath, value: object) -> object:
    """Return a value in its one normal form, if it can be written in several."""
    if not isinstance(value, tuple):
        return value
    if path[-1] == "units":
        return tuple(unit if unit.endswith(_UNIT_SUFFIXES) else f"{unit}.service" for unit in value)
    if path[-1] in {"wipe", "logs"}:
        return tuple(folder[:-1] if len(folder) > 1 and folder.endswith("/") else folder for folder in value)
    return value


def _same_place(address: IPv4Address, old: IPv4Network, new: IPv4Network) -> IPv4Address:
    """Return the address with the same position in `new` as `address` has in `old`: 10.0.3.11 becomes 10.0.7.11."""
    place = int(new.network_address) + int(address) - int(old.network_address)
    return IPv4Address(place) if place < 2**32 else address


def _error(problems: Sequence[str]) -> SettingsError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, start=1))
    return SettingsError(
        f"{count} in the settings:\n{listed}",
        remedy="correct every line above; `python -m pytest_stagegbo.settings.reference` lists all keys and defaults",
    )
