"""How large a container's log files were at a moment: what tells new lines from old where lines carry no times.

Beside `failure`, which reads the notes: every session takes them, and most sessions have no failed test.
"""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.engine.reset import our_clone
from pytest_stagegbo.errors import StageGboError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["SIZES", "remember", "remember_script"]

SECONDS = 5.0
"""For one container."""
SIZES = "/run/stagegbo-log-sizes"
"""In a container: when, inode and size, a line for each file and time that sizes were noted. Gone with a reboot."""
SIZES_KEPT = 2000
"""Lines."""


def remember(engine: StageEngine, names: Sequence[str]) -> None:
    """Have the containers note the sizes of their log files, for files without times. One command in each.

    Waits for them, so call it in a thread of its own when a session begins. Never raises: without it a report
    shows the last lines of such files, and says so.
    """
    try:
        settings = engine.settings
        clones, writer = engine.reader.instances(settings.project), engine.clone_writer()
        for name in names:  # one by one: a thread for each, with a client of its own, holds up the tests
            with contextlib.suppress(Exception):  # one that fails keeps none of the others from it
                if name in clones and our_clone(clones[name], settings, name).is_running:
                    writer.execute(name, ["sh", "-c", remember_script(settings.containers[name])], timeout=SECONDS)
    except StageGboError:
        pass


def remember_script(container: ContainerSettings) -> str:
    """POSIX shell that notes the time and every log file's inode and size, and keeps notes of earlier times."""
    if not container.logs:
        return ":"
    folders = " ".join(shlex.quote(f"{folder}/") for folder in container.logs)
    return f"""umask 077
{{ tail -n {SIZES_KEPT} {SIZES} 2>/dev/null; now=$(date +%s.%N); \
find {folders} -type f -printf "$now %i %s\\n" 2>/dev/null; echo "$now 0 0"; }} >{SIZES}.$$ && mv {SIZES}.$$ {SIZES}
"""
