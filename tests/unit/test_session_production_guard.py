"""The process of the tests does not connect to production. A part of the loopback network is production here."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from pytest_stagegbo.errors import ProductionAccessError
from pytest_stagegbo.session.production_guard import ProductionGuard
from pytest_stagegbo.settings import Settings
from pytest_stagegbo.settings.model import IncusSettings, default_containers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PRODUCTION = "127.10.2.11"


def settings(**changes: Any) -> Settings:
    base = Settings()
    network = structs.replace(base.network, production=IPv4Network("127.10.2.0/24"))
    tables = structs.replace(default_containers()["tables"], production_address=IPv4Address(PRODUCTION))
    containers = MappingProxyType({"tables": tables})
    return structs.replace(base, network=network, containers=containers, **changes)


@pytest.fixture
def production() -> Iterator[socket.socket]:
    """A service of production that listens."""
    with socket.create_server((PRODUCTION, 0)) as server:
        server.setblocking(False)
        yield server
        with contextlib.suppress(BlockingIOError):
            server.accept()[0].close()
            pytest.fail("production was connected to")


@pytest.fixture
def port(production: socket.socket) -> int:
    return int(production.getsockname()[1])


@pytest.fixture
def guard() -> Iterator[ProductionGuard]:
    found = ProductionGuard(settings())
    found.begin()
    yield found
    found.end()


def connect(host: str, port: int) -> None:
    with socket.socket() as client:
        client.connect((host, port))


def connect_ex(host: str, port: int) -> None:
    with socket.socket() as client:
        client.connect_ex((host, port))


def mapped(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6) as client:
        client.connect((f"::ffff:{host}", port))


def short(host: str, port: int) -> None:
    """The C library takes this for an address as well."""
    with socket.socket() as client:
        first, second, third, fourth = map(int, host.split("."))
        client.connect((f"{first}.{second}.{third * 256 + fourth}", port))


def sendto(host: str, port: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.sendto(b"x", (host, port))


def sendmsg(host: str, port: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.sendmsg([b"x"], [], 0, (host, port))


def create_connection(host: str, port: int) -> None:
    socket.create_connection((host, port), 2).close()


def in_asyncio(host: str, port: int) -> None:
    async def dial() -> None:
        _, writer = await asyncio.open_connection(host, port)
        writer.close()

    asyncio.run(dial())


def with_urllib3(host: str, port: int) -> None:
    urllib3 = pytest.importorskip("urllib3")
    urllib3.PoolManager(retries=3).request("GET", f"http://{host}:{port}/", timeout=2)


def with_psycopg(host: str, port: int) -> None:
    psycopg = pytest.importorskip("psycopg")
    psycopg.connect(host=host, port=port, connect_timeout=2, dbname="x")


def with_psycopg_s_environment(host: str, port: int) -> None:
    psycopg = pytest.importorskip("psycopg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGHOSTADDR", host)
        patch.setenv("PGPORT", str(port))
        psycopg.connect("dbname=x connect_timeout=2")


def with_async_psycopg(host: str, port: int) -> None:
    psycopg = pytest.importorskip("psycopg")
    asyncio.run(psycopg.AsyncConnection.connect(f"host={host} port={port} dbname=x connect_timeout=2"))


def with_pgconn(way: str, key: str = "hostaddr") -> Callable[[str, int], None]:
    def dial(host: str, port: int) -> None:
        pq = pytest.importorskip("psycopg.pq")
        getattr(pq.PGconn, way)(f"{key}={host} port={port} dbname=x connect_timeout=2".encode())

    dial.__name__ = f"with_pgconn_{way}_{key}"
    return dial


def with_a_name(host: str, port: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0))]
        patch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
        with_pgconn("connect", "host")("tables.production", port)


def with_psycopg2(host: str, port: int) -> None:
    psycopg2 = pytest.importorskip("psycopg2")
    psycopg2.connect(host=host, port=port, dbname="x", connect_timeout=2)


def with_psycopg2_s_environment(host: str, port: int) -> None:
    psycopg2 = pytest.importorskip("psycopg2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGHOST", host)
        patch.setenv("PGPORT", str(port))
        psycopg2.connect("dbname=x connect_timeout=2")


def with_asyncpg(host: str, port: int) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    asyncio.run(asyncpg.connect(host=host, port=port, database="x", user="x", timeout=2, ssl=False))


WAYS = [
    connect,
    connect_ex,
    mapped,
    short,
    sendto,
    sendmsg,
    create_connection,
    in_asyncio,
    with_urllib3,
    with_psycopg,
    with_psycopg_s_environment,
    with_async_psycopg,
    *(with_pgconn(way) for way in ("connect", "connect_start", "ping")),
    with_pgconn("ping", "host"),
    with_a_name,
    with_psycopg2,
    with_psycopg2_s_environment,
    with_asyncpg,
]


@pytest.mark.parametrize("way", [pytest.param(way, id=way.__name__) for way in WAYS])
def test_no_way_leads_there(guard: ProductionGuard, port: int, way: Callable[[str, int], None]) -> None:
    """The fixture `production` sees at the end that nobody came."""
    with pytest.raises(ProductionAccessError, match=PRODUCTION):
        way(PRODUCTION, port)
    assert guard


@pytest.mark.parametrize("way", ["reset", "reset_start"])
def test_a_connection_that_was_made_before_does_not_connect_again(guard: ProductionGuard, way: str) -> None:
    pq = pytest.importorskip("psycopg.pq")
    with socket.socket() as listen_error:
        listen_error.bind((PRODUCTION, 0))
        guard.now("before", lifted=True)
        options = f"hostaddr={PRODUCTION} port={listen_error.getsockname()[1]} dbname=x connect_timeout=2"
        connection = pq.PGconn.connect_start(options.encode())
    guard.now("test", lifted=False)
    with pytest.raises(ProductionAccessError, match=PRODUCTION):
        getattr(connection, way)()
    connection.finish()


def test_replacing_functions_of_socket_does_not_help(
    guard: ProductionGuard, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: super(socket.socket, self).connect(address))
    with pytest.raises(ProductionAccessError):
        connect(PRODUCTION, port)
    assert guard


def test_the_error_names_the_test_the_address_and_the_twin(guard: ProductionGuard) -> None:
    guard.now("test_it.py::test_rows", lifted=False)
    with pytest.raises(ProductionAccessError) as caught:
        connect(PRODUCTION, 5432)
    assert caught.value.message == f"test_it.py::test_rows would connect to production: {PRODUCTION}:5432"
    assert "tables at 10.0.3.11:5432 (fixture stage_tables)" in caught.value.remedy
    assert "@pytest.mark.stage_production_access" in caught.value.remedy


def test_another_port_of_a_twin_and_an_address_without_one(guard: ProductionGuard) -> None:
    with pytest.raises(ProductionAccessError) as caught:
        connect(PRODUCTION, 22)
    assert "tables at 10.0.3.11, where 5432 answer" in caught.value.remedy
    with pytest.raises(ProductionAccessError) as caught:
        connect("127.10.2.99", 22)
    assert "no container of the stage stands for this address" in caught.value.remedy
    assert guard


class TestOtherPlaces:
    """What is not production is connected to as ever."""

    def test_an_address(self, guard: ProductionGuard) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), 2).close()
        assert guard

    def test_a_name_and_a_unix_socket(self, guard: ProductionGuard, tmp_path: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            connect("localhost", server.getsockname()[1])
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(str(tmp_path / "socket"))
            server.listen()
            client.connect(str(tmp_path / "socket"))
        assert guard

    def test_datagrams_of_a_connected_socket(self, guard: ProductionGuard) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", 9))
            client.sendmsg([b"x"])
        assert guard

    def test_incus_itself_where_the_settings_say_that_it_is_there(self, production: socket.socket, port: int) -> None:
        guard = ProductionGuard(settings(incus=IncusSettings(endpoint=f"https://{PRODUCTION}:{port}")))
        guard.begin()
        try:
            connect(PRODUCTION, port)
            with pytest.raises(ProductionAccessError):
                connect(PRODUCTION, port + 1)
        finally:
            guard.end()
        production.accept()[0].close()


def test_a_lifted_ban_lets_pass(guard: ProductionGuard, production: socket.socket, port: int) -> None:
    guard.now("test", lifted=True)
    connect(PRODUCTION, port)
    production.accept()[0].close()


def test_the_end_is_as_before_and_guards_nest(production: socket.socket, port: int) -> None:
    outer, inner = ProductionGuard(settings()), ProductionGuard(settings())
    outer.begin()
    inner.begin()
    inner.end()
    with pytest.raises(ProductionAccessError):
        connect(PRODUCTION, port)
    outer.end()
    connect(PRODUCTION, port)
    production.accept()[0].close()


@pytest.mark.parametrize("early", [True, False], ids=["psycopg before", "psycopg later"])
def test_psycopg_is_watched_whenever_it_is_imported_and_let_go_in_the_end(port: int, early: bool) -> None:
    pytest.importorskip("psycopg")
    code = f"""
import sys, socket
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_session_production_guard import settings, ProductionGuard, ProductionAccessError
assert "psycopg" not in sys.modules
if {early}:
    import psycopg
guard = ProductionGuard(settings())
guard.begin()
import psycopg
try:
    psycopg.connect("host={PRODUCTION} port={port} dbname=x connect_timeout=2")
except ProductionAccessError:
    print("refused")
guard.end()
for name in ("connect", "connect_start", "ping", "reset", "reset_start"):
    assert "looking" not in repr(getattr(psycopg.pq.PGconn, name)), name
assert not [finder for finder in sys.meta_path if type(finder).__name__ == "_AfterImport"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr
