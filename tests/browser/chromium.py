"""Debian's Chromium without a window, driven over HTTP by its driver in the WebDriver protocol (W3C).

Selenium would do the same, and brings trio, whose hook for hypothesis warns at the start of every other test.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import urllib.error
import urllib.request
from typing import Any

__all__ = ["Browser"]

SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1400,1000"
)
PATIENCE = 180.0
"""Seconds for one answer."""


class Browser(contextlib.ExitStack):
    """A browser with an empty profile. It ends with the block."""

    def __enter__(self) -> Browser:
        super().__enter__()
        profile = self.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        command = [os.environ.get("CHROMEDRIVER", "chromedriver"), "--port=0"]
        driver = self.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        self.callback(driver.terminate)
        assert driver.stdout is not None
        port = next(
            line.rpartition(" ")[2].strip().rstrip(".") for line in driver.stdout if "successfully on port" in line
        )
        self._address = f"http://127.0.0.1:{port}/session"
        options = {"args": [*SWITCHES.split(), f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
        session = self._send("POST", self._address, {"capabilities": {"alwaysMatch": wanted}})
        self._address += f"/{session['sessionId']}"
        self.callback(self._send, "DELETE", self._address)
        return self

    def ask(self, method: str, command: str, body: Any = None) -> Any:
        """The answer to one command of this session."""
        return self._send(method, f"{self._address}/{command}", body)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since the last call."""
        found: list[dict[str, Any]] = self.ask("POST", "se/log", {"type": kind})
        return found

    def _send(self, method: str, address: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
