"""Connections carried by the very relay that runs in clones, here as a process of this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
from typing import IO, TYPE_CHECKING, Any

import pytest
from tests.certificates import make_pair

from pytest_stagegbo.errors import OperationFailed
from pytest_stagegbo.forward import connections, forwarder, frames
from pytest_stagegbo.forward.forwarder import LOOPBACK, Forwarder
from pytest_stagegbo.forward.relay import command
from pytest_stagegbo.forward.way import StageWay
from pytest_stagegbo.incus.channel import ChannelBroken
from pytest_stagegbo.services import Answer, ask, dial
from pytest_stagegbo.services.plain_http import ServiceConnection
from pytest_stagegbo.services.webrequest import request
from pytest_stagegbo.settings import ProbeSettings, Settings
from pytest_stagegbo.settings.model import NetworkSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CLONE = "10.0.3.13"
PATIENCE = 20.0


class Pipe:
    """A pipe to or from the relay, in the place of a websocket."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._descriptor = file.fileno()
        os.set_blocking(self._descriptor, False)
        self._out = bytearray()

    @property
    def backlog(self) -> int:
        return len(self._out)

    def fileno(self) -> int:
        return self._descriptor

    def receive(self) -> Iterator[memoryview]:
        try:
            data = os.read(self._descriptor, 1 << 18)
        except OSError:
            return
        if not data:
            raise ChannelBroken("the relay has ended")
        yield memoryview(data)

    def send(self, data: bytes) -> None:
        self._out += data
        self.flush()

    def flush(self) -> None:
        try:
            while self._out:
                del self._out[: os.write(self._descriptor, self._out)]
        except BlockingIOError:
            pass
        except OSError as error:
            raise ChannelBroken("the relay has ended", seen=str(error)) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


