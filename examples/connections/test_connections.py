"""Clients of module scope, over resets of the services that they are connected to.

Each recipe is a fixture. Its first test leaves an open connection behind, and the second one resets the service before
it begins, so the recipe has to notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy
import valkey
from psycopg_pool import ConnectionPool
from valkey.backoff import ExponentialBackoff
from valkey.exceptions import ConnectionError as Lost
from valkey.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.stage import Service, Stage

Pool = ConnectionPool[psycopg.Connection[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def pool(stage_tables: Service) -> Iterator[Pool]:
    # Without `check`, the pool hands out connections that the reset has ended.
    with ConnectionPool(str(stage_tables.dsn), min_size=2, check=ConnectionPool.check_connection) as found:
        found.wait()
        yield found


@pytest.fixture(scope="module")
def engine(stage_tables: Service) -> Iterator[sqlalchemy.Engine]:
    url = sqlalchemy.make_url(str(stage_tables.dsn)).set(drivername="postgresql+psycopg")
    # A connection that was lost is noticed before it is used, and all older ones are thrown away with it.
    found = sqlalchemy.create_engine(url, pool_pre_ping=True)
    yield found
    found.dispose()


@pytest.fixture(scope="module")
def cache(stage_cache: Service) -> Iterator[valkey.Valkey]:
    # The command that finds its connection lost is sent again on a new one. Commands that may not run twice (INCR,
    # LPUSH) don't belong here: nobody knows whether the lost one was done.
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=5)
    found = valkey.Valkey.from_url(str(stage_cache.dsn), retry=retry, retry_on_error=[Lost])
    yield found
    found.close()  # type: ignore[no-untyped-call] # valkey-py's own


def _pid(connection: Any) -> int:
    return int(connection.execute("SELECT pg_backend_pid()").fetchone()[0])


class TestPool:
    """psycopg's pool, over a reset of tables."""

    before: set[int]

    def test_has_connections(self, pool: Pool) -> None:
        with pool.connection() as one, pool.connection() as other:
            type(self).before = {_pid(one), _pid(other)}

    @pytest.mark.stage_reset("tables")
    def test_has_new_ones_after_a_reset(self, pool: Pool) -> None:
        with pool.connection() as one, pool.connection() as other:
            assert not {_pid(one), _pid(other)} & self.before


class TestEngine:
    """SQLAlchemy's engine, over a reset of tables."""

    def test_is_connected(self, engine: sqlalchemy.Engine) -> None:
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT count(*) FROM users"))

    @pytest.mark.stage_reset("tables")
    def test_connects_again_after_a_reset(self, engine: sqlalchemy.Engine) -> None:
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT count(*) FROM users"))


class TestCache:
    """valkey-py; redis-py has the same names in `redis`."""

    def test_is_connected(self, cache: valkey.Valkey) -> None:
        cache.set("left", "here")

    @pytest.mark.stage_reset("cache")
    def test_connects_again_after_a_reset(self, cache: valkey.Valkey) -> None:
        assert cache.get("left") is None


@pytest.mark.stage_reset("cache")
def test_a_subscription_is_made_again(cache: valkey.Valkey, stage_gbo: Stage) -> None:
    """What was published while it was cut off is lost: pub/sub keeps nothing. Publish again, or use a stream."""
    with cache.pubsub() as subscription:  # type: ignore[no-untyped-call] # valkey-py's own
        subscription.subscribe("news")
        assert _next(subscription)["type"] == "subscribe"
        stage_gbo.reset("cache")
        # The client connects and subscribes by itself when it is read from; it has done so when it says "subscribe".
        assert _next(subscription)["type"] == "subscribe"
        cache.publish("news", "after the reset")
        assert _next(subscription)["data"] == b"after the reset"


def _next(subscription: Any) -> Any:
    message = subscription.get_message(timeout=10)
    assert message is not None, "nothing within 10 s"
    return message
