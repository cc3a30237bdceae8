"""One meaning of yes and no, wherever it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.lab import Lab
from pytest_stagegbo.session.options import chosen_lab
from pytest_stagegbo.settings import load
from pytest_stagegbo.truth import truth, wanted_lab

if TYPE_CHECKING:
    from pathlib import Path

YES = ["1", "true", "yes", "on", "ON", "True", " yes "]
NO = ["0", "false", "no", "off", "OFF", "False", " no "]


@pytest.mark.parametrize("word", [*YES, *NO])
def test_every_reader_agrees(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting, pytest's ini and environment, and the command line's environment."""
    joined: list[bool] = []
    monkeypatch.setenv("STAGEGBO_LAB", word)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(Lab, "join_network", lambda _: joined.append(True))
    expected = word in YES
    assert truth(word) is expected
    assert load(None, tmp_path, {"STAGEGBO_PYTEST__KEEP": word}).settings.pytest.keep is expected
    assert chosen_lab({"lab": None}, {"lab": None}, {"STAGEGBO_LAB": word}) is expected
    assert chosen_lab({"lab": None}, {"lab": word}, {}) is expected
    assert (open_context(parse(["status"])).lab is not None) is expected
    assert joined == [True] * expected
    assert open_context(parse(["--lab", "status"])).lab is not None


@pytest.mark.parametrize("text", ["maybe", "5.0", "2"])
def test_other_words_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert truth(text) is None
    with pytest.raises(SettingsError, match=r"\$STAGEGBO_LAB: .* does not say whether"):
        chosen_lab({"lab": None}, {"lab": None}, {"STAGEGBO_LAB": text})
    monkeypatch.setenv("STAGEGBO_LAB", text)
    with pytest.raises(SettingsError, match=r"\$STAGEGBO_LAB: .* does not say whether"):
        open_context(parse(["status"]))


def test_a_version_of_incus_asks_for_its_lab() -> None:
    assert wanted_lab("7.0", "here") == "7.0"
    assert wanted_lab("", "here") is False
