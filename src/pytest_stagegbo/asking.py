"""Fixtures of the stage that somebody asks for, in a signature or by `getfixturevalue`."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest

from pytest_stagegbo.session.demand import FIXTURES, WHOLE_STAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Asking"]

STAGE_FIXTURES = frozenset({WHOLE_STAGE, *FIXTURES})
"""Those that stand for containers which tests share."""


class Asking:
    """Hears of every fixture that somebody gets the value of.

    pytest has a hook for fixtures that are set up, and none for a value that is there: a second test that calls
    `getfixturevalue("stage_cache")` would go unheard. All ways to a value, named in a signature or not, go through
    `FixtureDef.execute`.

    Args:
        config: Of the run whose fixtures count: a test may run pytest within its own process.
        claim: Called with names of the stage's fixtures before the test that runs gets their values.
    """

    def __init__(self, config: pytest.Config, claim: Callable[[frozenset[str]], None]) -> None:
        self._config = config
        self._claim = claim
        self._resolving: list[pytest.FixtureDef[Any]] = []
        self._stands_for: WeakKeyDictionary[pytest.FixtureDef[Any], frozenset[str]] = WeakKeyDictionary()

    def begin(self) -> None:
        """From here on, until pytest is done with this run."""
        original = pytest.FixtureDef.execute

        @functools.wraps(original)
        def execute(definition: pytest.FixtureDef[Any], request: Any) -> Any:
            __tracebackhide__ = True
            if request.config is not self._config:
                return original(definition, request)
            with self._heard(definition):
                return original(definition, request)

        def restore() -> None:
            pytest.FixtureDef.execute = original  # type: ignore[method-assign]

        pytest.FixtureDef.execute = execute  # type: ignore[method-assign, assignment]
        self._config.add_cleanup(restore)

    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """What a fixture asked for when it was set up the last time does not count any more."""
        self._stands_for.pop(fixturedef, None)

    @contextlib.contextmanager
    def _heard(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Around each time that somebody gets the value of a fixture, one that is set up already included.

        A fixture that asks for the stage by `getfixturevalue` stands for what it asked for, for as long as its value
        is used: by further tests if its scope is wider than a test.
        """
        names = self._stands_for.get(fixturedef, frozenset())
        if fixturedef.argname in STAGE_FIXTURES:
            names = names | {fixturedef.argname}
        if names:
            for asking in self._resolving:
                self._stands_for[asking] = self._stands_for.get(asking, frozenset()) | names
            self._claim(names)
        self._resolving.append(fixturedef)
        try:
            yield
        finally:
            self._resolving.pop()
