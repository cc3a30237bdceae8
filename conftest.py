"""What every test may use: `pytester`, for tests of the plugin. And Ctrl-C works."""

from __future__ import annotations

import signal

pytest_plugins = ["pytester"]

# A shell without job control starts what it puts into the background with SIGINT ignored, nohup and many runners of CI
# ignore SIGHUP, and children inherit both. Tests send them to themselves and to processes that they start.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)
