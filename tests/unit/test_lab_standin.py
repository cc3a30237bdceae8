"""The parts of the stand-in that need no other service, and of the lab's own questions."""

from __future__ import annotations

import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.lab import probe
from pytest_stagegbo.lab.standin import botserver

if TYPE_CHECKING:
    from pathlib import Path


def test_a_dialog_becomes_statements_without_its_comments() -> None:
    tree = json.loads(botserver.compile_basic('REM hello\n\' hello\nTALK "Good morning"\n\nhear name\n'))
    assert tree["statements"] == [
        {"line": 3, "keyword": "TALK", "arguments": ['"Good morning"']},
        {"line": 5, "keyword": "HEAR", "arguments": ["name"]},
    ]


def test_the_env_file_is_read_past_comments_and_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text('# VAULT_ADDR=old\nVAULT_ADDR="http://a:8200"\n\nPORT = 5858\n')
    monkeypatch.setattr(botserver, "ENV_FILE", file)
    assert botserver.read_env() == {"VAULT_ADDR": "http://a:8200", "PORT": "5858"}


def test_health_is_good_only_when_every_backend_is() -> None:
    server = botserver.Server({"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "t"})
    assert server.health()[0] == 503
    for name in botserver.BACKENDS:
        server.reached(name)
    assert server.health()[0] == 200
    server.states["cache"] = "refused"
    status, body = server.health()
    assert status == 503
    assert body["backends"]["cache"] == "refused"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(b"+PONG\r\n", "", id="open"),
        pytest.param(b"-NOAUTH Authentication required.\r\n", "", id="wants a password"),
        pytest.param(b"-LOADING the dataset\r\n", "-LOADING the dataset\r\n", id="loading"),
        pytest.param(b"", "closed the connection", id="closed"),
    ],
)
def test_the_cache_works_unless_it_is_loading(answer: bytes, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: ours)

    def serve() -> None:
        with theirs:
            theirs.recv(100)
            theirs.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    assert probe._cache() == expected
    thread.join()
