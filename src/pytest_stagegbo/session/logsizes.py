"""Has containers note how large their log files are, so that new lines can be told from old ones that carry no times.

`guest.logs` reads the notes. Every session takes them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pytest_stagegbo.engine.reset import our_clone
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.guest.logs import remember_script

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_stagegbo.engine.stage import StageEngine

__all__ = ["remember"]

SECONDS = 5.0
"""For one container."""


def remember(engine: StageEngine, names: Sequence[str], is_over: Callable[[], bool] = lambda: False) -> None:
    """Have the containers note the sizes of their log files, for files without times. One command in each.

    Waits for them, so call it in a thread of its own when a session begins. Never raises: without it a report
    shows the last lines of such files, and says so.

    Args:
        is_over: Whether the session has ended, so that nobody will read the notes of containers that are left.
    """
    try:
        settings = engine.settings
        clones, writer = engine.reader.instances(settings.project), engine.clone_writer()
        for name in names:  # one by one: a thread for each, with a client of its own, holds up the tests
            with contextlib.suppress(Exception):  # one that fails keeps none of the others from it
                if name in clones and not is_over() and our_clone(clones[name], settings, name).is_running:
                    script = remember_script(settings.containers[name])
                    writer.execute(name, ["sh", "-c", script], timeout=SECONDS, record=False)
    except StageGboError:
        pass
