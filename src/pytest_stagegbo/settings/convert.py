"""Converts a raw value to the type that the model requires, or says what is wrong with it.

Text is taken for every type, since environment variables and ini files have nothing else. For a list it is a JSON
array when it begins with `[`, and words separated by commas otherwise; for a command it is split as a shell does.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct, structs

from pytest_stagegbo.settings.keys import NAMED, Key
from pytest_stagegbo.settings.model import ProbeSettings
from pytest_stagegbo.text import nearest
from pytest_stagegbo.truth import truth

__all__ = ["BadValue", "Fault", "convert", "type_word"]

_WORDS: Mapping[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Union[int, Literal["auto"]]: "a whole number, or `auto`",  # noqa: UP007 (as below)
    IPv4Address: "an IPv4 address",
    Optional[IPv4Address]: "an IPv4 address, or empty",  # noqa: UP045 (the key must be spelled for Python 3.10 too)
    IPv4Interface: "an IPv4 address with a prefix length, such as 10.0.3.1/24",
    IPv4Network: "an IPv4 network, such as 10.0.2.0/24",
    tuple[str, ...]: "a list of text",
    tuple[ProbeSettings, ...]: "a list of tables with `protocol` and `port`",
}

_UNSHOWN = "the value (not shown)"


class Fault(Struct, frozen=True):
    """What is wrong with a value."""

    text: str
    part: str = ""
    """Which part of the value: `[0].port`. Empty: all of it."""


class BadValue(Exception):
    """Raised when a value can't be converted. It never leaves this package."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*(fault.text for fault in faults))
        self.faults = faults


def type_word(type_: Any) -> str:
    """Return the name of a type for messages and for the reference."""
    if get_origin(type_) is Literal:
        return "one of " + ", ".join(f"`{word}`" for word in get_args(type_))
    return _WORDS[type_]


def convert(key: Key, value: object) -> object:
    """Convert `value` to the type of `key`.

    Raises:
        BadValue: It cannot be that. What stands under `vault`, `credentials` and `secrets` is not repeated: it is a
            secret, or someone may have put one there.
    """
    # Mistaking a key for the file that holds it is easy, and errors end up in logs.
    show: Callable[[object], str] = (lambda _: _UNSHOWN) if key.path[0] in {"vault", *NAMED} else repr
    if key.type == tuple[ProbeSettings, ...]:
        return _probes(value, show)
    if key.type == tuple[str, ...]:
        return _words(value, show, command=key.path[-1].endswith("_command"))
    return _single(value, key.type, show)


def _single(value: object, type_: Any, show: Callable[[object], str]) -> object:
    if isinstance(value, str) and type_ is not str:
        value = value.strip()
    if value == "" and type(None) in get_args(type_):
        return None
    if type_ is bool and isinstance(value, str):
        said = truth(value)
        value = value if said is None else said
    if isinstance(value, str) and (fault := _null(value, show)):
        raise BadValue(fault)
    try:
        return msgspec.convert(value, type_, strict=False, dec_hook=_address)
    except (msgspec.ValidationError, ValueError):
        text = f"{show(value)} is not {type_word(type_)}"
    if type_ is str and isinstance(value, (int, float)):
        text += "; put it in quotes"
    if type_ is IPv4Network and isinstance(value, str) and "/" in value:
        with contextlib.suppress(ValueError):
            text += f"; did you mean {IPv4Network(value, strict=False)}?"
    raise BadValue(Fault(text))


def _null(text: str, show: Callable[[object], str], command: bool = False) -> Fault | None:
    """The system takes no NUL byte in a path, a variable or a command. Names and addresses are checked for more."""
    return Fault(f"{show(text)} has a NUL byte") if "\0" in text and (command or show is not repr) else None


def _address(type_: type[Any], value: object) -> object:
    """msgspec's hook for types that it does not know. It turns a `ValueError` into its own error."""
    # ipaddress would also take integers, and read an address without a prefix length as a network of one.
    if not isinstance(value, str) or (type_ is not IPv4Address and "/" not in value):
        raise ValueError
    return type_(value)


def _words(value: object, show: Callable[[object], str], *, command: bool) -> tuple[str, ...]:
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            value = _json(value, show)
        elif command:
            try:
                value = shlex.split(value)
            except ValueError as error:
                raise BadValue(Fault(f"{show(value)} cannot be split into words: {error}")) from None
        else:
            value = [word for part in value.split(",") if (word := part.strip())]
    if not isinstance(value, (list, tuple)):
        raise BadValue(Fault(f"{show(value)} is not {type_word(tuple[str, ...])}"))
    faults = [
        Fault(f"{show(word)} is not text" if word != "" else "the text is empty", f"[{index}]")
        for index, word in enumerate(value)
        if not isinstance(word, str) or not word
    ]
    faults += [fault for word in value if isinstance(word, str) and (fault := _null(word, show, command))]
    if faults:
        raise BadValue(*faults)
    return tuple(value)


def _probes(value: object, show: Callable[[object], str]) -> tuple[ProbeSettings, ...]:
    if isinstance(value, str):
        value = _json(value, show) if value.strip() else []
    if not isinstance(value, (list, tuple)):
        raise BadValue(Fault(f"{show(value)} is not {type_word(tuple[ProbeSettings, ...])}"))
    probes: list[ProbeSettings] = []
    faults: list[Fault] = []
    for index, item in enumerate(value):
        try:
            probes.append(_probe(item, show))
        except BadValue as error:
            faults += [Fault(fault.text, f"[{index}]{fault.part}") for fault in error.faults]
    if faults:
        raise BadValue(*faults)
    return tuple(probes)


def _probe(item: object, show: Callable[[object], str]) -> ProbeSettings:
    if isinstance(item, ProbeSettings):
        return item
    if not isinstance(item, Mapping):
        raise BadValue(Fault(f"{show(item)} is not a table with `protocol` and `port`"))
    types = get_type_hints(ProbeSettings)
    faults = []
    for name in item:
        if name not in types:
            near = nearest(str(name), types)
            faults.append(Fault("unknown key" + (f"; did you mean {near}?" if near else ""), f".{name}"))
    given: dict[str, Any] = {}
    for field in structs.fields(ProbeSettings):
        if field.name in item:
            try:
                given[field.name] = _single(item[field.name], types[field.name], show)
            except BadValue as error:
                faults += [Fault(fault.text, f".{field.name}") for fault in error.faults]
        elif field.required:
            faults.append(Fault(f"a probe needs `{field.name}`, {type_word(types[field.name])}"))
    if faults:
        raise BadValue(*faults)
    return ProbeSettings(**given)


def _json(text: str, show: Callable[[object], str]) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadValue(Fault(f"{show(text)[:200]} is not a JSON array")) from None
