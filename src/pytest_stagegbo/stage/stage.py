"""The stage, as tests get it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_stagegbo.credentials.lookup import Credentials
from pytest_stagegbo.errors import SettingsError, StageMissing
from pytest_stagegbo.realfiles import real_files
from pytest_stagegbo.stage.environment import variables
from pytest_stagegbo.stage.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Protocol

    from pytest_stagegbo.changes import Changes
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import CommandResult
    from pytest_stagegbo.settings import Settings

    class StageBaselines(Protocol):
        """Saves baselines for the run of pytest that uses the stage."""

        def save(self, name: str) -> None: ...

        def needs(self, name: str) -> bool: ...


__all__ = ["Stage"]


class Stage:
    """A stage that is there: its services, and what can be done with all of them.

    No request is made at construction. Safe to share between threads.

    Args:
        engine: Of the stage.
        credentials: Instead of those that the engine's settings and the stage's Vault give.
        reset: Does a reset of the containers that it gets the names of. None: the stage can't be reset.
        baselines: None: no baselines can be saved.
    """

    __slots__ = ("__weakref__", "_baselines", "_credentials", "_engine", "_reset", "_services")

    def __init__(
        self,
        engine: StageEngine,
        *,
        credentials: Credentials | None = None,
        reset: Callable[[tuple[str, ...]], None] | None = None,
        baselines: StageBaselines | None = None,
    ) -> None:
        self._engine = engine
        self._reset = reset
        self._baselines = baselines
        self._credentials = credentials or Credentials(engine.settings, engine.reader)
        self._services: Mapping[str, Service] = MappingProxyType(
            {
                name: Service(engine.settings, container, self._credentials, self._execute, engine.way.place)
                for name, container in engine.settings.containers.items()
            }
        )

    def __repr__(self) -> str:
        return f"<Stage {self.project}: {', '.join(self._services)}>"

    @property
    def project(self) -> str:
        """The Incus project."""
        return self._engine.settings.project

    @property
    def settings(self) -> Settings:
        """The settings of this stage. Those of a slot have its addresses."""
        return self._engine.settings

    @property
    def services(self) -> Mapping[str, Service]:
        """Every container of the settings, by name."""
        return self._services

    def __getitem__(self, name: str) -> Service:
        """A container by its name. Raises `SettingsError` when the settings have none of that name."""
        try:
            return self._services[name]
        except KeyError:
            raise SettingsError.unknown("the stage has no container", [name], self._services) from None

    @property
    def system(self) -> Service:
        """BotServer and BotUI, over HTTP."""
        return self["system"]

    @property
    def tables(self) -> Service:
        """PostgreSQL. `dsn` has the credentials."""
        return self["tables"]

    @property
    def vault(self) -> Service:
        """HashiCorp Vault or OpenBao. `credentials.token` opens it."""
        return self["vault"]

    @property
    def cache(self) -> Service:
        """Valkey. `dsn` has the password."""
        return self["cache"]

    @property
    def drive(self) -> Service:
        """MinIO, or what else speaks S3. `credentials` has `access_key` and `secret_key`."""
        return self["drive"]

    @property
    def llm(self) -> Service:
        """The model's server. An OpenAI-style API is below `url` + `/v1`."""
        return self["llm"]

    @property
    def credentials(self) -> Credentials:
        """The credentials of all services, by container. They are read at the first access."""
        return self._credentials

    @real_files()
    def reset(self, *names: str) -> None:
        """Stop these containers' services, clear their data, start them and wait until they answer.

        Args:
            names: Containers; `all`: those whose data the stage wipes. None is like `all`.

        Raises:
            SettingsError: There is no such container, or it keeps its data.
            StageGboError: It could not be done.
        """
        if self._reset is None:
            raise SettingsError("this stage can't be reset from here", remedy="run `stagegbo reset NAME`")
        self._reset(names or ("all",))

    @real_files()
    def changes(self, *names: str) -> Changes:
        """What changed in these containers since each of them was clean: rows, sequences, schema, keys, objects, files.

        ::

            stage.reset("cache", "drive")
            log_in("alice")
            assert [str(each) for each in stage.changes("cache")] == ["session:*: 1 key added (string)"]
            assert not stage.changes("drive")

        What others did meanwhile is in it as well, BotServer for example: `stage_quiet` keeps it still.

        Args:
            names: Containers; none: all of the stage that resets empty or bring back.

        Raises:
            SettingsError: There is no such container.
            StageGboError: The stage is not there.
        """
        from pytest_stagegbo.changes import read_changes

        resettable = [name for name, each in self.settings.containers.items() if each.wipe or each.data]
        containers = [self[name].settings for name in names or resettable]
        return read_changes(self._engine.resetter(), containers)

    @real_files()
    def save_baseline(self, name: str) -> None:
        """Keep what tables, cache, drive and system hold at this moment, for tests of this run that are marked with
        `stage_baseline(name)`. One that this run has saved under that name before is replaced.

        For a fixture of such a test: the marker keeps these containers from other tests.

        Raises:
            NotHeld: The test that runs is not marked so.
            StageGboError: It could not be done.
        """
        self._baselined().save(name)

    @real_files()
    def needs_baseline(self, name: str) -> bool:
        """Whether this stage has no baseline of that name which this run may use: none that it has saved, and none of
        `stagegbo baseline save`. Workers of pytest-xdist that share a stage share its baselines."""
        return self._baselined().needs(name)

    def _baselined(self) -> StageBaselines:
        if self._baselines is None:
            raise SettingsError(
                "no baseline can be saved from here", remedy="run `stagegbo baseline save NAME`, or use stage_gbo"
            )
        return self._baselines

    def env(self, *, vault_token: bool | None = None) -> dict[str, str]:
        """Variables for a child process on this host, such as a BotServer under test, to be put over its own:
        `subprocess.run(..., env={**os.environ, **stage.env()})`.

        - `STAGEGBO_ENDPOINT_<NAME>_HOST`, `_PORT` and `_URL` for every container, as `stagegbo endpoints --env`
          prints them; `_2_HOST` and so on for its second port;
        - `BOTSERVER_URL`, `BOTUI_URL`;
        - `DATABASE_URL`, `DB_HOST`, `DB_PORT`, `DB_USER`, `DB_PASSWORD`, `DB_NAME`;
        - `REDIS_URL`;
        - `AWS_ENDPOINT_URL`, `S3_ENDPOINT` (the same), `AWS_REGION`, `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`,
          `AWS_SECRET_ACCESS_KEY`;
        - `OPENAI_BASE_URL`, `OPENAI_API_KEY` (`none` where the model wants no key);
        - `VAULT_ADDR`, and `VAULT_TOKEN` under the condition below.

        What there are no credentials for is left out.

        Args:
            vault_token: Whether `VAULT_TOKEN` is given.

                **True is dangerous.** The stage's Vault is a copy of production's, and so are the addresses in it.
                Inside the stage these belong to the clones; on the host they are production's own. A BotServer
                on the host that gets the token asks Vault where its database is, and writes to production's.
                None gives the token only when no secret below `vault.kv_path` names an address of production,
                which takes a token that may list them; when that can't be told, it is left out.
                Variables of the same name in the child's own environment are not touched.

        Returns:
            Names and values. Values that are secrets have a masked `repr`.

        Raises:
            StageGboError: Credentials can't be had: Vault is sealed, or denies them; see `Credentials`.
        """
        return variables(self, self._credentials, vault_token)

    @real_files()
    def _execute(self, name: str, argv: Sequence[str], timeout: float | None) -> CommandResult:
        clone = self._engine.clone(name)
        if not clone.is_running:
            raise StageMissing(f"{name} is {clone.status.lower()}", remedy="run `stagegbo provision`")
        return self._engine.clone_writer().execute(name, argv, timeout=timeout)
