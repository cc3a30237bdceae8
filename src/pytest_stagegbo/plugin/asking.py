"""Notices each time that a test or fixture gets the value of one of the plugin's fixtures, in whichever way."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest

from pytest_stagegbo.session.requirements import FIXTURES, WHOLE_STAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Asking"]

STAGE_FIXTURES = frozenset({WHOLE_STAGE, *FIXTURES})
"""Those that stand for containers which tests share."""


class Asking:
    """Notices when the value of a fixture is used, and when a fixture is torn down.

    pytest has a hook for fixtures that are set up, and none for a value that is there: a second test that calls
    `getfixturevalue("stage_cache")` would go unheard. All ways to a value, named in a signature or not, go through
    `FixtureDef.execute`, and all ends of a fixture through `FixtureDef.finish`.

    A fixture stands for what it asked for, by name or by `getfixturevalue`, for as long as its value is used: by
    further tests if its scope is wider than a test, and by its own teardown.

    Args:
        config: Of the run whose fixtures count: a test may run pytest within its own process.
        claim: Called with names of the stage's fixtures before the test that runs gets their values.
        claim_for_end: Called with such names before a fixture is torn down that asked for them; what it returns is
            called after that.
    """

    def __init__(
        self,
        config: pytest.Config,
        claim: Callable[[frozenset[str]], None],
        claim_for_end: Callable[[frozenset[str]], Callable[[], None]],
    ) -> None:
        self._config = config
        self._claim = claim
        self._claim_for_end = claim_for_end
        self._resolving: list[set[str]] = []
        self._stands_for: WeakKeyDictionary[pytest.FixtureDef[Any], frozenset[str]] = WeakKeyDictionary()
        self._by_name: dict[str, frozenset[str]] = {}

    def begin(self) -> None:
        """Begin to notice uses of fixtures. This ends when pytest ends this run."""
        original, original_finish = pytest.FixtureDef.execute, pytest.FixtureDef.finish
        original_value = pytest.FixtureRequest.getfixturevalue

        @functools.wraps(original)
        def execute(definition: pytest.FixtureDef[Any], request: Any) -> Any:
            __tracebackhide__ = True
            if request.config is not self._config:
                return original(definition, request)
            with self._heard(definition):
                return original(definition, request)

        @functools.wraps(original_finish)
        def finish(definition: pytest.FixtureDef[Any], request: Any) -> None:
            __tracebackhide__ = True
            names = None if _is_own(definition) else self._stands_for.get(definition)
            if not names or request.config is not self._config or definition.cached_result is None:
                return original_finish(definition, request)
            then = self._claim_for_end(names)
            try:
                original_finish(definition, request)
            finally:
                then()

        @functools.wraps(original_value)
        def getfixturevalue(request: pytest.FixtureRequest, argname: str) -> Any:
            """Record what the asking fixture depends on. pytest does not execute a fixture again that the test has."""
            __tracebackhide__ = True
            value = original_value(request, argname)
            if request.config is self._config:
                for asked in self._resolving[-1:]:
                    asked |= self._by_name.get(argname, frozenset({argname} & STAGE_FIXTURES))
            return value

        def restore() -> None:
            pytest.FixtureRequest.getfixturevalue = original_value  # type: ignore[method-assign]
            pytest.FixtureDef.execute = original  # type: ignore[method-assign]
            pytest.FixtureDef.finish = original_finish  # type: ignore[method-assign]

        pytest.FixtureDef.execute = execute  # type: ignore[method-assign, assignment]
        pytest.FixtureRequest.getfixturevalue = getfixturevalue  # type: ignore[method-assign, assignment]
        pytest.FixtureDef.finish = finish  # type: ignore[method-assign, assignment]
        self._config.add_cleanup(restore)

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        self._stands_for.pop(fixturedef, None)

    @contextlib.contextmanager
    def _heard(self, definition: pytest.FixtureDef[Any]) -> Iterator[None]:
        """Wrap each use of a fixture's value, also of a fixture that is set up already."""
        names = self._stands_for.get(definition, frozenset())
        if definition.argname in STAGE_FIXTURES:
            names = names | {definition.argname}
        if names:
            self._claim(names)
        asked: set[str] = set(names)
        self._resolving.append(asked)
        try:
            yield
        finally:
            self._resolving.pop()
            if asked:
                self._by_name[definition.argname] = self._stands_for[definition] = frozenset(asked)
                for outer in self._resolving[-1:]:
                    outer |= asked


def _is_own(definition: pytest.FixtureDef[Any]) -> bool:
    """Whether a fixture is this plugin's, whose teardown does nothing to a container."""
    return definition.func.__module__.startswith("pytest_stagegbo.")
