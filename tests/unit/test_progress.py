"""Work reports its beginning and its end, with the error that ended it."""

from __future__ import annotations

import pytest
from fakes import Journal

from pytest_stagegbo.progress import Progress, Silent, task


def test_work_is_reported_from_beginning_to_end() -> None:
    journal = Journal()
    with task(journal, "copy:tables", "copy tables"):
        assert (journal.begun, journal.ended) == (["copy:tables"], {})
    assert journal.ended == {"copy:tables": None}


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_whatever_ends_work_is_reported_and_goes_on(error: BaseException) -> None:
    journal = Journal()
    with pytest.raises(type(error)) as caught, task(journal, "copy:tables", "copy tables"):
        raise error
    assert caught.value is error
    assert journal.ended == {"copy:tables": error}


def test_silence_takes_every_report() -> None:
    silent: Progress = Silent()
    silent.note("anything")
    with task(silent, "key", "text"):
        pass
