"""Tells which tests a run executes, and which exceptions have to end pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["executed", "is_of_stage", "pass_on", "runs_tests", "said", "skipped_by_unittest"]

LONGEST_MESSAGE = 2000
"""Characters of an error of unknown origin that are shown. Its message may be as long as the memory is large."""


def runs_tests(config: pytest.Config) -> bool:
    """Whether this run executes tests: `--collect-only`, `--setup-plan` and `--setup-only` (which the second of these
    implies) do not, and so they do nothing to a stage."""
    return not any(getattr(config.option, name, False) for name in ("collectonly", "setupplan", "setuponly"))


def executed(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the tests that this run will execute, as far as that is known beforehand."""
    if not items or not runs_tests(items[0].config):
        return []
    session, config = items[0].session, items[0].config
    goes_on = hasattr(config, "workerinput") or config.getoption("continue_on_collection_errors", False)
    if session.testsfailed and not goes_on:
        return []  # pytest ends here; pytest-xdist goes on
    return [item for item in items if not _is_skipped(item)]


def _is_skipped(item: pytest.Item) -> bool:
    """Whether a test is certainly skipped. pytest evaluates conditions in text only when it runs the test."""
    runxfail = item.config.getoption("runxfail", False)
    return (
        item.get_closest_marker("skip") is not None
        or skipped_by_unittest(item) is not None
        or any(
            True is each for mark in item.iter_markers("skipif") for each in (*mark.args, mark.kwargs.get("condition"))
        )
        or (not runxfail and any(mark.kwargs.get("run") is False for mark in item.iter_markers("xfail")))
    )


def skipped_by_unittest(item: pytest.Item) -> str | None:
    """Why `unittest.skip` leaves a test out, on itself or on its class; None: it does not. pytest hears of it from
    `unittest` when the test's fixtures have been set up."""
    owner = getattr(item, "cls", None)
    if owner is None or (not hasattr(owner, "runTest") and not hasattr(owner, "defaultTestResult")):
        return None
    for each in (getattr(owner, getattr(item, "originalname", None) or item.name, None), owner):
        if getattr(each, "__unittest_skip__", False):
            return str(getattr(each, "__unittest_skip_why__", ""))
    return None


def pass_on(error: BaseException) -> None:
    """Raise what ends pytest on purpose: Ctrl-C and `pytest.exit`. Anything else may come of what a test has patched,
    also what is no `Exception`: `pytest.fail`, `sys.exit`."""
    if isinstance(error, (KeyboardInterrupt, pytest.exit.Exception)):
        raise error


def is_of_stage(title: str) -> bool:
    """Whether a section of a report is one of this plugin's."""
    return title.startswith(("stage ", "stage: ", "fresh stage "))


def said(error: BaseException) -> str:
    """Return an error as text for a terminal. Anything that looks like a secret is masked."""
    from pytest_stagegbo.services.masking import Masker
    from pytest_stagegbo.text import printable

    try:
        text = f"{type(error).__name__}: {error}"
        masked = Masker().mask(text[: 2 * LONGEST_MESSAGE])  # what is cut in two here is not shown
        return printable(masked[:LONGEST_MESSAGE] + ("..." if len(masked) > LONGEST_MESSAGE else ""))
    except Exception:
        return type(error).__name__
