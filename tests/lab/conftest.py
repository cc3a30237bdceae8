"""The lab, and programs aimed at it.

The lab is shared: by all tests, and by whoever else uses it on this machine. Tests leave production as it was.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest
from filelock import FileLock
from tests.lab import forkserver, inner_pytest, support, unsafe_sources

from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.lab import Lab
from pytest_stagegbo.progress import Silent

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping

    from tests.lab.inner_pytest import Plug
    from tests.lab.small_stage import CleanStage
    from tests.lab.support import FirstRun, Ground, Stage

T = TypeVar("T")


class Incus(Protocol):
    """Runs the `incus` client against the lab."""

    def __call__(self, *args: str, project: str = ..., check: bool = ...) -> subprocess.CompletedProcess[str]: ...


class StageGbo(Protocol):
    """Runs `python -m pytest_stagegbo --lab`."""

    def __call__(
        self, *args: str, check: bool = ..., env: Mapping[str, str] | None = ..., timeout: float = ...
    ) -> subprocess.CompletedProcess[str]: ...


class InNetwork(Protocol):
    """Calls a function in a thread that is in the lab's network, and returns its result."""

    def __call__(self, function: Callable[..., T], *args: Any, timeout: float = ...) -> T: ...


LONGEST_FIRST = (support.NAME, "plug", "test_guard", "lab", "test_own_pool", "test_resets", "test_lab")
"""Groups that take minutes. With `-n`, they begin first: one that began last would go on alone."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n`, tests that share what is slow to make stay in one process: before pytest-xdist reads the markers."""
    grounds = {item: _ground_of(item) for item in items}
    for item, ground in grounds.items():
        item.add_marker(pytest.mark.xdist_group(ground))
    if hasattr(config, "workerinput"):
        order = {ground: place for place, ground in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: order.get(grounds[item], len(order)))


def _ground_of(item: pytest.Item) -> str:
    fixtures = getattr(item, "fixturenames", ())
    module = getattr(item, "module", None)
    if "ground" in fixtures and not hasattr(module, "ground"):
        return support.NAME
    if _is_on_the_labs_stage(item):
        return "plug" if "plug" in fixtures else "lab"
    return "plug" if "plug" in fixtures else getattr(module, "BESIDE", item.path.stem)


def _is_on_the_labs_stage(item: pytest.Item) -> bool:
    fixtures, module = getattr(item, "fixturenames", ()), getattr(item, "module", None)
    return "provisioned" in fixtures or bool(getattr(module, "ON_THE_LABS_STAGE", False))


@pytest.fixture(autouse=True)
def _labs_stage_is_free(request: pytest.FixtureRequest) -> Iterator[None]:
    """One test at a time, of all processes, uses the stage that a lab's tests share: some ask that nobody else does."""
    if not _is_on_the_labs_stage(request.node):
        yield
        return
    paths = request.getfixturevalue("lab").paths
    with FileLock(paths.lock(f"tests-stage-{paths.name}")):
        yield


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab that the environment means, brought up if it is not."""
    lab = Lab.find()
    problem = ""
    try:
        lab.up(Silent())
    except StageGboError as error:
        problem = str(error)
    if problem:  # said here, since within the `except` pytest would print both errors
        pytest.fail(problem, pytrace=False)
    return lab


@pytest.fixture(scope="session")
def incus(lab: Lab) -> Incus:
    """`incus("list", project="STAGE-GBO")`. A failure fails the test with what was printed, unless `check=False`."""

    def run(*args: str, project: str = "default", check: bool = True) -> subprocess.CompletedProcess[str]:
        return support.run(lab.exec_argv(["incus", "--project", project, *args]), check=check, timeout=300)

    return run


@pytest.fixture(scope="session")
def stagegbo(lab: Lab) -> StageGbo:
    """`stagegbo("provision", "--json")`; `env` adds to the environment."""

    def run(
        *args: str, check: bool = True, env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "pytest_stagegbo", "--lab", *args]
        done = forkserver.run(argv, timeout=timeout, env={**os.environ, **(env or {})})
        return support.checked(done) if check else done

    assert lab.paths.name
    return run


@pytest.fixture
def provisioned(stagegbo: StageGbo) -> subprocess.CompletedProcess[str]:
    """The stage is there and answers; the value is what `provision` printed."""
    return stagegbo("provision")


@pytest.fixture(scope="session")
def in_network(lab: Lab) -> Iterator[InNetwork]:
    """`in_network(ask, probe, "10.0.3.11", 1)`. Pytest's own process stays outside."""
    with ThreadPoolExecutor(1, initializer=lab.join_network) as thread:

        def call(function: Callable[..., T], *args: Any, timeout: float = 60) -> T:
            return thread.submit(function, *args).result(timeout)

        yield call


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A lab whose production tests may change. One that is up already is made clean, and left up."""
    with support.ground(tmp_path_factory.mktemp("settings")) as found:
        yield found


@pytest.fixture(scope="session")
def first(ground: Ground) -> FirstRun:
    """The first provisioning of STAGE-GBO, with what was to be seen of production before, meanwhile and after."""
    return support.first_run(ground)


@pytest.fixture(scope="module")
def stage(first: FirstRun) -> Stage:
    """STAGE-GBO, which answers."""
    first.stage.run("provision")
    return first.stage


@pytest.fixture(scope="session")
def sprung(ground: Ground) -> Stage:
    """The first provisioning of a stage whose sources are full of traps."""
    return unsafe_sources.provision(ground)


@pytest.fixture(scope="module")
def trapped(sprung: Stage) -> Stage:
    """The stage with the traps, which answers. Tests look."""
    sprung.run("provision")
    return sprung


@pytest.fixture(scope="module")
def _plug_is_free(lab: Lab) -> Iterator[None]:
    """One run of these tests at a time in each lab."""
    with FileLock(lab.paths.lock(f"tests-plug-{lab.paths.name}")):
        yield


@pytest.fixture
def plug(_plug_is_free: None, lab: Lab, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Plug:
    """Sessions of pytest with a stage of their own that has only cache and drive."""
    return inner_pytest.open_plug(pytester, lab, monkeypatch)


@pytest.fixture(scope="module")
def clean(lab: Lab, in_network: InNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanStage]:
    """The stage; every test leaves it clean."""
    from tests.lab.small_stage import CleanStage

    with FileLock(lab.paths.lock(f"tests-resets-{lab.paths.name}")):
        stage = CleanStage(lab, tmp_path_factory.mktemp("resets"))
        in_network(stage.provision, timeout=300)
        yield stage
        stage.place.close()
        stage.engine.close()
