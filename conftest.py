"""What every test may use: `pytester`, for tests of the plugin."""

from __future__ import annotations

pytest_plugins = ["pytester"]
