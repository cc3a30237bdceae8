"""What each probe makes of what a server says. The servers here say what the real ones say, byte for byte."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import pytest

from pytest_stagegbo.services import PROBES, ask
from pytest_stagegbo.services.answer import Answer
from pytest_stagegbo.services.postgresql import is_noise
from pytest_stagegbo.settings.addresses import SCHEMES
from pytest_stagegbo.settings.model import ProbeSettings, Protocol

HERE = "127.0.0.1"
Talk = Callable[[socket.socket], None]
Serve = Callable[[Talk], "Server"]


class Server:
    """Accepts connections on a free port of the loopback and lets `talk` say something on each."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._listener = socket.create_server((HERE, 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard: list[bytes] = []
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(5)
                with connection, contextlib.suppress(OSError):
                    self.heard.append(connection.recv(4096))
                    self._talk(connection)
                    connection.settimeout(0.5)
                    self.heard.append(connection.recv(4096))
                self.done.set()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(talk: Talk) -> Server:
        servers.append(Server(talk))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def says(*parts: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)

    return talk


def closes(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def drips(data: bytes, pause: float = 0.02) -> Talk:
    def talk(connection: socket.socket) -> None:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(pause)

    return talk


def silent(connection: socket.socket) -> None:
    connection.recv(1)


def http(status: str, body: str, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", body]).encode()


def pg(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def pg_error(code: str, message: str) -> bytes:
    return pg(b"E", b"".join(f"{part}\0".encode() for part in ("SFATAL", "VFATAL", f"C{code}", f"M{message}")) + b"\0")


PG_SCRAM = pg(b"R", struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0")
PG_OK = pg(b"R", struct.pack("!i", 0))
PG_SESSION = PG_OK + pg(b"S", b"server_version\x0015.18\0") + pg(b"K", b"12345678") + pg(b"Z", b"I")
S3_DENIED = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied.</Message>'
S3_STARTING = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>XMinioServerNotInitialized</Code>'
    "<Message>Server not initialized yet, please try again.</Message><Resource>/</Resource></Error>"
)
HEALTHY = '{"initialized":true,"sealed":false,"standby":false,"version":"1.20.4"}'
SEALED = '{"initialized":true,"sealed":true,"standby":true,"version":"1.20.4"}'
LOADING = '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'


@pytest.mark.parametrize(
    ("protocol", "said", "state", "text"),
    [
        pytest.param("postgresql", PG_SCRAM, "ready", "SCRAM", id="postgresql asks for a password"),
        pytest.param("postgresql", pg(b"R", struct.pack("!i", 5) + b"salt"), "ready", "MD5", id="postgresql md5"),
        pytest.param("postgresql", PG_SESSION, "ready", "opens a session", id="postgresql trusts everybody"),
        pytest.param(
            "postgresql",
            pg_error("28000", "no pg_hba.conf entry"),
            "ready",
            "28000 no pg_hba",
            id="postgresql no entry",
        ),
        pytest.param(
            "postgresql",
            PG_OK + pg_error("3D000", 'database "postgres" does not exist'),
            "ready",
            "3D000",
            id="postgresql without that database",
        ),
        pytest.param(
            "postgresql",
            pg_error("57P03", "the database system is starting up"),
            "starting",
            "57P03 the database system is starting up",
            id="postgresql starts",
        ),
        pytest.param(
            "postgresql",
            PG_OK + pg_error("57P01", "terminating connection due to administrator command"),
            "starting",
            "57P01",
            id="postgresql stops",
        ),
        pytest.param(
            "postgresql", pg_error("53300", "sorry, too many clients"), "starting", "53300", id="postgresql full"
        ),
        pytest.param(
            "postgresql", b"Ecould not fork new process for connection\n\0", "starting", "could not fork", id="no fork"
        ),
        pytest.param("postgresql", pg_error("XX000", "broken"), "wrong", "XX000 broken", id="postgresql broken"),
        pytest.param("postgresql", b"-ERR unknown command\r\n", "wrong", "not PostgreSQL: -ERR", id="not postgresql"),
        pytest.param("postgresql", b"HTTP/1.1 400 Bad Request\r\n", "wrong", "HTTP/1.1 400", id="http, not postgresql"),
        pytest.param("valkey", b"+PONG\r\n", "ready", "+PONG", id="valkey"),
        pytest.param("valkey", b"-NOAUTH Authentication required.\r\n", "ready", "-NOAUTH", id="valkey with password"),
        pytest.param(
            "valkey",
            b"-LOADING Valkey is loading the dataset in memory\r\n",
            "starting",
            "-LOADING Valkey is loading the dataset in memory",
            id="valkey loads",
        ),
        pytest.param("valkey", b"-BUSY Valkey is busy running a script.\r\n", "starting", "-BUSY", id="valkey busy"),
        pytest.param("valkey", b"-MASTERDOWN Link with MASTER is down\r\n", "starting", "-MASTERDOWN", id="replica"),
        pytest.param("valkey", b"-ERR max number of clients reached\r\n", "starting", "-ERR max", id="valkey full"),
        pytest.param("valkey", b"-MISCONF Errors writing to the AOF file\r\n", "wrong", "-MISCONF", id="valkey's disk"),
        pytest.param("valkey", b"-DENIED Running in protected mode\r\n", "wrong", "-DENIED", id="valkey protected"),
        pytest.param("valkey", b"HTTP/1.1 400 Bad Request\r\n\r\n", "wrong", "not Valkey: HTTP/1.1", id="not valkey"),
        pytest.param("vault", http("200 OK", HEALTHY), "ready", "active, version 1.20.4", id="vault"),
        pytest.param("vault", http("503 Service Unavailable", SEALED), "sealed", "503 sealed", id="vault sealed"),
        pytest.param(
            "vault",
            http("501 Not Implemented", '{"initialized":false,"sealed":true}'),
            "wrong",
            "501 not initialised",
            id="vault without a first key",
        ),
        pytest.param("vault", http("472 ", HEALTHY), "wrong", "disaster recovery", id="vault's secondary"),
        pytest.param("vault", http("503 Service Unavailable", "<html>"), "wrong", "not Vault's health", id="a proxy"),
        pytest.param("vault", http("200 OK", "[" * 9000), "wrong", "not Vault's health", id="json that nests"),
        pytest.param(
            "vault",
            b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
            "wrong",
            "Client sent an HTTP request to an HTTPS server",
            id="vault speaks TLS and isn't asked in TLS",
        ),
        pytest.param("s3", http("403 Forbidden", S3_DENIED), "ready", "HTTP 403 AccessDenied", id="s3"),
        pytest.param("s3", http("200 OK", "<ListAllMyBucketsResult/>"), "ready", "lists its buckets", id="public s3"),
        pytest.param(
            "s3",
            http("503 Service Unavailable", S3_STARTING),
            "starting",
            "503 XMinioServerNotInitialized Server not initialized yet",
            id="minio starts",
        ),
        pytest.param(
            "s3", http("200 OK", "<html><body>Console</body></html>"), "wrong", "not S3: HTTP 200", id="console"
        ),
        pytest.param("s3", http("200 OK", S3_DENIED), "wrong", "HTTP 200 AccessDenied", id="an error that isn't one"),
        pytest.param("http", http("200 OK", '{"status":"ok"}'), "ready", 'HTTP 200 {"status":"ok"}', id="http"),
        pytest.param("http", http("503 Service Unavailable", LOADING), "starting", "503 ", id="llama.cpp loads"),
        pytest.param(
            "http", http("302 Found", "", "Location: /login"), "wrong", "HTTP 302", id="no redirect is followed"
        ),
        pytest.param(
            "http", http("404 Not Found", "no\x00such\npage"), "wrong", "404 no\ufffdsuch page", id="one line"
        ),
        pytest.param("http", b"SSH-2.0-OpenSSH_9.2p1\r\n", "wrong", "not HTTP: SSH-2.0-OpenSSH_9.2p1", id="ssh"),
        pytest.param(
            "http",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n0\r\n\r\n",
            "ready",
            "HTTP 200 well",
            id="http in chunks",
        ),
        pytest.param(
            "http",
            b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf",
            "unreachable",
            "HTTP 200, then",
            id="half a body is no answer",
        ),
        pytest.param(
            "http",
            http("200 OK", '{"url":"postgres://gbuser:hunter2hunter2@10.0.2.11/botserver"}'),
            "ready",
            "gbuser:***@",
            id="secrets are masked",
        ),
    ],
)
def test_an_answer_becomes_a_state_and_a_text(
    serve: Serve, protocol: Protocol, said: bytes, state: str, text: str
) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)

    answer = ask(ProbeSettings(protocol, serve(talk).port, "/health"), HERE, 3)
    assert (answer.state, text in answer.text) == (state, True), answer
    assert len(answer.text) < 300
    assert answer.text.isprintable()


def test_a_standby_of_vault_is_not_ready_and_says_whom_it_follows(serve: Serve) -> None:
    """A clone of one node of a cluster would hand its requests on to production."""
    replies = iter(
        (
            http("429 Too Many Requests", HEALTHY.replace('"standby":false', '"standby":true')),
            http("200 OK", '{"ha_enabled":true,"is_self":false,"leader_address":"https://10.0.2.12:8200"}'),
        )
    )

    def talk(connection: socket.socket) -> None:
        connection.sendall(next(replies))

    answer = ask(ProbeSettings("vault", serve(talk).port), HERE, 3)
    assert answer == Answer("starting", "HTTP 429 unsealed, a standby of https://10.0.2.12:8200")


def test_postgresql_is_left_without_a_reply_when_it_asks_for_a_password(serve: Serve) -> None:
    """It would log anything that isn't a password as an error; an end of the connection it doesn't."""
    server = serve(says(PG_SCRAM))
    ask(ProbeSettings("postgresql", server.port), HERE, 3)
    assert server.done.wait(3)
    assert server.heard[1] == b""


def test_a_session_of_postgresql_is_ended_with_terminate(serve: Serve) -> None:
    server = serve(says(PG_SESSION))
    ask(ProbeSettings("postgresql", server.port), HERE, 3)
    assert server.done.wait(3)
    assert server.heard[1] == b"X\0\0\0\4"


@pytest.mark.parametrize(
    ("offer", "state", "text"),
    [
        pytest.param(b"N", "wrong", "speaks no TLS", id="none"),
        pytest.param(b"H", "wrong", "not PostgreSQL", id="not postgresql"),
    ],
)
def test_postgresql_is_asked_for_tls_before_anything_else(serve: Serve, offer: bytes, state: str, text: str) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(offer)
        connection.shutdown(socket.SHUT_WR)

    server = serve(talk)
    answer = ask(ProbeSettings("postgresql", server.port, tls=True), HERE, 3)
    assert answer.state == state
    assert text in answer.text
    assert server.heard[0] == struct.pack("!ii", 8, 80877103)


@pytest.mark.parametrize(
    ("line", "noise"),
    [
        ("2026-01-01 UTC [9] FATAL:  the database system is starting up", True),
        ("2026-01-01 UTC [9] FATAL:  the database system is not yet accepting connections", True),
        ("2026-01-01 UTC [9] DETAIL:  Consistent recovery state has not been yet reached.", True),
        ('2026-01-01 UTC [9] FATAL:  role "gbuser" does not exist', False),
        ("2026-01-01 UTC [9] LOG:  database system is ready to accept connections", False),
    ],
)
def test_lines_that_questions_leave_in_postgresqls_log_are_known(line: str, noise: bool) -> None:
    assert is_noise(line) is noise


def test_the_path_of_a_health_page_is_asked_for_with_its_host_and_without_keeping_the_connection(serve: Serve) -> None:
    server = serve(says(http("200 OK", "")))
    ask(ProbeSettings("http", server.port, "health"), HERE, 3)
    head = server.heard[0].decode()
    assert head.startswith("GET /health HTTP/1.1\r\n")
    assert f"Host: {HERE}:{server.port}\r\n" in head
    assert "Connection: close\r\n" in head


def test_proxies_of_the_environment_are_ignored(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(ProbeSettings("http", serve(says(http("200 OK", ""))).port, "/"), HERE, 3).ready


def test_each_protocol_has_a_probe() -> None:
    assert set(PROBES) == set(SCHEMES) == set(get_args(Protocol))


@pytest.mark.parametrize("protocol", get_args(Protocol))
class TestEveryProbe:
    """What holds whatever the protocol."""

    def test_tells_when_nothing_listens(self, protocol: Protocol) -> None:
        with socket.create_server((HERE, 0)) as listener:
            port: int = listener.getsockname()[1]
        assert ask(ProbeSettings(protocol, port), HERE, 1) == Answer("refused", "connection refused")

    def test_tells_what_is_no_address(self, protocol: Protocol) -> None:
        answer = ask(ProbeSettings(protocol, 1), "10.0.2.11.9", 1)
        assert answer.state == "unreachable"
        assert "10.0.2.11.9 is no address" in answer.text

    def test_speaks_tls_if_told_and_says_when_the_server_does_not(self, protocol: Protocol, serve: Serve) -> None:
        server = serve(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        assert ask(ProbeSettings(protocol, server.port, tls=True), HERE, 2).state == "wrong"


ASKING: Sequence[Protocol] = [protocol for protocol in get_args(Protocol) if protocol != "tcp"]


@pytest.mark.parametrize("protocol", ASKING)
class TestEveryProbeThatAsks:
    def test_ends_in_time_when_nothing_is_said(self, protocol: Protocol, serve: Serve) -> None:
        began = time.monotonic()
        answer = ask(ProbeSettings(protocol, serve(silent).port), HERE, 0.1)
        assert answer == Answer("unreachable", "accepts the connection and says nothing in 0.1 s")
        assert time.monotonic() - began < 0.5

    def test_ends_in_time_when_bytes_drip(self, protocol: Protocol, serve: Serve) -> None:
        """Each byte comes well within the time-out; the whole never does."""
        data = pg(b"S", bytes(200)) if protocol == "postgresql" else b"+HTTP/1.1 200 OK"[protocol != "valkey" :] * 20
        began = time.monotonic()
        answer = ask(ProbeSettings(protocol, serve(drips(data)).port), HERE, 0.15)
        assert answer == Answer("unreachable", "an answer began and did not end in 0.15 s")
        assert time.monotonic() - began < 0.5

    def test_tells_when_the_connection_closes_at_once(self, protocol: Protocol, serve: Serve) -> None:
        answer = ask(ProbeSettings(protocol, serve(closes).port), HERE, 2)
        assert answer.state == "unreachable"
        assert "closes it without an answer" in answer.text

    def test_survives_anything(self, protocol: Protocol, serve: Serve) -> None:
        """No garbage makes a probe raise, and none is taken for a service that is ready."""
        chance = random.Random(20)
        starts = (b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n\r\n<Error><Code>", b"R", b"E\0\0", b"S\x7f", b"+", b"-")

        def talk(connection: socket.socket) -> None:
            connection.sendall(chance.choice(starts) + chance.randbytes(chance.randrange(60)))
            connection.shutdown(socket.SHUT_WR)

        server = serve(talk)
        for _ in range(40):
            answer = ask(ProbeSettings(protocol, server.port), HERE, 1)
            assert answer.text.isprintable()
            assert protocol == "http" or not answer.ready


def test_tcp_says_that_it_asked_for_nothing(serve: Serve) -> None:
    answer = ask(ProbeSettings("tcp", serve(silent).port), HERE, 1)
    assert answer == Answer("ready", "accepts connections (nothing more was asked)")
