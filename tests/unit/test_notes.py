"""Notes are in UTF-8 whatever the locale is, and neither names of tests nor what a file has make them fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo import notes
from pytest_stagegbo.locks import StageLock
from pytest_stagegbo.session.summary import Summary

if TYPE_CHECKING:
    from pathlib import Path

NAME = "test_\udcff.py::тест[\ud800]"
SHOWN = "test_\\udcff.py::тест[\\ud800]"


@pytest.mark.parametrize("write", [notes.write, notes.rewrite])
def test_a_name_that_no_encoding_has_is_escaped(write: object, tmp_path: Path) -> None:
    note = tmp_path / "note"
    for text in ("a longer one that was there before: " + NAME, NAME):
        assert callable(write)
        write(note, text)
    assert note.read_bytes() == SHOWN.encode()
    assert notes.read(note) == SHOWN


def test_a_note_that_ends_within_a_character_is_read(tmp_path: Path) -> None:
    note = tmp_path / "note"
    note.write_bytes("тест".encode()[:-1])
    assert notes.read(note) == "тес\N{REPLACEMENT CHARACTER}"


def test_who_waits_is_told_of_such_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_stagegbo.locks.PARENTS", (tmp_path,))
    lock = StageLock(str(tmp_path), "server", "STAGE-GBO", 1)
    with lock.hold(f"test {NAME}", shared=["cache"]):
        assert f"(test {SHOWN})" in lock.holder()


def test_what_a_worker_sends_can_be_sent() -> None:
    sent = Summary(broken=[NAME], trouble=[NAME]).to_json()
    assert sent["broken"] == sent["trouble"] == [SHOWN]
