"""Standard input, output and errors, which whoever starts a command may have closed, or may stop reading."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["NOBODY_READS", "end_like_ctrl_c", "is_output_at_fault", "open_closed_streams", "silence"]

NOBODY_READS = 141
"""What shells report for a process that wrote to a pipe which nobody reads any more: 128 and SIGPIPE."""


def open_closed_streams() -> None:
    """Open what is closed on nothing: else Python has no such stream, and the next file or socket gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def silence() -> None:
    """Have the interpreter's own flush at the end of the process write nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def is_output_at_fault() -> bool:
    """Whether standard output can't be written: a full disk, say. Then `silence` it."""
    try:
        sys.stdout.flush()
        os.write(1, b"")
    except OSError:
        return True
    return False


def end_like_ctrl_c() -> None:
    """Have SIGTERM and SIGHUP end a command as Ctrl-C does: one that goes on until then has something to clear up."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
