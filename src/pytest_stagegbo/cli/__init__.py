"""The command line: `stagegbo`, or `python -m pytest_stagegbo`."""

from __future__ import annotations

import gc
import logging
import os
import sys
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.parser import parse
from pytest_stagegbo.cli.streams import NOBODY_READS, is_output_at_fault, open_closed_streams, silence
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.truth import truth

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

COLLECT_AFTER = 50_000
"""Objects more than there were, after which Python looks for garbage in cycles. By itself it does so after 700: while a
command's modules are imported, which make hardly any, that takes a tenth of the time."""
INTERRUPTED = 130
"""What shells report for a process that Ctrl-C ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Errors of this package are printed with a remedy, on standard
    error."""
    is_program = argv is None  # else somebody else's process
    if is_program:
        gc.set_threshold(COLLECT_AFTER)
    open_closed_streams()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for words that fit
        from pytest_stagegbo.cli.completion import complete

        complete()
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # the commands' modules are still being imported
        return INTERRUPTED
    debug = arguments.debug or truth(os.environ.get("STAGEGBO_DEBUG") or "no") is not False
    if debug or arguments.verbose:
        _log(logging.DEBUG if debug else logging.INFO)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except StageGboError as error:
        if debug:
            raise
        from pytest_stagegbo.cli.console import print_error
        from pytest_stagegbo.cli.remedies import aimed

        error.remedy = aimed(error.remedy, arguments)
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted; the next run goes on from here", file=sys.stderr)
        return INTERRUPTED
    except RecursionError as error:
        return _unexpected(error, debug)
    except BrokenPipeError:
        silence()
        return NOBODY_READS
    except OSError as error:  # a folder that may not be written, a full disk
        return _unexpected(error, debug)
    finally:
        leases = sys.modules.get("pytest_stagegbo.leases.process")
        if leases is not None:
            leases.close_all()
        if is_program:
            gc.freeze()  # Python looks through all modules before it ends, and this takes them out of its sight
    return code


def _log(level: int) -> None:
    """Write what this package logs to standard error. Other packages only add their warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)6d ms %(name)s: %(message)s")
    for name in ("stagegbo", "pytest_stagegbo"):
        logging.getLogger(name).setLevel(level)


def _unexpected(error: Exception, debug: bool) -> int:
    """Print an error that no command expects, with its traceback when `--debug` is set, and return the exit status."""
    if debug:
        raise error
    from pytest_stagegbo.cli.console import print_error

    named = getattr(error, "filename", None)
    what = f"{named}: {error.strerror}" if isinstance(error, OSError) and named else str(error)
    if isinstance(error, OSError) and not named and is_output_at_fault():
        silence()
        what = f"standard output can't be written: {error.strerror}"
    print_error(StageGboError(what, remedy="`--debug` shows where it came from"))
    return StageGboError.exit_code
