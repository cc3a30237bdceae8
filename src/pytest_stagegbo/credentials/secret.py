"""What one service wants to see before it lets anybody in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Hidden", "Secret", "addresses", "is_location", "is_public"]

ALIASES: Mapping[str, tuple[str, ...]] = {
    "user": ("user", "username", "login"),
    "password": ("password", "passwd", "pass"),
    "database": ("database", "dbname", "db"),
    "access_key": ("access_key", "accesskey", "access_key_id", "aws_access_key_id"),
    "secret_key": ("secret_key", "secretkey", "secret_access_key", "aws_secret_access_key", "secret"),
    "token": ("token", "api_key", "apikey", "key"),
}
"""The names under which each field is found, the first that is there."""

_PUBLIC = frozenset((*ALIASES["user"], *ALIASES["database"], "region", "bucket", "model", "schema", "sslmode"))
_LOCATION = re.compile(r"(?:.*_)?(?:host|hostname|port|address|addr|server|url|uri|dsn|endpoint)")
_IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")


class Hidden(str):
    """A text whose `repr` is `'***'`, so that tracebacks, assertions and logged dictionaries don't show it.

    Anything else, such as `print` or an f-string, shows it like any text.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def is_location(name: str) -> bool:
    """Whether a key of a secret says where a service is."""
    return _LOCATION.fullmatch(name.lower()) is not None


def is_public(name: str) -> bool:
    """Whether the value of a key may be seen."""
    return name.lower() in _PUBLIC


def addresses(text: str) -> Iterator[IPv4Address]:
    """Every IPv4 address that is written somewhere in `text`."""
    for word in _IPV4.findall(text):
        try:
            yield IPv4Address(word)
        except AddressValueError:
            continue


class Secret(Mapping[str, str]):
    """Credentials of one service. Frozen; not picklable; its `repr` shows names, and values that are no secrets.

    As a mapping it has the keys as Vault or the settings name them, all values as text. What says where the service
    is (`host`, `port`, `url`, whatever names an address of production) is not among them: in a clone's Vault those
    are production's. `Service.host` and `Service.port` are the stage's.

    Args:
        values: Keys and values, as found.
        source: Where they were found, for people: `Vault secret/gbo/tables`.
        of_production: Tells addresses of production from others.
    """

    __slots__ = ("_values", "source", "withheld")

    def __init__(
        self,
        values: Mapping[str, object],
        source: str = "",
        *,
        of_production: Callable[[IPv4Address], bool] = lambda _: False,
    ) -> None:
        kept: dict[str, str] = {}
        withheld: list[str] = []
        for name, value in values.items():
            text = value if isinstance(value, str) else "" if value is None else str(value)
            if is_location(name) or any(map(of_production, addresses(text))):
                withheld.append(name)
            else:
                kept[name] = text if is_public(name) else Hidden(text)
        self._values = kept
        self.source = source
        """Where they were found, for people; empty when nothing was."""
        self.withheld = tuple(withheld)
        """Names of keys that are not handed out, since they lead to production."""

    @property
    def user(self) -> str:
        return self._field("user")

    @property
    def password(self) -> str:
        return self._field("password")

    @property
    def database(self) -> str:
        return self._field("database")

    @property
    def access_key(self) -> str:
        """The S3 access key."""
        return self._field("access_key")

    @property
    def secret_key(self) -> str:
        """The S3 secret key."""
        return self._field("secret_key")

    @property
    def token(self) -> str:
        """Vault's token, or the key of an API."""
        return self._field("token")

    def merged(self, values: Mapping[str, str], source: str) -> Secret:
        """These with `values` over them, whatever name the same field has here and there."""
        if not values:
            return self
        fields = {field for field in ALIASES if any(name in values for name in ALIASES[field])}
        hidden = {name for field in fields for name in ALIASES[field]}
        kept = {name: value for name, value in self._values.items() if name not in hidden}
        merged = Secret({**kept, **values}, f"{source}, then {self.source}" if self.source else source)
        merged.withheld = tuple(dict.fromkeys((*self.withheld, *merged.withheld)))
        return merged

    def secrets(self) -> tuple[str, ...]:
        """The values that must not be seen."""
        return tuple(str(value) for name, value in self._values.items() if not is_public(name))

    def _field(self, field: str) -> str:
        """Empty when it is not there."""
        lower = {name.lower(): value for name, value in self._values.items()}
        return next((lower[name] for name in ALIASES[field] if name in lower), "")

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = [f"{name}={value if is_public(name) else '***'}" for name, value in self._values.items()]
        return f"Secret({', '.join(shown)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials are not pickled")
