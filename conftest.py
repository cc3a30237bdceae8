"""What every test may use: `pytester`, for tests of the plugin. And Ctrl-C works."""

from __future__ import annotations

import signal

pytest_plugins = ["pytester"]

# A shell without job control starts what it puts into the background with SIGINT ignored, and children inherit that.
# Tests send SIGINT to themselves and to sessions that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
