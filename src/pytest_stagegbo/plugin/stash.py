"""Keys under which the plugin stores its objects: of a run in `config.stash`, of a test in `item.stash`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_stagegbo.plugin.process import StageProcess
    from pytest_stagegbo.plugin.provisioning import Provisioning
    from pytest_stagegbo.plugin.reservations import Reservations
    from pytest_stagegbo.session.fresh import Fresh
    from pytest_stagegbo.session.requirements import Requirements

__all__ = [
    "ASKED",
    "BEGAN",
    "CAPSULE",
    "DEMAND",
    "FAILURE",
    "FRESH",
    "KEPT",
    "MARKED",
    "PROCESS",
    "PROVISIONING",
    "RESERVATIONS",
    "SECTIONS",
    "TAKEN",
    "UNTOUCHED",
]

# Of a run.

PROCESS: pytest.StashKey[StageProcess] = pytest.StashKey()
PROVISIONING: pytest.StashKey[Provisioning] = pytest.StashKey()
RESERVATIONS: pytest.StashKey[Reservations] = pytest.StashKey()

# Of a test.

DEMAND: pytest.StashKey[Requirements] = pytest.StashKey()
"""What the test asks of the stage that it shares with others; missing where it asks for nothing."""
FRESH: pytest.StashKey[bool] = pytest.StashKey()
"""Present where the test's arguments ask for a stage of its own."""
BEGAN: pytest.StashKey[float] = pytest.StashKey()
"""When the setup of the test began."""
TAKEN: pytest.StashKey[Fresh] = pytest.StashKey()
"""The stage that the test has to itself."""
UNTOUCHED: pytest.StashKey[bool] = pytest.StashKey()
"""Whether the test did not get the stage."""
KEPT: pytest.StashKey[bool] = pytest.StashKey()
"""Whether the stage stays as the test, which failed, left it."""
CAPSULE: pytest.StashKey[float] = pytest.StashKey()
"""When the setup began of the attempt that a capsule was kept of."""
FAILURE: pytest.StashKey[str] = pytest.StashKey()
"""The report of the failure that the stage is kept after."""
SECTIONS: pytest.StashKey[list[tuple[str, str]]] = pytest.StashKey()
"""What the report of a failed teardown says of the stage."""
ASKED: pytest.StashKey[frozenset[str]] = pytest.StashKey()
"""Names of the stage's fixtures that the test has asked for so far, and got."""
MARKED: pytest.StashKey[list[pytest.Mark]] = pytest.StashKey()
"""The marker that says what to reset, as it was when tests had been collected."""