class Here:
    """Starts relays."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.trouble: list[str] = []
        self.refusing = False

    def start(self, name: str) -> tuple[Pipe, ...]:
        if self.refusing:
            raise OperationFailed(f"{name} is stopped")
        done = subprocess.Popen(
            command([LOOPBACK]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.processes.append(done)
        assert done.stdin is not None
        assert done.stdout is not None
        assert done.stderr is not None
        return tuple(Pipe(each) for each in (done.stdin, done.stdout, done.stderr))


@pytest.fixture
def here() -> Iterator[Here]:
    found = Here()
    yield found
    for process in found.processes:
        process.kill()
        process.wait(PATIENCE)


@pytest.fixture
def carrying(here: Here) -> Iterator[Forwarder]:
    found = Forwarder(here.start, here.trouble.append)  # type: ignore[arg-type]
    yield found
    found.close()
    for process in here.processes:
        process.wait(PATIENCE)  # each has ended by itself


class Service:
    """Serves each connection in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None], port: int = 0) -> None:
        self._serve = serve
        self.peers: list[int] = []
        self.served: list[socket.socket] = []
        self._listener = socket.create_server((LOOPBACK, port), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, peer = self._listener.accept()
                self.peers.append(peer[1])
                self.served.append(sock)
                threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self._serve(sock)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self.served:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def start(function: Callable[[socket.socket], None], port: int = 0) -> Service:
        made.append(Service(function, port))
        return made[-1]

    yield start
    for each in made:
        with contextlib.suppress(OSError):
            each.stop()


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


def dialled(port: int) -> socket.socket:
    return socket.create_connection((LOOPBACK, port), PATIENCE)


def exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (more := sock.recv(1 << 16)):
        data += more
    return bytes(data)


def until(question: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not question():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_bytes_go_both_ways_and_each_end_is_passed_on(carrying: Forwarder, serve: Callable[..., Service]) -> None:
    def count(sock: socket.socket) -> None:
        total = 0
        while data := sock.recv(1 << 16):
            total += len(data)
        sock.sendall(b"%d" % total)  # after the client's end, and before this one

    with dialled(carrying.listen("cache", serve(count).port)) as sock:
        sock.sendall(bytes(3_000_000))
        sock.shutdown(socket.SHUT_WR)
        assert exactly(sock, 100) == b"3000000"


def test_a_port_is_always_the_same_and_on_loopback_only(carrying: Forwarder, serve: Callable[..., Service]) -> None:
    service = serve(echo)
    port = carrying.listen("cache", service.port)
    assert carrying.listen("cache", service.port) == port
    assert carrying.listen("drive", service.port) != port
    with pytest.raises(OSError, match="in use"):
        carrying.listen("cache", service.port + 1, port)


def test_two_hundred_at_once_share_one_relay(carrying: Forwarder, here: Here, serve: Callable[..., Service]) -> None:
    port = carrying.listen("cache", serve(echo).port)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(dialled(port)) for _ in range(200)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%03d" % number * 2000)
        for number, sock in enumerate(socks):
            assert exactly(sock, 6000) == b"%03d" % number * 2000
    assert len(here.processes) == 1


def test_who_does_not_read_holds_up_nobody_and_fills_no_memory(
    carrying: Forwarder, serve: Callable[..., Service]
) -> None:
    """On both sides: a service that takes nothing, a client that takes nothing."""
    asleep, sent = threading.Event(), []

    def flood(sock: socket.socket) -> None:
        while True:
            sent.append(sock.send(bytes(1 << 16)))

    deaf = dialled(carrying.listen("cache", serve(lambda _: asleep.wait(PATIENCE) and None).port))
    flooded = dialled(carrying.listen("cache", serve(flood).port))
    deaf.setblocking(False)
    taken = last = 0
    idle = 0
    while idle < 20:  # until nothing more is taken
        with contextlib.suppress(BlockingIOError):
            taken += deaf.send(bytes(1 << 16))
        idle = idle + 1 if taken == last else 0
        last = taken
        with dialled(carrying.listen("cache", serve(echo).port)) as other:
            other.sendall(b"x")
            assert exactly(other, 1) == b"x"
    relay = carrying._relays["cache"]
    kept = sum(len(part) for each in relay.connections.values() for part in each._out)
    buffers = 16 << 20  # of the kernel, on both sides
    assert kept <= 2 * frames.WIDEST
    assert taken < frames.WIDEST + buffers
    assert sum(sent) < frames.WIDEST + buffers
    asleep.set()
    deaf.close()
    flooded.close()


def test_where_nothing_listens_a_client_is_cut_off_and_a_caller_refused(carrying: Forwarder) -> None:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = int(free.getsockname()[1])
    with pytest.raises(ConnectionRefusedError):
        carrying.connect("cache", port, PATIENCE)
    with pytest.raises(ConnectionResetError), dialled(carrying.listen("cache", port)) as sock:  # at once, perhaps
        sock.recv(1)


def test_a_caller_learns_from_which_port_the_service_sees_it(
    carrying: Forwarder, serve: Callable[..., Service]
) -> None:
    service = serve(echo)
    sock, port = carrying.connect("cache", service.port, PATIENCE)
    with sock:
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
        assert service.peers == [port]


def test_connections_break_off_on_both_sides(carrying: Forwarder, serve: Callable[..., Service]) -> None:
    ended: list[str] = []

    def listen(sock: socket.socket) -> None:
        try:
            while sock.recv(100):
                sock.sendall(b"x")
            ended.append("end")
        except ConnectionResetError:
            ended.append("broken")

    port = carrying.listen("cache", serve(listen).port)
    with dialled(port) as sock:
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, connections._AT_ONCE)
    until(lambda: ended == ["broken"])
    until(lambda: not carrying._relays["cache"].connections)


def test_a_service_that_restarts_is_found_again(carrying: Forwarder, serve: Callable[..., Service]) -> None:
    service = serve(echo)
    port = carrying.listen("cache", service.port)
    with dialled(port) as sock:
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
        service.stop()
        assert sock.recv(1) == b""
    with pytest.raises(ConnectionResetError), dialled(port) as sock:
        sock.recv(1)
    serve(echo, service.port)
    with dialled(port) as sock:
        sock.sendall(b"y")
        assert exactly(sock, 1) == b"y"


def test_a_relay_that_ends_breaks_its_connections_off_and_the_next_one_gets_another(
    carrying: Forwarder, here: Here, serve: Callable[..., Service]
) -> None:
    """As when the daemon or the container is restarted."""
    port = carrying.listen("cache", serve(echo).port)
    with dialled(port) as sock:
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
        here.processes[0].kill()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    here.refusing = True
    with pytest.raises(OSError, match="cache is stopped"):
        carrying.connect("cache", port, PATIENCE)
    here.refusing = False
    with dialled(port) as sock:
        sock.sendall(b"y")
        assert exactly(sock, 1) == b"y"
    assert here.trouble == ["cache: the relay has ended", "cache: cache is stopped"]


def test_a_relay_that_says_nothing_any_more_is_given_up(
    carrying: Forwarder, here: Here, serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the network is cut: nothing is said by that."""
    monkeypatch.setattr(forwarder, "BEAT", 0.05)
    monkeypatch.setattr(connections, "SILENCE", 0.5)
    with dialled(carrying.listen("cache", serve(echo).port)) as sock:
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
        here.processes[0].send_signal(19)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        here.processes[0].send_signal(18)


def test_a_relay_ends_when_it_hears_nothing() -> None:
    """As when the client's machine is gone without a word."""
    words = command([LOOPBACK])
    words[words.index("60")] = "1"
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.wait(PATIENCE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()


def test_who_gives_up_a_connection_leaves_none(carrying: Forwarder, here: Here, serve: Callable[..., Service]) -> None:
    carrying.connect("cache", serve(echo).port, PATIENCE)[0].close()
    here.processes[0].send_signal(19)
    with pytest.raises(TimeoutError):
        carrying.connect("cache", serve(echo).port, 0.05)
    here.processes[0].send_signal(18)
    until(lambda: not carrying._relays["cache"].connections)


def test_a_forked_child_uses_the_parent_s_ports_and_keeps_nothing_of_it(
    carrying: Forwarder, serve: Callable[..., Service]
) -> None:
    service = serve(echo)
    port = carrying.listen("cache", service.port)
    with dialled(port) as sock:
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
        pid = os.fork()
        if not pid:  # pragma: no cover
            ok = carrying.listen("cache", service.port) == port and not carrying._watched
            with dialled(port) as inner:
                inner.sendall(b"z")
                ok = ok and exactly(inner, 1) == b"z"
            os._exit(0 if ok else 1)
        assert os.waitpid(pid, 0)[1] == 0
        sock.sendall(b"y")
        assert exactly(sock, 1) == b"y"


def test_a_fault_of_its_own_breaks_off_what_it_carries_and_is_no_end(
    carrying: Forwarder, serve: Callable[..., Service], caplog: pytest.LogCaptureFixture
) -> None:
    service = serve(echo)
    with dialled(carrying.listen("cache", service.port)) as sock:
        sock.sendall(b"x")
        assert exactly(sock, 1) == b"x"
        carrying._call(lambda: 1 / 0)  # type: ignore[arg-type]
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    until(lambda: not carrying._ports)
    assert "forwarding has failed" in caplog.text
    with dialled(carrying.listen("cache", service.port)) as sock:
        sock.sendall(b"y")
        assert exactly(sock, 1) == b"y"


# -- who uses it


class Carried:
    """The way of a machine that has no route."""

    is_direct = False

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    def prepare(self, host: str) -> None:
        assert host == CLONE
        self._forwarder.prepare("cache")

    def connect(self, host: str, port: int, timeout: float) -> tuple[socket.socket, int]:
        assert host == CLONE
        return self._forwarder.connect("cache", port, timeout)


@pytest.fixture
def led(carrying: Forwarder, monkeypatch: pytest.MonkeyPatch) -> Forwarder:
    """What speaks to the clone is carried."""
    monkeypatch.setattr(dial, "_ways", {})
    dial.lead(Carried(carrying), [CLONE])
    return carrying


def test_a_probe_says_what_it_would_say_of_a_direct_connection(led: Forwarder, serve: Callable[..., Service]) -> None:
    service = serve(lambda sock: sock.sendall(b"x" * len(sock.recv(1))))
    assert ask(ProbeSettings("tcp", service.port), CLONE).ready
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        closed = int(free.getsockname()[1])
    assert ask(ProbeSettings("tcp", closed), CLONE) == Answer("refused", "connection refused")
    asleep = serve(lambda _: time.sleep(PATIENCE))
    assert (
        ask(ProbeSettings("valkey", asleep.port), CLONE, 0.5).text == "accepts the connection and says nothing in 0.5 s"
    )
    assert led._relays["cache"].is_running


@pytest.fixture
def secure(serve: Callable[..., Service], tmp_path: Path) -> tuple[Service, Path]:
    """A web server with TLS, and its certificate."""
    pair = make_pair(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)

    def web(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as found:
            asked = b""
            while b"\r\n\r\n" not in asked and (more := found.recv(1 << 16)):
                asked += more
            if not asked:
                return
            host = next(line for line in asked.split(b"\r\n") if line.lower().startswith(b"host:"))
            found.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(host), host))

    return serve(web), pair.cert


def test_https_is_spoken_through_it_with_the_service_s_own_name(led: Forwarder, secure: tuple[Service, Path]) -> None:
    """A request is the same as on a direct connection: its signature covers the header `Host`."""
    service, _ = secure
    assert request(CLONE, service.port, "/", PATIENCE, tls=True).body == b"Host: %s:%d" % (
        CLONE.encode(),
        service.port,
    )
    connection = ServiceConnection(CLONE, service.port, PATIENCE, tls=True)
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"Host: %s:%d" % (CLONE.encode(), service.port)
    assert connection.own_port == service.peers[-1]
    connection.close()
    assert led._relays["cache"].is_running


def test_a_client_that_checks_certificates_finds_the_service_s(
    carrying: Forwarder, secure: tuple[Service, Path]
) -> None:
    service, cert = secure
    context = ssl.create_default_context(cafile=str(cert))
    context.check_hostname = False
    with (
        dialled(carrying.listen("cache", service.port)) as sock,
        context.wrap_socket(sock, server_hostname="server") as secured,
    ):
        assert secured.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(cert.read_text())


@pytest.mark.parametrize(
    ("reach", "endpoint", "bridge", "direct"),
    [
        pytest.param("auto", "/nowhere/unix.socket", "lo", True, id="the daemon's host"),
        pytest.param("auto", "/nowhere/unix.socket", "no-such-bridge", False, id="a container with the socket"),
        pytest.param("auto", "https://incus.example:8443", "lo", False, id="another host, its own bridge of that name"),
        pytest.param("direct", "https://incus.example:8443", "no-such-bridge", True, id="direct"),
        pytest.param("forward", "/nowhere/unix.socket", "lo", False, id="forward"),
    ],
)
def test_connections_are_direct_on_the_daemon_s_host_only(reach: Any, endpoint: str, bridge: str, direct: bool) -> None:
    def run(name: str, words: list[str]) -> tuple[Any, ...]:
        raise AssertionError(f"nobody connects to {name} with {words}")

    way = StageWay(Settings(network=NetworkSettings(name=bridge, reach=reach)), endpoint, run)
    assert way.is_direct is direct
    try:
        host, port = way.place("10.0.3.11", 5432)
        assert (host, port == 5432) == (("10.0.3.11", True) if direct else (LOOPBACK, False))
    finally:
        way.close()


def test_two_engines_of_a_stage_share_what_they_carry_until_both_are_closed() -> None:
    settings = Settings(network=NetworkSettings(reach="forward"))
    first, second = (StageWay(settings, "/nowhere/unix.socket", lambda *_: ()) for _ in range(2))
    place = first.place("10.0.3.11", 5432)
    assert second.place("10.0.3.11", 5432) == place
    first.close()
    with socket.socket() as taken, pytest.raises(OSError, match="in use"):
        taken.bind(place)
    second.close()
    with pytest.raises(ConnectionRefusedError):
        dialled(place[1])


# -- the protocol


@pytest.mark.parametrize("size", [1, 3, 7, 8, 9, 100, 10_000])
def test_frames_are_the_same_however_they_are_cut(size: int) -> None:
    sent = [(1, frames.OPEN, b"6379"), (1, frames.DATA, b"x" * 50), (7, frames.END, b""), (1, frames.DATA, b"yz")]
    data = b"".join(frames.frame(*each) for each in sent) + frames.credit(3, 1 << 20)
    decoder, found = frames.Decoder(), list[tuple[int, int, bytes]]()
    for begin in range(0, len(data), size):
        for connection, kind, content in decoder.feed(data[begin : begin + size]):
            if kind == frames.DATA and found and found[-1][:2] == (connection, kind):
                found[-1] = (connection, kind, found[-1][2] + bytes(content))
            else:
                found.append((connection, kind, bytes(content)))
    assert found == [*sent, (3, frames.CREDIT, (1 << 20).to_bytes(4, "big"))]
