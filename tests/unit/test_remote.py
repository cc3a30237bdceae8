"""A daemon over HTTPS: a real TLS server on loopback, whose certificate has no name that fits its address."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from fakes import Patient
from tests.certificates import Pair, make_pair

from pytest_stagegbo.errors import ServerUnreachable, SettingsError
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.settings import IncusSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Daemon(Patient, ThreadingHTTPServer):
    """Says who it is, and trusts the client that the test names."""

    daemon_threads = True

    def __init__(self, own: Pair, trusted: Pair) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                shown = self.connection.getpeercert(binary_form=True)
                hello: dict[str, Any] = {"auth": "trusted" if shown else "untrusted"}
                if shown:
                    environment = {"server": "incus", "server_version": "7.0.2"}
                    hello |= {"api_extensions": list(dialect.NEEDED), "environment": environment}
                body = json.dumps({"type": "sync", "metadata": hello}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own.cert, own.key)
        context.load_verify_locations(trusted.cert)
        context.verify_mode = ssl.CERT_OPTIONAL
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.own = own


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("certificates")
    return {name: make_pair(folder, name) for name in ("server", "client", "another")}


@pytest.fixture(scope="module")
def daemon(pairs: dict[str, Pair]) -> Iterator[Daemon]:
    with Daemon(pairs["server"], pairs["client"]) as daemon:
        thread = threading.Thread(target=daemon.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield daemon
        daemon.shutdown()
        thread.join(10)


def settings(daemon: Daemon, client: Pair | None, server: Pair | None) -> IncusSettings:
    return IncusSettings(
        endpoint=f"https://127.0.0.1:{daemon.server_address[1]}",
        client_cert=str(client.cert) if client else "",
        client_key=str(client.key) if client else "",
        server_cert=str(server.cert) if server else "",
    )


class TestServer:
    def test_is_known_by_its_certificate_whatever_its_names_are(self, daemon: Daemon, pairs: dict[str, Pair]) -> None:
        connection = Connection(settings(daemon, pairs["client"], pairs["server"]))
        assert connection.server().version == "7.0.2"

    def test_is_known_by_it_whatever_authorities_the_environment_names(
        self, daemon: Daemon, pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pairs["another"].cert))
        assert Connection(settings(daemon, pairs["client"], pairs["server"])).server().trusted

    def test_with_another_certificate_is_refused_with_both_fingerprints(
        self, daemon: Daemon, pairs: dict[str, Pair]
    ) -> None:
        connection = Connection(settings(daemon, pairs["client"], pairs["another"]))
        with pytest.raises(ServerUnreachable, match=r"is not the one that incus\.server_cert names") as caught:
            connection.get("instances")
        assert pairs["server"].fingerprint in caught.value.seen
        assert pairs["another"].fingerprint in caught.value.seen

    def test_that_no_authority_knows_is_refused_with_its_fingerprint(
        self, daemon: Daemon, pairs: dict[str, Pair]
    ) -> None:
        with pytest.raises(ServerUnreachable, match="is not trusted on this machine") as caught:
            Connection(settings(daemon, pairs["client"], None)).server()
        assert pairs["server"].fingerprint in caught.value.seen
        assert "incus.server_cert" in caught.value.remedy

    def test_that_is_not_there_is_said_to_be_so(self, pairs: dict[str, Pair]) -> None:
        nobody = IncusSettings(endpoint="https://127.0.0.1:1", server_cert=str(pairs["server"].cert))
        with pytest.raises(ServerUnreachable, match="did not answer") as caught:
            Connection(nobody).server()
        assert "core.https_address" in caught.value.remedy


class TestClient:
    def test_that_is_not_trusted_is_told_its_fingerprint(self, daemon: Daemon, pairs: dict[str, Pair]) -> None:
        """TLS itself refuses what this daemon does not know; Incus lets it in and says `untrusted`."""
        unknown = Connection(settings(daemon, None, pairs["server"]))
        with pytest.raises(ServerUnreachable, match="does not trust this client") as caught:
            unknown.get("instances")
        assert "no client certificate is set" in caught.value.seen
        assert "incus config trust add-certificate" in caught.value.remedy

    def test_with_another_s_key_is_an_error_of_the_settings(self, daemon: Daemon, pairs: dict[str, Pair]) -> None:
        mixed = Pair(pairs["client"].cert, pairs["another"].key)
        with pytest.raises(SettingsError, match=r"incus\.client_cert .* with incus\.client_key .* can't be used"):
            Connection(settings(daemon, mixed, pairs["server"])).server()

    def test_with_an_encrypted_key_is_an_error_and_no_question(
        self, daemon: Daemon, pairs: dict[str, Pair], tmp_path: Path
    ) -> None:
        locked = make_pair(tmp_path, "locked", password=b"s3cret")
        with pytest.raises(SettingsError, match="can't be used"):
            Connection(settings(daemon, locked, pairs["server"])).server()

    @pytest.mark.parametrize("which", ["client", "server"])
    def test_files_that_are_not_there_are_named(
        self, daemon: Daemon, pairs: dict[str, Pair], tmp_path: Path, which: str
    ) -> None:
        missing = Pair(tmp_path / "none.crt", tmp_path / "none.key")
        chosen = {**pairs, which: missing}
        with pytest.raises(SettingsError, match=rf"incus\.{which}_cert.*none\.crt"):
            Connection(settings(daemon, chosen["client"], chosen["server"])).server()
