"""The pytest plugin: its options, its markers, and the parts that it consists of.

This package is the only one that imports pytest. Each module of it holds one part, whose methods are pytest's hooks for
one subject: what the settings say (`configuration`), what tests ask for (`collection`), what is done before the first
test (`provisioning`) and around each test (`reservations`, `production`), what fixtures ask for while a test runs
(`asking`), what a failed test shows (`failures`) and what a test changed (`changes`), workers of pytest-xdist
(`workers`), the end of the session (`session_end`), what is printed (`reports`), and what is recorded for the report of
a session (`reporting`, `recording`). The parts share what this process knows of the stage (`process`). What needs no
pytest is done by `pytest_stagegbo.session`.

pytest loads this package at its start wherever it is installed, so nothing heavy is imported here, and a run whose
tests do not ask for the stage costs nothing and cannot fail because of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.plugin.asking import Asking
from pytest_stagegbo.plugin.async_fixtures import AsyncFixtures
from pytest_stagegbo.plugin.changes import ChangesOfTests
from pytest_stagegbo.plugin.collection import Collection
from pytest_stagegbo.plugin.configuration import Configuration
from pytest_stagegbo.plugin.failures import Failures
from pytest_stagegbo.plugin.junit import JUnit
from pytest_stagegbo.plugin.options import add_options
from pytest_stagegbo.plugin.process import StageProcess
from pytest_stagegbo.plugin.production import ProductionBan
from pytest_stagegbo.plugin.provisioning import Provisioning
from pytest_stagegbo.plugin.reporting import recording_of
from pytest_stagegbo.plugin.reports import Reports
from pytest_stagegbo.plugin.reservations import Reservations
from pytest_stagegbo.plugin.session_end import SessionEnd
from pytest_stagegbo.plugin.stash import PROCESS, PROVISIONING, RESERVATIONS
from pytest_stagegbo.plugin.workers import Workers
from pytest_stagegbo.session.requirements import BASELINE, MARKER, PRODUCTION_ACCESS, QUIET

if TYPE_CHECKING:
    import pytest

pytest_plugins = ("pytest_stagegbo.plugin.fixtures",)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*names): reset these containers of the stage before the test (`all`: cache, drive and system; "
        "`none`: whatever the settings say), and keep them from every other test until it ends",
    )
    config.addinivalue_line(
        "markers",
        f"{PRODUCTION_ACCESS}(reason): this test may connect to addresses of production, which is an error otherwise",
    )
    config.addinivalue_line(
        "markers",
        f"{BASELINE}(name): before the test, bring tables, cache, drive and system to the state that was saved under "
        "this name, and keep them from every other test until it ends",
    )
    config.addinivalue_line(
        "markers",
        f"{QUIET}: while this test runs, containers of the stage are frozen that it does not ask for and that may "
        "write to those it asks for",
    )
    configuration = Configuration(config)
    process = StageProcess(config, configuration)
    reports = Reports(config, configuration, process)
    production = ProductionBan(configuration)
    provisioning = Provisioning(config, configuration, process, production, reports)
    failures = Failures(configuration, process, provisioning)
    reservations = Reservations(config, configuration, process, production, provisioning, failures)
    workers = Workers(process)
    asking = Asking(config, reservations.claim, reservations.claim_for_end)
    asking.begin()
    junit = JUnit(config)
    parts = {
        "junit": junit,
        "configuration": configuration,
        "reports": reports,
        "production": production,
        "collection": Collection(configuration, process, provisioning),
        "provisioning": provisioning,
        "failures": failures,
        "changes": ChangesOfTests(config, configuration, failures),
        "reservations": reservations,
        "workers": workers,
        "session-end": SessionEnd(config, configuration, process, provisioning, workers, junit),
        "asking": asking,
        "async-fixtures": AsyncFixtures(config),
    }
    recording = recording_of(config, configuration, process, provisioning)
    if recording is not None:
        parts["recording"] = recording
    for name, part in parts.items():
        config.pluginmanager.register(part, f"stagegbo-{name}")
    config.stash[PROCESS], config.stash[PROVISIONING], config.stash[RESERVATIONS] = process, provisioning, reservations
