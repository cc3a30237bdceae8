"""Asynchronous tests get connected clients, whoever runs them: pytest-asyncio in each of its modes, or anyio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess


pytestmark = pytest.mark.lab

TESTS = """
import asyncio
import pytest

{mark}
async def test_rows(stage_psycopg_async):
    cursor = await stage_psycopg_async.execute("SELECT host(inet_server_addr())")
    assert await cursor.fetchone() == ("10.0.3.11",)


class TestCache:
    {mark}
    @pytest.mark.stage_reset("cache")
    async def test_keys(self, stage_valkey_async):
        await stage_valkey_async.set("of-a-test", "x")
        one, other = await asyncio.gather(stage_valkey_async.get("of-a-test"), stage_valkey_async.ping())
        assert (one, other) == (b"x", True)
"""
ANYIO = """

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


@pytest.mark.parametrize(
    ("options", "tests"),
    [
        pytest.param((), TESTS.format(mark="@pytest.mark.asyncio"), id="asyncio strict"),
        pytest.param(("-o", "asyncio_mode=auto"), TESTS.format(mark=""), id="asyncio auto"),
        pytest.param((), TESTS.format(mark="@pytest.mark.anyio") + ANYIO, id="anyio"),
    ],
)
def test_clients_are_of_the_loop_that_runs_the_test(
    provisioned: subprocess.CompletedProcess[str],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    tests: str,
) -> None:
    assert provisioned.returncode == 0
    monkeypatch.delenv("PYTEST_ADDOPTS")
    pytester.makepyfile(tests)
    done = pytester.runpytest_subprocess("--stage-lab", "-p", "no:cacheprovider", *options)
    done.assert_outcomes(passed=2)


def test_without_a_runner_it_is_said_what_to_install(
    provisioned: subprocess.CompletedProcess[str], pytester: pytest.Pytester
) -> None:
    assert provisioned.returncode == 0
    pytester.makepyfile("def test_one(stage_valkey_async): pass")
    done = pytester.runpytest_subprocess("--stage-lab", "-p", "no:cacheprovider", "-p", "no:asyncio")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*what to do: pip install pytest-asyncio*"])
