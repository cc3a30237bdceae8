"""Tests do not connect to production, which is there and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.lab.inner_pytest import Plug

pytestmark = pytest.mark.lab

TESTS = """
    import socket, subprocess, sys
    from pytest_stagegbo.errors import ProductionAccessError

    CACHE = ("10.0.2.13", 6379)

    def test_stage(keys):
        assert keys("PING") == "PONG"

    def test_plain_without_the_stage():
        socket.create_connection(CACHE, 2).close()

    def test_caught(keys):
        with pytest.raises(ProductionAccessError, match="test_caught would connect to production: 10.0.2.13:6379"):
            socket.create_connection(CACHE, 2)

    def test_psycopg():
        psycopg = pytest.importorskip("psycopg")
        with pytest.raises(ProductionAccessError):
            psycopg.connect("host=10.0.2.11 connect_timeout=2 user=nobody dbname=botserver")

    @pytest.fixture
    def dialled():
        socket.create_connection(CACHE, 2).close()

    @pytest.mark.stage_production_access(reason="it is there")
    def test_marked(dialled):
        socket.create_connection(CACHE, 2).close()

    def test_after_the_marked_one():
        with pytest.raises(ProductionAccessError):
            socket.create_connection(CACHE, 2)
"""

PLAIN = """
    import socket
    def test_plain():
        socket.create_connection(("10.0.2.13", 6379), 2).close()
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "two workers"])
def test_connections_to_production_are_refused_but_for_marked_tests(plug: Plug, workers: list[str]) -> None:
    plug.write(test_it=TESTS)
    result = plug.run(*workers)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*ProductionAccessError: test_it.py::test_plain_without_the_stage would connect to production: "
            "10.0.2.13:6379",
            "*what to do: its twin in the stage is cache at 10.0.5.13:6379 (fixture stage_cache); *",
        ]
    )


def test_a_setting_lifts_it_and_a_run_without_the_stage_never_had_it(plug: Plug) -> None:
    plug.write(test_it=TESTS, test_plain=PLAIN)
    plug.run("test_it.py", "--stage-production-access=allow", "-k", "stage or plain").assert_outcomes(passed=3)
    plug.run("test_plain.py").assert_outcomes(passed=1)


def test_a_marker_without_a_reason_is_an_error(plug: Plug) -> None:
    plug.write(test_it="@pytest.mark.stage_production_access\ndef test_it(keys): pass")
    result = plug.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED  # as for every error of collection
    result.stdout.fnmatch_lines(
        ["test_it.py::test_it: *", 'what to do: write @pytest.mark.stage_production_access(reason="...")']
    )
