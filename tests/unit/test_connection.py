"""The way to the daemon: where it is looked for, and what becomes of its answers and its silence.

The daemon here is an HTTP server on a Unix socket, so that pylxd, requests and the kernel are the real ones.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from fakes import Patient
from msgspec.structs import replace

from pytest_stagegbo.cli.doctor import examine
from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.engine.saved_builds import SavedBuilds
from pytest_stagegbo.errors import MemberAway, OperationFailed, ServerRefused, ServerUnreachable, StageMissing
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.incus import endpoint as endpoints
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.incus.endpoint import find_endpoint
from pytest_stagegbo.incus.reader import Reader
from pytest_stagegbo.incus.records import Instance, Reply
from pytest_stagegbo.plan.builds import Artefact
from pytest_stagegbo.settings import IncusSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HELLO: dict[str, Any] = {
    "auth": "trusted",
    "api_extensions": ["projects", *dialect.NEEDED],
    "environment": {
        "server": "incus",
        "server_version": "6.0.4",
        "storage": "btrfs",
        "certificate_fingerprint": "f00d",
    },
}
PATIENCE = 10.0


@dataclass
class Request:
    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int = 200
    body: Any = None
    """JSON, or bytes as they are."""
    headers: dict[str, str] = field(default_factory=dict)


def sync(metadata: Any, **headers: str) -> Answer:
    return Answer(200, {"type": "sync", "status_code": 200, "metadata": metadata}, headers)


def error(status: int, text: str) -> Answer:
    return Answer(status, {"type": "error", "error": text, "error_code": status})


def operation(code: int, **metadata: Any) -> Answer:
    names = {103: "Running", 200: "Success", 400: "Failure", 401: "Cancelled"}
    return sync({"status_code": code, "status": names[code], **metadata})


class Daemon(Patient, socketserver.ThreadingUnixStreamServer):
    """Answers what a test has laid out, one answer after the other and the last one again and again."""

    daemon_threads = True
    request_queue_size = 64  # as a real daemon has: where it is full, pylxd fails and leaves its socket open

    def __init__(self, path: str) -> None:
        self.path = path
        self.answers: dict[tuple[str, str], list[Answer]] = {("GET", "/1.0"): [sync(HELLO)]}
        self.requests: list[Request] = []
        self.connections = 0
        self.silence = threading.Event()
        """Until it is set, requests to `/1.0/silent` get no answer."""
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                parts = urlsplit(self.path)
                request = Request(
                    self.command, parts.path, dict(parse_qsl(parts.query)), dict(self.headers), self.rfile.read(length)
                )
                daemon.requests.append(request)
                if parts.path == "/1.0/silent":
                    daemon.silence.wait(PATIENCE)
                answer = daemon.answer(self.command, parts.path)
                body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for key, value in {**answer.headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any

            def log_message(self, format: str, *args: object) -> None: ...

        super().__init__(path, Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.connections += 1
        return super().verify_request(request, client_address)

    def answer(self, method: str, path: str) -> Answer:
        answers = self.answers.get((method, path), [error(404, "not laid out")])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def lay_out(self, method: str, path: str, *answers: Answer) -> None:
        self.answers[method, path] = list(answers)


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: a path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    with Daemon(str(folder / "unix.socket")) as daemon:
        thread = threading.Thread(target=daemon.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield daemon
        daemon.silence.set()
        daemon.shutdown()
        thread.join(PATIENCE)


@pytest.fixture
def connection(daemon: Daemon) -> Connection:
    return Connection(IncusSettings(endpoint=daemon.path), environ={})


class TestFindEndpoint:
    @pytest.fixture(autouse=True)
    def _usual_places(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(endpoints, "SOCKET_PLACES", (str(folder / "usual"), str(folder / "other")))

    @pytest.mark.parametrize(
        ("there", "found"),
        [
            pytest.param(["socket", "dir/unix.socket", "usual", "other"], "socket", id="INCUS_SOCKET"),
            pytest.param(["dir/unix.socket", "usual", "other"], "dir/unix.socket", id="INCUS_DIR"),
            pytest.param(["usual", "other"], "usual", id="usual"),
            pytest.param(["other"], "other", id="other"),
        ],
    )
    def test_takes_the_first_place_where_something_is(self, folder: Path, there: list[str], found: str) -> None:
        (folder / "dir").mkdir()
        for name in there:
            (folder / name).touch()
        environ = {"INCUS_SOCKET": str(folder / "socket"), "INCUS_DIR": str(folder / "dir")}
        assert find_endpoint(IncusSettings(), environ) == str(folder / found)

    @pytest.mark.parametrize("endpoint", ["/no/such/socket", "https://203.0.113.1:8443"])
    def test_takes_what_is_set_without_looking(self, folder: Path, endpoint: str) -> None:
        (folder / "usual").touch()
        assert find_endpoint(IncusSettings(endpoint=endpoint), {"INCUS_SOCKET": str(folder / "usual")}) == endpoint

    def test_names_every_place_looked_at(self, folder: Path) -> None:
        environ = {"INCUS_SOCKET": "/a/socket", "INCUS_DIR": "/b"}
        with pytest.raises(ServerUnreachable) as caught:
            find_endpoint(IncusSettings(), environ)
        assert caught.value.seen == f"no socket at /a/socket, /b/unix.socket, {folder}/usual, {folder}/other"
        assert "lab up" in caught.value.remedy

    def test_passes_over_empty_variables(self, folder: Path) -> None:
        (folder / "other").touch()
        environ = {"INCUS_SOCKET": "", "INCUS_DIR": ""}
        assert find_endpoint(IncusSettings(), environ) == str(folder / "other")


class TestConnections:
    def test_a_connection_is_made_for_a_request_and_serves_all_that_follow(
        self, daemon: Daemon, connection: Connection
    ) -> None:
        """Incus takes no other client while one has connected and said nothing."""
        paths = [("instances",), ("networks",), ("networks", "a"), ("instances",)]
        for path in paths:
            daemon.lay_out("GET", "/1.0/" + "/".join(path), sync({}))
        for path in paths:
            connection.get(*path)
        assert len(daemon.requests) == 1 + len(paths)
        assert daemon.connections == 1

    def test_no_socket_is_left_open(self, daemon: Daemon, connection: Connection) -> None:
        nowhere = Connection(IncusSettings(endpoint=daemon.path + ".gone"), environ={})
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            connection.server()
            connection.let_go()
            with pytest.raises(ServerUnreachable) as caught:
                nowhere.server()
            gc.collect()
        assert caught.value.seen.startswith("[Errno 2] No such file or directory")
        assert [str(each.message) for each in found if issubclass(each.category, ResourceWarning)] == []


class TestRequest:
    def test_quotes_each_segment_of_the_path(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", "/1.0/instances/a%2F..%2Fb%3Fc%23d%20e", sync("found"))
        assert connection.get("instances", "a/../b?c#d e") == "found"

    def test_sends_parameters(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", "/1.0/instances", sync([]))
        connection.get("instances", project="STAGE & GBO", recursion=1)
        assert daemon.requests[-1].params == {"project": "STAGE & GBO", "recursion": "1"}

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_sends_json_and_headers(self, daemon: Daemon, connection: Connection, method: str) -> None:
        daemon.lay_out(method, "/1.0/x", sync({}))
        connection.request(method, ("x",), body={"key": "grün"}, headers={"If-Match": "e7a9"})
        request = daemon.requests[-1]
        assert (request.method, json.loads(request.body), request.headers["If-Match"]) == (
            method,
            {"key": "grün"},
            "e7a9",
        )

    @pytest.mark.parametrize("data", [b"", b"\x00\xff"], ids=["nothing", "bytes"])
    def test_sends_bytes_as_they_are(self, daemon: Daemon, connection: Connection, data: bytes) -> None:
        daemon.lay_out("POST", "/1.0/x", sync({}))
        connection.request("POST", ("x",), data=data)
        assert daemon.requests[-1].body == data

    def test_returns_the_etag(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", "/1.0/x", sync({"name": "x"}, ETag="e7a9"))
        reply = connection.get_reply("x")
        assert (reply.metadata, reply.etag, reply.operation) == ({"name": "x"}, "e7a9", "")

    @pytest.mark.parametrize("content", [b"\xff\x00", b'{"not": "incus"}', b""], ids=["binary", "json", "empty"])
    def test_reads_a_file_as_it_is(self, daemon: Daemon, connection: Connection, content: bytes) -> None:
        daemon.lay_out("GET", "/1.0/x", Answer(200, content))
        assert connection.read_bytes("x") == content

    def test_keeps_a_large_build_without_having_it_in_memory(
        self, daemon: Daemon, connection: Connection, tmp_path: Path
    ) -> None:
        content = os.urandom(1 << 20) * 64
        artefact = Artefact("b", "/b", "/b", hashlib.sha256(content).hexdigest(), len(content), "", "", "")
        daemon.lay_out("GET", "/1.0/instances/system/files", Answer(200, content))
        clone = Instance.from_api({"name": "system"}, "STAGE-GBO")
        saved = SavedBuilds("stage", {"XDG_CACHE_HOME": str(tmp_path)})
        connection.server()
        tracemalloc.start()
        try:
            saved.fetch(Reader(connection), clone, artefact)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert saved.has(artefact)
        assert peak < len(content) // 4
        other = replace(artefact, sha256="0")
        with pytest.raises(StageMissing, match="is not the file that was deployed"):
            saved.fetch(Reader(connection), clone, other)
        assert [file.name for file in saved.folder.iterdir()] == [artefact.sha256]

    def test_returns_the_operation_that_was_started(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("POST", "/1.0/x", Answer(202, {"type": "async", "operation": "/1.0/operations/77"}))
        assert connection.request("POST", ("x",)).operation == "/1.0/operations/77"

    def test_threads_share_a_client_and_no_session(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", "/1.0/silent", sync({}))
        threads = [threading.Thread(target=connection.get, args=("silent",)) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE
        while len(daemon.requests) < 3 and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        daemon.silence.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(request.path for request in daemon.requests) == ["/1.0", "/1.0/silent", "/1.0/silent"]
        assert len({id(session) for session in connection._idle}) == 2

    def test_a_daemon_that_was_away_is_greeted_again(self, daemon: Daemon, connection: Connection) -> None:
        """Another may have taken its place."""
        daemon.lay_out("GET", "/1.0/x", sync({}))
        connection.get("x")
        with pytest.raises(ServerUnreachable):
            connection.request("GET", ("silent",), timeout=0.1)
        daemon.lay_out("GET", "/1.0", sync({**HELLO, "auth": "untrusted"}))
        with pytest.raises(ServerUnreachable, match="does not trust this client"):
            connection.get("x")

    def test_does_not_log_what_was_sent(
        self, daemon: Daemon, connection: Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "stagegbo.incus")
        daemon.lay_out("POST", "/1.0/x", sync({}))
        connection.request("POST", ("x",), body={"token": "s3cret"})
        messages = [record.getMessage() for record in caplog.records if record.name == "stagegbo.incus"]
        assert messages == ["GET /1.0 {} -> 200", "POST /1.0/x {} -> 200"]


class TestRefusals:
    @pytest.mark.parametrize("status", [400, 403, 404, 409, 412, 500, 503])
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    def test_carry_the_status_and_what_the_daemon_said(
        self, daemon: Daemon, connection: Connection, method: str, status: int
    ) -> None:
        daemon.lay_out(method, "/1.0/x", error(status, "because"))
        with pytest.raises(ServerRefused, match=rf"Incus refused {method} /1\.0/x") as caught:
            connection.request(method, ("x",))
        assert (caught.value.status, caught.value.seen) == (status, f"{status} because")

    def test_of_a_file_too(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", "/1.0/x", error(404, "not found"))
        with pytest.raises(ServerRefused) as caught:
            connection.read_bytes("x")
        assert caught.value.status == 404

    def test_without_json_are_shown_as_they_are(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", "/1.0/x", Answer(502, b"Bad gateway"))
        with pytest.raises(ServerRefused, match="502 Bad gateway"):
            connection.get("x")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pylxd leaks sockets
class TestSilence:
    @pytest.fixture(autouse=True)
    def _collect_here(self) -> Iterator[None]:
        yield
        gc.collect()

    def unreachable(self, endpoint: str) -> ServerUnreachable:
        connection = Connection(IncusSettings(endpoint=endpoint), environ={})
        with pytest.raises(ServerUnreachable, match=f"the Incus daemon at {endpoint} did not answer") as caught:
            connection.get("instances")
        return caught.value

    def test_of_a_socket_that_does_not_exist(self, folder: Path) -> None:
        found = self.unreachable(str(folder / "missing"))
        assert "No such file" in found.seen
        assert found.remedy.startswith("start the daemon")

    def test_of_a_socket_that_nobody_listens_on(self, folder: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / "dead"))
        found = self.unreachable(str(folder / "dead"))
        assert "Connection refused" in found.seen
        assert found.remedy.startswith("start the daemon")

    def test_of_a_file_that_is_no_socket(self, folder: Path) -> None:
        (folder / "file").touch()
        assert self.unreachable(str(folder / "file")).seen

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_of_a_socket_that_this_user_may_not_use(self, daemon: Daemon, folder: Path) -> None:
        folder.chmod(0o755)
        Path(daemon.path).chmod(0o660)
        script = (
            "import os, sys; from pytest_stagegbo.incus.connection import Connection\n"
            "from pytest_stagegbo.settings import IncusSettings\n"
            "from pytest_stagegbo.errors import ServerUnreachable\n"
            "connection = Connection(IncusSettings(endpoint=sys.argv[1]), environ={})\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "try: connection.server()\n"
            "except ServerUnreachable as error: print(error)\n"
        )
        found = subprocess.run(
            [sys.executable, "-c", script, daemon.path], capture_output=True, text=True, timeout=60, check=True
        )
        assert "Permission denied" in found.stdout
        assert "what to do: run as root or as a member of group incus-admin" in found.stdout
        assert daemon.requests == []

    def test_for_too_long(self, connection: Connection) -> None:
        with pytest.raises(ServerUnreachable) as caught:
            connection.request("GET", ("silent",), timeout=0.1)
        assert "timed out" in caught.value.seen
        assert caught.value.remedy.startswith("the daemon is overloaded or stuck")

    def test_after_the_daemon_went_away(self, daemon: Daemon, connection: Connection) -> None:
        connection.server()
        Path(daemon.path).unlink()
        fresh = Connection(IncusSettings(endpoint=daemon.path), environ={})
        with pytest.raises(ServerUnreachable):
            fresh.server()


class TestServer:
    def test_asking_it_imports_none_of_pylxds_models(self, daemon: Daemon) -> None:
        code = (
            "import sys\n"
            "from pytest_stagegbo.incus.connection import Connection\n"
            "from pytest_stagegbo.settings import IncusSettings\n"
            f"connection = Connection(IncusSettings(endpoint={daemon.path!r}))\n"
            "assert connection.server().version == '6.0.4'\n"
            "assert connection.get('nothing', 'at', 'all') == 1\n"
            "print(*sys.modules)"
        )
        daemon.lay_out("GET", "/1.0/nothing/at/all", sync(1))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        found = set(done.stdout.split())
        assert "pylxd.client" in found
        assert {"pylxd.models", "requests_toolbelt"} & found == set()

    def test_says_what_it_is(self, connection: Connection) -> None:
        server = connection.server()
        assert (server.kind, server.version, server.storage_drivers) == ("incus", "6.0.4", "btrfs")
        assert (server.extensions, server.clustered) == (frozenset(HELLO["api_extensions"]), False)
        assert server.fingerprint == "f00d"

    def test_is_asked_once(self, daemon: Daemon, connection: Connection) -> None:
        connection.server()
        asked = len(daemon.requests)
        assert connection.server() is connection.server()
        assert len(daemon.requests) == asked

    def test_that_does_not_trust_this_client_is_refused(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", "/1.0", sync({**HELLO, "auth": "untrusted"}))
        with pytest.raises(ServerUnreachable, match="does not trust this client") as caught:
            connection.server()
        assert caught.value.seen == "auth is 'untrusted'"

    def test_that_is_lxd_is_refused(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", "/1.0", sync({**HELLO, "environment": {"server": "lxd", "server_version": "5.21"}}))
        with pytest.raises(ServerUnreachable, match="is not Incus") as caught:
            connection.server()
        assert caught.value.seen == "it calls itself lxd 5.21"
        assert "works with Incus 6.0 and 7.0" in caught.value.remedy

    def test_that_lacks_what_a_stage_is_built_on_is_refused(self, daemon: Daemon, connection: Connection) -> None:
        fewer = [name for name in dialect.NEEDED if name != "network_bridge_acl"]
        daemon.lay_out("GET", "/1.0", sync({**HELLO, "api_extensions": fewer}))
        with pytest.raises(ServerUnreachable, match=r"Incus 6\.0\.4 at .* lacks API extensions") as caught:
            connection.server()
        assert caught.value.seen == "missing: network_bridge_acl (an access list on the stage's bridge)"

    def test_of_an_unknown_release_is_taken_for_what_it_can(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", "/1.0", sync({**HELLO, "environment": {"server": "incus", "server_version": "8.0.0"}}))
        assert connection.server().version == "8.0.0"

    @pytest.mark.parametrize(
        "answer", [Answer(200, b"<html>"), Answer(200, {"hello": "world"})], ids=["html", "other-json"]
    )
    def test_that_is_something_else_altogether_is_refused(
        self, daemon: Daemon, connection: Connection, answer: Answer
    ) -> None:
        daemon.lay_out("GET", "/1.0", answer)
        with pytest.raises((ServerUnreachable, ServerRefused)):
            connection.server()

    @pytest.mark.parametrize(
        ("endpoint", "local"), [("/var/lib/incus/unix.socket", True), ("https://203.0.113.1:8443", False)]
    )
    def test_is_local_behind_a_socket(self, endpoint: str, local: bool) -> None:
        assert Connection(IncusSettings(endpoint=endpoint), environ={}).is_local is local


class TestWait:
    PATH = "/1.0/operations/77/wait"

    @pytest.fixture
    def wait(self, daemon: Daemon, connection: Connection) -> Callable[..., Any]:
        def wait(*answers: Answer, timeout: float = PATIENCE) -> Any:
            daemon.lay_out("GET", self.PATH, *answers)
            return connection.wait(Reply(None, "", {}, "/1.0/operations/77?project=STAGE-GBO"), "copying", timeout)

        return wait

    def test_for_nothing_returns_what_is_known(self, connection: Connection, daemon: Daemon) -> None:
        assert connection.wait(Reply({"done": True}, "", {}), "copying", PATIENCE) == {"done": True}
        assert daemon.requests == []

    def test_ends_with_what_the_operation_left(self, wait: Callable[..., Any]) -> None:
        assert wait(operation(200, metadata={"return": 0})) == {"return": 0}

    def test_goes_on_while_the_operation_runs(self, wait: Callable[..., Any], daemon: Daemon) -> None:
        assert wait(operation(103), operation(103), operation(200, metadata="end")) == "end"
        assert len([request for request in daemon.requests if request.path == self.PATH]) == 3

    def test_goes_on_when_the_daemon_calls_that_an_error(self, wait: Callable[..., Any]) -> None:
        late = Answer(200, {"type": "error", "error_code": 500, "error": "context deadline exceeded"})
        assert wait(late, late, operation(200, metadata="end")) == "end"

    def test_never_asks_the_daemon_to_wait_for_ever(self, wait: Callable[..., Any], daemon: Daemon) -> None:
        wait(operation(200), timeout=600)
        assert daemon.requests[-1].params == {"timeout": "20"}

    def test_asks_the_daemon_to_wait_no_longer_than_the_caller(self, wait: Callable[..., Any], daemon: Daemon) -> None:
        wait(operation(200), timeout=3)
        assert daemon.requests[-1].params in ({"timeout": "3"}, {"timeout": "4"})

    @pytest.mark.parametrize(
        ("answer", "seen"),
        [
            pytest.param(operation(400, err="Disk quota exceeded"), "Disk quota exceeded", id="failed"),
            pytest.param(operation(401, err=""), "Cancelled", id="cancelled"),
        ],
    )
    def test_for_a_failure_says_why(self, wait: Callable[..., Any], answer: Answer, seen: str) -> None:
        with pytest.raises(OperationFailed, match="copying failed") as caught:
            wait(answer)
        assert caught.value.seen == seen

    def test_takes_an_operation_that_was_forgotten_as_ended(self, wait: Callable[..., Any]) -> None:
        assert wait(operation(103), error(404, "Operation not found")) is None

    def test_passes_on_another_refusal(self, wait: Callable[..., Any]) -> None:
        with pytest.raises(ServerRefused):
            wait(error(500, "broken"))

    def test_ends_when_time_is_up(self, wait: Callable[..., Any]) -> None:
        began = time.monotonic()
        with pytest.raises(OperationFailed, match="copying did not end within 0 s") as caught:
            wait(operation(103), timeout=0.05)
        assert caught.value.seen == "operation 77 is Running"
        assert "timeouts.operation" in caught.value.remedy
        assert time.monotonic() - began < PATIENCE


class TestMemberAway:
    """A request to a cluster that fails, and whose member can be asked for."""

    PATH = ("instances", "cache", "exec")
    STATE = "/1.0/cluster/members/c2/state"

    @pytest.fixture(autouse=True)
    def _cluster(self, daemon: Daemon, connection: Connection) -> None:
        environment = {**HELLO["environment"], "server_clustered": True, "server_name": "c1"}
        daemon.lay_out("GET", "/1.0", sync({**HELLO, "environment": environment}))
        daemon.lay_out("GET", "/1.0/instances", sync([{"name": "cache", "location": "c2"}]))
        daemon.lay_out("POST", "/1.0/instances/cache/exec", error(503, "Server isn't ready yet"))
        daemon.lay_out("GET", self.STATE, sync({}))
        self.has(daemon, c2="Online")
        connection.server()

    def has(self, daemon: Daemon, **status: str) -> None:
        found = [{"server_name": name, "status": each} for name, each in {"c1": "Online", **status}.items()]
        daemon.lay_out("GET", "/1.0/cluster/members", sync(found))

    def execute(self, connection: Connection) -> ServerRefused:
        with pytest.raises(ServerRefused) as caught:
            connection.request("POST", self.PATH, params={"project": "STAGE-GBO-4"})
        return caught.value

    @pytest.mark.parametrize("status", ["Offline", "Evacuated"])
    def test_one_that_the_cluster_misses_is_named(self, daemon: Daemon, connection: Connection, status: str) -> None:
        self.has(daemon, c2=status)
        found = self.execute(connection)
        assert isinstance(found, MemberAway)
        assert found.message == f"STAGE-GBO-4 is on cluster member c2, which is {status.lower()}"
        assert "Server isn't ready yet" in found.seen
        assert "incus cluster remove --force c2" in found.remedy
        assert found.status == 503
        assert daemon.requests[-2].params == {"project": "STAGE-GBO-4", "recursion": "1"}

    def test_one_that_the_cluster_does_not_miss_yet_is_asked_itself(
        self, daemon: Daemon, connection: Connection
    ) -> None:
        daemon.lay_out("GET", self.STATE, error(500, "no route to host"))
        assert self.execute(connection).message == "STAGE-GBO-4 is on cluster member c2, which does not answer"

    def test_one_that_answers_is_not_the_reason(self, daemon: Daemon, connection: Connection) -> None:
        assert type(self.execute(connection)) is ServerRefused
        assert daemon.requests[-1].path == self.STATE

    def test_nor_is_one_that_this_client_may_not_ask(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", self.STATE, error(403, "Forbidden"))
        assert type(self.execute(connection)) is ServerRefused

    def test_what_can_not_be_found_out_leaves_the_error_as_it_is(self, daemon: Daemon, connection: Connection) -> None:
        daemon.lay_out("GET", "/1.0/cluster/members", error(500, "no leader"))
        assert type(self.execute(connection)) is ServerRefused

    @pytest.mark.parametrize(("path", "status"), [(PATH, 404), (("profiles", "lease"), 500), (("instances",), 500)])
    def test_nobody_is_asked_about_another_refusal(
        self, daemon: Daemon, connection: Connection, path: tuple[str, ...], status: int
    ) -> None:
        """Of what is not there, or is on no member."""
        self.has(daemon, c2="Offline")
        daemon.lay_out("POST", f"/1.0/{'/'.join(path)}", error(status, "no"))
        before = len(daemon.requests)
        with pytest.raises(ServerRefused) as caught:
            connection.request("POST", path)
        assert type(caught.value) is ServerRefused
        assert len(daemon.requests) == before + 1

    def test_one_that_a_request_is_aimed_at(self, daemon: Daemon, connection: Connection) -> None:
        self.has(daemon, c2="Offline")
        daemon.lay_out("GET", "/1.0/storage-pools/pool", error(500, "no route to host"))
        with pytest.raises(MemberAway, match=r"^cluster member c2 is offline"):
            connection.get("storage-pools", "pool", target="c2")

    def test_one_that_a_bridge_can_not_be_made_on(self, daemon: Daemon, connection: Connection) -> None:
        """Incus names its address. That of `c1` begins like it."""
        urls = {"c1": "https://10.99.0.1:8443", "c2": "https://10.99.0.12:8443"}
        found = [{"server_name": name, "status": "Online", "url": url} for name, url in urls.items()]
        daemon.lay_out("GET", "/1.0/cluster/members", sync(found))
        daemon.lay_out("GET", self.STATE, error(500, "no route to host"))
        daemon.lay_out("POST", "/1.0/networks", error(500, "failed to notify peer 10.99.0.12:8443: connection refused"))
        with pytest.raises(MemberAway, match=r"^cluster member c2 does not answer"):
            connection.request("POST", ("networks",))

    def test_one_with_a_file(self, daemon: Daemon, connection: Connection) -> None:
        self.has(daemon, c2="Offline")
        daemon.lay_out("GET", "/1.0/instances/cache/files", error(500, "EOF"))
        with pytest.raises(MemberAway):
            connection.read_bytes("instances", "cache", "files", project="STAGE-GBO-4", path="/x")

    @pytest.mark.parametrize("answer", [error(500, "EOF"), operation(400, err="EOF")], ids=["refused", "failed"])
    def test_one_that_dies_under_an_operation(self, daemon: Daemon, connection: Connection, answer: Answer) -> None:
        started = Answer(202, {"type": "async", "operation": "/1.0/operations/77", "metadata": {}})
        daemon.lay_out("POST", "/1.0/instances/cache/exec", started)
        daemon.lay_out("GET", "/1.0/operations/77/wait", answer)
        reply = connection.request("POST", self.PATH, params={"project": "STAGE-GBO-4"})
        self.has(daemon, c2="Offline")
        with pytest.raises(MemberAway, match="STAGE-GBO-4 is on cluster member c2"):
            connection.wait(reply, "sh in cache", PATIENCE)


class TestDoctor:
    """What `doctor` says of a release that the tests do not run on."""

    @pytest.mark.parametrize(
        ("version", "state", "said"),
        [
            ("7.0.9", "ok", "long-term line 7.0, tested with 7.0.2"),
            ("6.12", "warning", "none of the long-term lines; the tests run on 6.0 and 7.0"),
            ("8.0.0", "warning", "newer than what was tested; the tests run on 6.0 and 7.0"),
        ],
    )
    def test_names_the_line_or_warns(self, daemon: Daemon, version: str, state: str, said: str) -> None:
        environment = {"server": "incus", "server_version": version}
        daemon.lay_out("GET", "/1.0", sync({**HELLO, "environment": environment}))
        findings = {each.subject: each for each in examine(parse(["--endpoint", daemon.path, "doctor"]))}
        found = findings[f"Incus {version}"]
        assert (found.state, found.seen.startswith(said)) == (state, True)
        assert bool(found.remedy) == (state == "warning")

    def test_of_lxd_there_is_nothing_but_an_error(self, daemon: Daemon) -> None:
        daemon.lay_out("GET", "/1.0", sync({**HELLO, "environment": {"server": "lxd", "server_version": "5.21"}}))
        *_, last = examine(parse(["--endpoint", daemon.path, "doctor"]))
        assert (last.state, last.subject) == ("failed", "connection")
        assert "is not Incus: it calls itself lxd 5.21" in last.seen
        assert "lxd-to-incus" in last.remedy
