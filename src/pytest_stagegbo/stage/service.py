"""One container of the stage, as tests get it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from pytest_stagegbo.credentials.secret import Hidden
from pytest_stagegbo.errors import CommandFailed, MissingRequirement, SettingsError
from pytest_stagegbo.guest.logs import Wanted, fetch_script, moment, parse, show, token
from pytest_stagegbo.settings.addresses import endpoints, in_the_stage
from pytest_stagegbo.stage.environment import DATABASE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from pytest_stagegbo.credentials.lookup import Credentials
    from pytest_stagegbo.credentials.secret import Secret
    from pytest_stagegbo.incus import CommandResult
    from pytest_stagegbo.settings import ContainerSettings, Settings
    from pytest_stagegbo.settings.addresses import Endpoint, Place

__all__ = ["Service"]

LINES = 200
LOG_SECONDS = 30.0
LOG_BYTES = 4 << 20
"""Bytes that are read of each log."""


class Service:
    """A container of the stage and the service in it.

    No request is made before something is asked for. Address and ports are the stage's own, whatever Vault says.

    Args:
        execute: Runs a command in a container of the stage: its name, the command, seconds or None.
        place: Tells where programs of this machine find an address and a port of the stage.
    """

    __slots__ = ("_container", "_credentials", "_execute", "_place", "_settings")

    def __init__(
        self,
        settings: Settings,
        container: ContainerSettings,
        credentials: Credentials,
        execute: Callable[[str, Sequence[str], float | None], CommandResult],
        place: Place = in_the_stage,
    ) -> None:
        self._container = container
        self._settings = settings
        self._credentials = credentials
        self._execute = execute
        self._place = place

    @property
    def name(self) -> str:
        """The name of the container in the stage."""
        return self._container.name

    @property
    def settings(self) -> ContainerSettings:
        return self._container

    @property
    def host(self) -> str:
        """The clone's address on the stage's network. Where this machine has no direct way there, the address of its
        own loopback: only `port` and `ports` lead to the clone then."""
        own = str(self._container.address)
        return self._place(own, self._container.probes[0].port)[0] if self._container.probes else own

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it answers, one for each probe of the settings."""
        found = endpoints(self._settings, self._place)
        return tuple(each for each in found if each.container == self.name)

    @property
    def protocol(self) -> str:
        """The protocol of the first probe: `postgresql`, `valkey`, `vault`, `s3`, `http` or `tcp`."""
        return self._first.protocol

    @property
    def port(self) -> int:
        """The port of the first probe. Raises `SettingsError` when the container has none."""
        return self._first.port

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports of all probes; empty when the container has none."""
        return tuple(endpoint.port for endpoint in self.endpoints)

    @property
    def tls(self) -> bool:
        """Whether the first port speaks TLS."""
        return bool(self._container.probes) and self._container.probes[0].tls

    @property
    def url(self) -> str:
        """Scheme, host and first port, without credentials: `http://10.0.3.14:9100`, `postgresql://10.0.3.11:5432`."""
        return self._first.url

    @property
    def dsn(self) -> str:
        """The address with the credentials in it, of PostgreSQL and Valkey. Its `repr` is masked, its text is not.

        `postgresql://user:password@host:port/database`; `redis://:password@host:port/0` (`rediss` with TLS).

        Raises:
            SettingsError: The service speaks another protocol, which has no such thing: use `url`.
            MissingRequirement: There are no credentials.
            StageGboError: They can't be had; see `Credentials`.
        """
        if self.protocol == "postgresql":
            found = self.credential("user", "password")
            user, password = quote(found.user, safe=""), quote(found.password, safe="")
            ending = "?sslmode=require" if self.tls else ""
            database = quote(found.database or DATABASE, safe="")
            return Hidden(f"postgresql://{user}:{password}@{self.host}:{self.port}/{database}{ending}")
        if self.protocol == "valkey":
            found = self.credentials
            login = f"{quote(found.user, safe='')}:{quote(found.password, safe='')}@" if found.password else ""
            return Hidden(f"redis{'s' if self.tls else ''}://{login}{self.host}:{self.port}/0")
        raise SettingsError(
            f"{self.name} speaks {self.protocol}, which has no dsn", remedy="use `url` and `credentials`"
        )

    @property
    def credentials(self) -> Secret:
        """From the settings and from Vault, fetched once; empty when neither has any. Raises like `Credentials`."""
        return self._credentials[self.name]

    def credential(self, *fields: str) -> Secret:
        """The credentials, when they have all these fields (`user`, `password`, ...).

        Raises:
            MissingRequirement: One is missing; says how to give it.
        """
        found = self.credentials
        missing = [field for field in fields if not getattr(found, field)]
        if missing:
            raise MissingRequirement(
                f"{self.name}: no {' and no '.join(missing)} among its credentials",
                seen=f"{found.source}: {', '.join(found)}" if found else "nothing in Vault and nothing in the settings",
                remedy=f"write it to Vault, or give it with the setting credentials.{self.name}.{missing[0]}_env",
            )
        return found

    def exec(self, *argv: str, check: bool = True, timeout: float | None = None) -> CommandResult:
        """Run a command in the container as root: `stage.tables.exec("systemctl", "stop", "postgresql")`.

        Args:
            check: Whether a status other than 0 is an error.
            timeout: Seconds; None: as for every operation of Incus (`timeouts.operation`).

        Returns:
            `status`, and `stdout` and `stderr` as text, not masked.

        Raises:
            CommandFailed: It ended with another status than 0, and `check` is on. Quotes the end of what it printed,
                secrets masked.
            StageMissing: The container does not exist or does not run.
            OperationFailed: It did not end in time.
        """
        result = self._execute(self.name, argv, timeout)
        if check and result.status:
            printed = self._credentials.mask((result.stderr.strip() or result.stdout.strip())[-2000:])
            raise CommandFailed(
                f"{argv[0]} in {self.name} ended with status {result.status}",
                seen=printed,
                remedy=f"look inside with `stagegbo shell {self.name}`",
            )
        return result

    def logs(self, since: datetime | float | None = None, lines: int = LINES) -> str:
        """The journal of its units, and the ten files in its log folders that were written to last.

        Each has a heading: `journal:`, `file /opt/gbo/logs/...:`.

        Secrets are masked: those of the stage's services, and what looks like one.

        Args:
            since: A moment; a number is seconds since the epoch, as `time.time()` gives them. Lines before it are
                left out. None: whatever is there.
            lines: At most so many of the journal and of each file, the last ones, and at most 4 MiB.

        Raises:
            StageMissing: The container does not exist or does not run.
        """
        head, wanted = token(), Wanted(lines, None if since is None else moment(since), size=LOG_BYTES)
        result = self._execute(self.name, ("sh", "-c", fetch_script(self._container, head, wanted)), LOG_SECONDS)
        self._credentials.load()
        return show(parse(result.stdout, head, wanted, self._credentials.mask))

    def __repr__(self) -> str:
        where = self._first.url if self._container.probes else self.host
        return f"<Service {self.name} at {where}>"

    @property
    def _first(self) -> Endpoint:
        found = self.endpoints
        if not found:
            raise SettingsError(
                f"{self.name} has no probe, so its port is not known",
                remedy=f"set containers.{self.name}.probes",
            )
        return found[0]
