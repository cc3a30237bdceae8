"""Eight processes, two hundred tests that share and reset one stage, and some that are killed."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.lab.inner_pytest import Plug

pytestmark = pytest.mark.lab

TESTS, KILLED, ALONE = 200, 6, 24
SEED = 20261123

CODE = """
    import threading

    KINDS = {kinds}
    DELAYS = {delays}
    '''Seconds after which a test is killed, wherever it is then: waiting, in its reset, or running.'''

    def cases(kind):
        return [
            pytest.param(number, marks=[] if kind == "shared" else [pytest.mark.stage_reset(*kind.split())])
            for number, each in enumerate(KINDS) if each == kind
        ]

    @pytest.mark.parametrize("number", cases("cache"))
    def test_cache(keys, number):
        assert keys("KEYS", "*") == []
        for step in range(10):
            keys("SET", f"alone:{{number}}:{{step}}", os.getpid())
            assert keys("DBSIZE") == step + 1
        killed(number)

    @pytest.mark.parametrize("number", cases("cache drive"))
    def test_both(keys, files, number):
        assert keys("KEYS", "*") == []
        assert files.get() == ""
        files.put(number)
        keys("SET", "both", number)
        assert files.get() == str(number)
        assert keys("KEYS", "*") == ["both"]
        killed(number)

    @pytest.mark.parametrize("number", cases("drive"))
    def test_drive(files, number):
        assert files.get() == ""
        files.put(number)
        assert files.get() == str(number)
        killed(number)

    @pytest.mark.parametrize("number", cases("shared"))
    def test_shared(keys, number):
        mine = f"shared:{{number}}"
        for step in range(10):
            keys("SET", f"{{mine}}:{{step}}", number)
            assert len(keys("KEYS", f"{{mine}}:*")) == step + 1
        for step in range(10):
            assert keys("DEL", f"{{mine}}:{{step}}") == 1
        killed(number)

    def killed(number):
        if number in DELAYS:
            threading.Event().wait()
"""

CONFTEST = """

def pytest_collection_modifyitems(items):
    import random
    random.Random(len(items)).shuffle(items)  # the same in every worker


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    number = item.callspec.params["number"] if hasattr(item, "callspec") else None
    if number is not None and number in item.module.DELAYS:
        import signal, threading
        note(f"killed {number}")
        threading.Timer(item.module.DELAYS[number], os.kill, (os.getpid(), signal.SIGKILL)).start()
"""


def test_nobody_sees_anothers_data_and_nobody_waits_for_ever(plug: Plug) -> None:
    """Every test that was not killed passes: what is reset was nobody's, what is shared stays."""
    pytest.importorskip("xdist")
    chance = random.Random(SEED)
    kinds = ["cache"] * (ALONE // 2) + ["drive"] * (ALONE // 4) + ["cache drive"] * (ALONE // 4)
    kinds += ["shared"] * (TESTS - len(kinds))
    alone, shared = range(ALONE), range(ALONE, TESTS)
    unlucky = [*chance.sample(alone, KILLED - 2), *chance.sample(shared, 2)]
    delays = {number: round(chance.uniform(0, 0.5), 3) for number in unlucky}
    plug.write(test_contention=CODE.format(kinds=kinds, delays=delays))
    conftest = plug.folder / "conftest.py"
    conftest.write_text(conftest.read_text() + CONFTEST)
    result = plug.run("-n8", "--dist=worksteal", "-q")
    outcomes = result.parseoutcomes()
    crashed = set(re.findall(r"crashed while running '.*\[(\d+)\]'", result.stdout.str()))
    assert crashed == {str(number) for number in unlucky}
    assert outcomes["failed"] == KILLED
    assert outcomes["passed"] == TESTS - KILLED
    assert sorted(plug.notes) == sorted(f"killed {number}" for number in unlucky)
    plug.is_whole()
