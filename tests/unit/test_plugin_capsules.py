"""Texts of a capsule, whatever a failed test has in them."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from pytest_stagegbo.engine.capsules import Draft, Occasion
from pytest_stagegbo.plugin.capsules import Capsules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plugin.configuration import Configuration


class Kept:
    """Stands for the capsules of a stage, and notes what it has to keep."""

    draft = Draft("00000001", {})
    occasion = Occasion("")

    def __init__(self, engine: object) -> None: ...

    @contextlib.contextmanager
    def keeping(self, names: object, occasion: Occasion) -> Iterator[Draft]:  # noqa: ARG002
        Kept.occasion = occasion
        yield self.draft


def test_what_no_encoding_can_write_costs_no_capsule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python puts surrogates for bytes that are not UTF-8: of a file's name, or of what a program printed."""
    monkeypatch.setattr("pytest_stagegbo.engine.capsules.Capsules", Kept)
    settings = SimpleNamespace(pytest=SimpleNamespace(capsule="failed"))
    configuration = SimpleNamespace(settings=settings, command=lambda _: "stagegbo")
    item = SimpleNamespace(
        stash=pytest.Stash(),
        nodeid="test_\udcff.py::test_it",
        config=SimpleNamespace(option=SimpleNamespace()),
        iter_markers=lambda: (),
    )
    found: list[tuple[str, str]] = []
    used = [(cast("StageEngine", None), ("cache",), 0)]
    keeper = Capsules(cast("Configuration", configuration))
    with keeper.keeping(cast("pytest.Item", item), "call", used, found, lambda: "read \udcff and \0 and \x1b[31m"):
        found.append(("stage container cache", "said \udc80"))
    assert Kept.draft.texts == {
        "report": "read \\udcff and \\x00 and \\x1b[31m",
        "logs": "stage container cache\nsaid \\udc80",
    }
    assert Kept.occasion.test == "test_\\udcff.py::test_it"
    assert found[-1][0].startswith("stage capsule 00000001")
