"""Fixtures with clients for asynchronous tests. Each client is connected in the event loop that runs the test.

pytest-asyncio (in its strict mode) and anyio each run only asynchronous fixtures of their own kind. Which of the two
runs a test is known when the test asks for the fixture, so the fixture is made of that kind then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator

__all__ = ["AsyncFixtures"]

ASYNCHRONOUS = frozenset({"stage_psycopg_async", "stage_valkey_async"})
FIXTURES = "pytest_stagegbo.plugin.fixtures"
"""Where they are defined."""


class AsyncFixtures:
    """Makes each asynchronous fixture one of the plugin that runs the test: pytest-asyncio or anyio."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._of_asyncio: dict[str, Callable[..., Any]] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        if fixturedef.argname not in ASYNCHRONOUS or fixturedef.func.__module__ != FIXTURES:  # or somebody's own
            return (yield)
        if "anyio_backend" in request.fixturenames:
            return (yield)
        if not self._config.pluginmanager.has_plugin("asyncio"):
            pytest.fail(
                f"{fixturedef.argname} is for asynchronous tests, and nothing that is installed runs this one\n"
                "what to do: pip install pytest-asyncio and mark the test with @pytest.mark.asyncio, or use "
                "@pytest.mark.anyio",
                pytrace=False,
            )
        original = fixturedef.func
        fixturedef.func = self._for_asyncio(fixturedef.argname, original)  # type: ignore[misc]
        try:
            return (yield)
        finally:
            fixturedef.func = original  # type: ignore[misc]

    def _for_asyncio(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return the fixture as one of pytest-asyncio's, which marks the function itself."""
        if name not in self._of_asyncio:
            import pytest_asyncio

            async def fixture(**arguments: Any) -> AsyncIterator[Any]:
                async for value in original(**arguments):
                    yield value

            pytest_asyncio.fixture(fixture)
            self._of_asyncio[name] = fixture
        return self._of_asyncio[name]
