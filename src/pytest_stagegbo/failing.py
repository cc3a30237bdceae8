"""What the report of a failed test says of a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.running import pass_on, said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.stage import Stage

__all__ = ["logs"]


def logs(engine: StageEngine, names: Sequence[str], since: float, stage: Stage | None) -> list[tuple[str, str]]:
    """What containers logged since then. Raises nothing but what ends pytest."""
    from pytest_stagegbo.session.failure import sections
    from pytest_stagegbo.stage import Credentials

    try:
        known = stage.credentials if stage is not None else Credentials(engine.settings, engine.reader)
        known.load()  # what is not known can't be masked
        return [(title, known.mask(text)) for title, text in sections(engine, names, since, ())]
    except BaseException as error:
        pass_on(error)
        title = f"stage containers {', '.join(names)}: logged since the test began"
        return [(title, f"(the logs could not be fetched: {said(error)})")]
