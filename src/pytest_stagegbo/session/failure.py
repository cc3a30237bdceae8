"""What the stage's containers logged while a test ran, for the report of its failure.

Passing tests pay nothing: containers are asked when a test has failed, once each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.engine.reset import our_clone
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.guest.logs import Wanted, fetch_script, parse, remember_script, show, token
from pytest_stagegbo.session.parallel import run_parallel
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.incus import Instance, Writer

__all__ = ["sections"]

SECONDS = 5.0
"""For all containers together."""
LINES = 200
"""Log lines of one container: the last ones."""
SOME_LINES = 20
"""Log lines of a file whose new part is not known."""
NOTHING = "nothing"
LONGEST_LINE = 1000
"""Characters."""


def sections(
    engine: StageEngine, names: Sequence[str], since: float, hide: Callable[[str], str]
) -> list[tuple[str, str]]:
    """A title and the log lines of each container, for the report of a failed test. Never raises.

    Args:
        names: Of the containers that the test used.
        since: When the test began, in epoch seconds.
        hide: Takes secrets out of text.
    """
    away = away_text(engine)
    if away:
        return [("stage: its member of the cluster is away", away)]
    titles = {name: f"stage container {name}: logged since the test began" for name in names}
    began = clocks.monotonic()
    try:
        clones, writer = engine.reader.instances(engine.settings.project), engine.clone_writer()
        calls = {name: _fetching(engine, writer, clones.get(name), name, since, hide) for name in names}
        left = max(0.5, SECONDS - (clocks.monotonic() - began))
        found: Mapping[str, str | Exception] = run_parallel(calls, left)
    except Exception as error:  # whatever it is, the test's own failure must be reported
        found = dict.fromkeys(names, error)
    shown = {name: text if isinstance(text, str) else _sorry(text) for name, text in found.items()}
    silent = [name for name, text in shown.items() if text == NOTHING]
    spoke = [(titles[name], printable(text)) for name, text in shown.items() if name not in silent]
    if silent:
        word = "container" if len(silent) == 1 else "containers"
        spoke.append((f"stage {word} {', '.join(silent)}: logged since the test began", NOTHING))
    return spoke


def away_text(engine: StageEngine) -> str:
    """What happened to a stage whose member of the cluster is away; empty: nothing did. Never raises."""
    try:
        state = engine.reader.why_away()
    except Exception:  # the sections that follow say what the daemon says
        return ""
    if not state:
        return ""
    return (
        f"{engine.settings.project} is on cluster member {engine.reader.member}, which {state}. Stages and slots on "
        "other members go on; `stagegbo status` shows which these are"
    )


def _fetching(
    engine: StageEngine, writer: Writer, clone: Instance | None, name: str, since: float, hide: Callable[[str], str]
) -> Callable[[], str]:
    def fetch() -> str:
        our_clone(clone, engine.settings, name)
        if clone is None or not clone.is_running:
            return (
                f"{name} is {clone.status.lower() if clone else 'gone'}: a container that is not running tells nothing"
            )
        container, head = engine.settings.containers[name], token()
        wanted = Wanted(LINES + 1, since, quiet=True, untimed=SOME_LINES)  # one more tells that some were left out
        # What the next failed test finds in files without times counts from here.
        script = f"{remember_script(container)}\n{fetch_script(container, head, wanted)}"
        result = writer.execute(name, ["timeout", f"{SECONDS:g}", "sh", "-c", script], timeout=SECONDS)
        text = show(parse(result.stdout, head, wanted, hide), LINES, LONGEST_LINE)
        if result.status != 0:
            text += f"\n(fetching the logs ended with status {result.status}: {hide(result.stderr.strip()[-300:])})"
        return text.strip() or NOTHING

    return fetch


def _sorry(error: Exception) -> str:
    message = error.message if isinstance(error, StageGboError) else str(error) or type(error).__name__
    return f"(the logs could not be fetched: {message})"
