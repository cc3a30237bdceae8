"""Keeps what a failed test left in the containers that it used, as a capsule of each stage, for `--stage-capsule`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.plugin.running import pass_on, said
from pytest_stagegbo.plugin.stash import BEGAN, CAPSULE
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pytest

    from pytest_stagegbo.engine.capsules import Draft
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plugin.configuration import Configuration

    Section = tuple[str, str]

__all__ = ["Capsules", "drop_oldest", "forget_old"]

MOST_TEXT = 500_000
"""Characters of a report, or of logs, that a capsule has."""


class Capsules:
    """Keeps capsules of failed tests, one for each stage that the test used."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    @contextlib.contextmanager
    def keeping(
        self,
        item: pytest.Item,
        phase: str,
        used: Iterable[tuple[StageEngine, Sequence[str], int]],
        found: list[Section],
        report: Callable[[], str],
    ) -> Iterator[None]:
        """Keep the state of the test's containers at the beginning of the block, and what is found in it at its end.

        It is kept once for a test: a teardown that fails as well comes after the fixtures have changed things. Raises
        nothing of its own.

        Args:
            phase: In which the test failed.
            used: The stages that it used, with containers and slot.
            found: The sections of the test's report, which the block adds the logs to. This adds one that names the
                capsule.
            report: Makes the text of the report, with secrets masked.
        """
        stages = self._stages(item, used, found)
        with contextlib.ExitStack() as all_stages:
            drafts: list[tuple[Draft, contextlib.ExitStack, int]] = []
            for engine, names, slot in stages:
                whole = all_stages.enter_context(contextlib.ExitStack())
                with _reporting(found):
                    drafts.append((whole.enter_context(_begin(engine, names, item, phase, slot)), whole, slot))
            yield
            for draft, whole, slot in drafts:
                with _reporting(found):
                    draft.texts["report"] = printable(_made(report)[:MOST_TEXT])
                    logs = "\n\n".join(f"{title}\n{text}" for title, text in found)
                    draft.texts["logs"] = printable(logs[-MOST_TEXT:])
                    whole.close()
                    command = f"{self._configuration.command(slot)} capsule"
                    text = f"{command} open {draft.key}\n{command} show {draft.key}"
                    found.append((f"stage capsule {draft.key} has what the test left; to look inside", text))

    def _stages(
        self, item: pytest.Item, used: Iterable[tuple[StageEngine, Sequence[str], int]], found: list[Section]
    ) -> list[tuple[StageEngine, Sequence[str], int]]:
        """Those to keep capsules of. Nothing is read where a test has used none."""
        began = item.stash.get(BEGAN, 0.0)
        with _reporting(found):
            stages = list(used)
            wanted = bool(stages) and self._configuration.settings.pytest.capsule == "failed"
            if wanted and item.stash.get(CAPSULE, None) != began:
                item.stash[CAPSULE] = began
                return stages
        return []


def forget_old(engine: StageEngine) -> None:
    """Delete capsules that are older than the settings allow, at the beginning of a session that may keep more."""
    if engine.settings.pytest.capsule == "failed":
        from pytest_stagegbo.engine.capsules import Capsules as StageCapsules

        StageCapsules(engine).prune(only_old=True)


def drop_oldest(engine: StageEngine) -> bool:
    """Delete the stage's oldest capsule, to make room; whether there was one."""
    from pytest_stagegbo.engine.capsules import Capsules as StageCapsules

    return StageCapsules(engine).drop_oldest()


def _begin(
    engine: StageEngine, names: Sequence[str], item: pytest.Item, phase: str, slot: int
) -> contextlib.AbstractContextManager[Draft]:
    from pytest_stagegbo.engine.capsules import Capsules as StageCapsules
    from pytest_stagegbo.engine.capsules import Occasion

    marks = tuple(dict.fromkeys(mark.name for mark in item.iter_markers()))
    seed = str(getattr(item.config.option, "randomly_seed", "") or "")
    return StageCapsules(engine).keeping(names, Occasion(printable(item.nodeid), phase, slot, marks, seed))


def _made(report: Callable[[], str]) -> str:
    """The text of a report; why there is none, if it can't be made."""
    try:
        return report()
    except BaseException as error:
        pass_on(error)
        return said(error)


@contextlib.contextmanager
def _reporting(found: list[Section]) -> Iterator[None]:
    """Report any error of the block in the test's report, and go on: a test may have patched anything."""
    try:
        yield
    except BaseException as error:
        pass_on(error)
        text = str(error) if isinstance(error, StageGboError) else said(error)
        found.append(("stage: no capsule could be kept", text))
