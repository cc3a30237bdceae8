"""The fixtures: the stage, its containers, and connected clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_stagegbo.plugin.stash import DEMAND, PROCESS, PROVISIONING, RESERVATIONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import hvac
    import openai
    import psycopg
    from mypy_boto3_s3 import S3Client
    from valkey import Valkey
    from valkey.asyncio import Valkey as AsyncValkey

    from pytest_stagegbo.changes import Changes
    from pytest_stagegbo.credentials import Credentials
    from pytest_stagegbo.settings import Settings
    from pytest_stagegbo.stage import Service, Stage


@pytest.fixture(scope="session")
def stage_settings(pytestconfig: pytest.Config) -> Settings:
    """The settings of this run, from options, environment, ini and file. In a slot, they have the slot's addresses."""
    return pytestconfig.stash[PROCESS].settings()


@pytest.fixture(scope="session")
def stage_credentials() -> Credentials | None:
    """None: credentials are found in the way that BotServer finds them. Override this fixture to give them yourself."""
    return None


@pytest.fixture(scope="session")
def _stage(pytestconfig: pytest.Config, stage_credentials: Credentials | None) -> Stage:
    return pytestconfig.stash[PROVISIONING].stage(stage_credentials)


@pytest.fixture(scope="session")
def stage_gbo(_stage: Stage) -> Stage:
    """The whole stage. A test that uses it shares all six containers with other tests."""
    return _stage


@pytest.fixture
def stage_fresh(request: pytest.FixtureRequest, stage_credentials: Credentials | None) -> Stage:
    """A whole clean stage that no other test uses. Afterwards it is reset in the background, while the next test has
    another one. With more slots than workers (`--stage-slots`), a clean one is in stock."""
    return request.config.stash[RESERVATIONS].fresh(request.node, stage_credentials)


@pytest.fixture(scope="session")
def stage_system(_stage: Stage) -> Service:
    """BotServer and BotUI."""
    return _stage.system


@pytest.fixture(scope="session")
def stage_tables(_stage: Stage) -> Service:
    """PostgreSQL."""
    return _stage.tables


@pytest.fixture(scope="session")
def stage_vault(_stage: Stage) -> Service:
    """Vault."""
    return _stage.vault


@pytest.fixture(scope="session")
def stage_cache(_stage: Stage) -> Service:
    """Valkey."""
    return _stage.cache


@pytest.fixture(scope="session")
def stage_drive(_stage: Stage) -> Service:
    """S3."""
    return _stage.drive


@pytest.fixture(scope="session")
def stage_llm(_stage: Stage) -> Service:
    """llama.cpp."""
    return _stage.llm


@pytest.fixture
def stage_changes(request: pytest.FixtureRequest, _stage: Stage) -> Callable[..., Changes]:
    """`stage_changes("cache")` reads what changed in containers since they were clean; without names, in all that the
    test uses. It makes the test use no further container, so `stage_quiet` still freezes the others."""

    def read(*names: str) -> Changes:
        demand = request.node.stash.get(DEMAND, None)
        if not names and demand is None:
            pytest.fail("stage_changes() needs the name of a container, since this test uses none", pytrace=False)
        return _stage.changes(*(names or sorted(demand.uses)))

    return read


@pytest.fixture
def stage_psycopg(_stage: Stage, stage_tables: Service) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A psycopg connection to the stage's database."""
    from pytest_stagegbo.stage import clients

    with clients.postgres(_stage) as connection:
        yield connection


@pytest.fixture
def stage_valkey(_stage: Stage, stage_cache: Service) -> Iterator[Valkey]:
    """A valkey client of the stage's cache."""
    from pytest_stagegbo.stage import clients

    with clients.valkey(_stage) as client:
        yield client


@pytest.fixture
async def stage_psycopg_async(
    _stage: Stage, stage_tables: Service
) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
    """An asynchronous psycopg connection to the stage's database, for tests of pytest-asyncio or anyio."""
    from pytest_stagegbo.stage import clients

    async with clients.postgres_async(_stage) as connection:
        yield connection


@pytest.fixture
async def stage_valkey_async(_stage: Stage, stage_cache: Service) -> AsyncIterator[AsyncValkey]:
    """An asynchronous valkey client of the stage's cache, for tests of pytest-asyncio or anyio."""
    from pytest_stagegbo.stage import clients

    async with clients.valkey_async(_stage) as client:
        yield client


@pytest.fixture
def stage_s3(_stage: Stage, stage_drive: Service) -> Iterator[S3Client]:
    """An S3 client of the stage's drive."""
    from pytest_stagegbo.stage import clients

    with clients.s3(_stage) as client:
        yield client


@pytest.fixture
def stage_hvac(_stage: Stage, stage_vault: Service) -> Iterator[hvac.Client]:
    """A hvac client of the stage's Vault."""
    from pytest_stagegbo.stage import clients

    with clients.vault(_stage) as client:
        yield client


@pytest.fixture
def stage_openai(_stage: Stage, stage_llm: Service) -> Iterator[openai.OpenAI]:
    """An OpenAI client of the stage's llm."""
    from pytest_stagegbo.stage import clients

    with clients.llm(_stage) as client:
        yield client
