"""One process of a run: provisioned once, locked and reset test by test. The locks are real, the engine is strict."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from pytest_stagegbo import locks
from pytest_stagegbo.apply.await_clone import Readiness
from pytest_stagegbo.engine.provisioned import Provisioned
from pytest_stagegbo.errors import (
    CommandFailed,
    LockTimeout,
    NotHeld,
    ServerRefused,
    StageGboError,
    StageMissing,
    VaultSealed,
)
from pytest_stagegbo.locks import StageLock
from pytest_stagegbo.plan.provision import Plan
from pytest_stagegbo.plan.steps import SetProject
from pytest_stagegbo.session.outcome import reminder
from pytest_stagegbo.session.requirements import Requirements
from pytest_stagegbo.session.session import StageSession
from pytest_stagegbo.session.summary import Summary
from pytest_stagegbo.settings import Layer, build

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.plan.steps import Step

AT_ONCE = 0.001
READY = Provisioned(Plan((), ()), {}, (), 0.0)


class Freezer:
    """Notes what it is to freeze and what may go on."""

    def __init__(self) -> None:
        self.frozen: set[str] = set()

    def freeze(self, names: Iterable[str], doing: str) -> None:
        assert doing.startswith("test ")
        self.frozen |= set(names)

    def release(self, names: Iterable[str]) -> None:
        self.frozen -= set(names)


class Deployments:
    """None was interrupted."""

    def recover(self, names: Collection[str]) -> None:
        assert names


class Engine:
    """Does what a test foresees, in that order, and nothing else."""

    def __init__(self, endpoint: Path, **values: object) -> None:
        self.settings = build([Layer.from_dotted("test", {"timeouts.lock": AT_ONCE, **values})])
        self.done: list[str] = []
        self.provisioning: list[Provisioned | BaseException] = []
        self.resetting: list[BaseException | None] = []
        self.changes: tuple[Step, ...] | None = None
        self.freezer = Freezer()
        self.deployments = Deployments()
        self._endpoint = endpoint

    def lock(self, timeout: float | None = None) -> StageLock:
        patience = self.settings.timeouts.lock if timeout is None else timeout
        return StageLock(str(self._endpoint), "server", self.settings.project, patience)

    def waiting(self, holder: str) -> None:
        """Nobody watches."""

    def check_lease(self) -> None:
        """No other host has the stage."""

    def plan(self) -> Plan:
        assert self.changes is not None, "nobody foresaw a plan"
        self.done.append("plan")
        return Plan(self.changes, ())

    def provision(self, *, recreate: bool = False) -> Provisioned:
        assert self.provisioning, "nobody foresaw provisioning"
        self.done.append("recreate" if recreate else "provision")
        result = self.provisioning.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result

    def reset(self, names: Sequence[str], *, already_locked: bool, left_by: Mapping[str, str]) -> None:
        assert set(left_by) == set(names)
        assert already_locked, "a session holds the locks itself"
        assert self.resetting, "nobody foresaw a reset"
        self.done.append("reset " + " ".join(names))
        if error := self.resetting.pop(0):
            raise error


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    folder = tmp_path / "locks"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr(locks, "PARENTS", (folder,))
    (tmp_path / "socket").touch()
    return lambda **values: Engine(tmp_path / "socket", **values)


def session(engine: Engine, run: str = "run") -> StageSession:
    return StageSession(cast("StageEngine", engine), run, Summary())


def uses(*names: str) -> Requirements:
    return Requirements(frozenset(names), ())


def resets(*names: str) -> Requirements:
    return Requirements(frozenset(names), names)


class TestProvisioning:
    def test_is_done_once_a_process(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        one.provisioning = [READY]
        mine = session(one)
        for _ in range(2):
            mine.ensure()
            mine.check()
        assert one.done == ["provision"]
        assert not mine.failed

    def test_is_done_once_a_run(self, engine: Callable[..., Engine]) -> None:
        """A second process reads how the first one fared, and asks nothing of the server."""
        one, two = engine(), engine()
        one.provisioning = [READY]
        session(one).ensure()
        second = session(two)
        second.ensure()
        second.check()
        assert two.done == []

    def test_is_done_again_by_the_next_run(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        one.provisioning = [READY, READY]
        session(one, "run-1").ensure()
        session(one, "run-2").ensure()
        assert one.done == ["provision", "provision"]

    def test_that_failed_is_not_tried_again_by_another_process(self, engine: Callable[..., Engine]) -> None:
        one, two = engine(), engine()
        one.provisioning = [CommandFailed("it broke", seen="a line\nand another", remedy="mend it")]
        session(one).ensure()
        second = session(two)
        second.ensure()
        assert second.failed
        with pytest.raises(CommandFailed) as caught:
            second.check()
        assert caught.value.text == "it broke\nlast seen: a line\nand another\nwhat to do: mend it"
        assert two.done == []

    def test_an_error_with_more_to_it_is_told_by_another_process_too(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        one.provisioning = [ServerRefused("no", seen="forbidden", remedy="ask", status=403)]
        session(one).ensure()
        second = session(engine())
        second.ensure()
        with pytest.raises(ServerRefused, match="no"):
            second.check()

    def test_that_failed_is_told_whole_once_and_then_in_a_sentence(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        one.provisioning = [CommandFailed("it broke", seen="a long log", remedy="mend it")]
        mine = session(one)
        mine.ensure()
        with pytest.raises(CommandFailed, match="a long log"):
            mine.check()
        for _ in range(2):
            with pytest.raises(StageMissing, match="it broke") as caught:
                mine.check()
            assert "a long log" not in str(caught.value)
        assert one.done == ["provision"]

    def test_that_failed_lets_no_test_begin(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        one.provisioning = [CommandFailed("it broke")]
        mine = session(one)
        mine.ensure()
        with pytest.raises(CommandFailed):
            mine.begin("test", resets("cache"))
        with one.lock().hold("reset"):
            pass

    def test_that_was_interrupted_is_tried_again(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        one.provisioning = [KeyboardInterrupt(), READY]
        with pytest.raises(KeyboardInterrupt):
            session(one).ensure()
        session(one).ensure()
        assert one.done == ["provision", "provision"]

    def test_with_a_sealed_vault_failed(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        one.provisioning = [Provisioned(Plan((), ()), {"vault": Readiness("sealed", ())}, (), 0.0)]
        mine = session(one)
        mine.ensure()
        with pytest.raises(VaultSealed, match="vault is sealed"):
            mine.check()

    def test_recreate(self, engine: Callable[..., Engine]) -> None:
        """Once a run, however many processes it has."""
        one = engine(**{"pytest.provision": "recreate"})
        one.provisioning = [READY]
        session(one).ensure()
        session(one).ensure()
        assert one.done == ["recreate"]

    def test_never_finds_nothing_to_do(self, engine: Callable[..., Engine]) -> None:
        one = engine(**{"pytest.provision": "never"})
        one.changes, one.provisioning = (), [READY]
        mine = session(one)
        mine.ensure()
        mine.check()
        assert one.done == ["plan", "provision"]

    def test_never_names_what_is_missing(self, engine: Callable[..., Engine]) -> None:
        one = engine(**{"pytest.provision": "never"})
        one.changes = (SetProject(subject="STAGE-GBO", create=True),)
        mine = session(one)
        mine.ensure()
        with pytest.raises(StageMissing, match="this session may not change it") as caught:
            mine.check()
        assert one.changes[0].text in caught.value.seen
        assert one.done == ["plan"]

    def test_leaves_nothing_behind(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        one.provisioning = [READY, READY]
        mine, other = session(one, "run-1"), session(one, "run-2")
        mine.ensure()
        other.ensure()
        mine.forget("run-1")
        left = [path.name for path in one.lock().folder.glob("run-*")]
        assert left
        assert all(name.startswith("run-run-2.") for name in left)


class TestLocks:
    @pytest.fixture
    def ready(self, engine: Callable[..., Engine]) -> Callable[[], StageSession]:
        """Another process of one run, provisioned; each test says whether it is to reset something."""
        first = engine()
        first.provisioning = [READY]
        session(first).ensure()

        def make() -> StageSession:
            made = session(engine())
            made.ensure()
            return made

        return make

    def test_tests_that_use_a_container_share_it(self, ready: Callable[[], StageSession]) -> None:
        one, two = ready(), ready()
        one.begin("one", uses("cache", "drive"))
        two.begin("two", uses("cache"))

    def test_a_test_that_resets_keeps_to_itself_what_it_resets(self, ready: Callable[[], StageSession]) -> None:
        one, two = ready(), ready()
        foresee(one, None)
        one.begin("test_mine", Requirements(frozenset({"cache", "drive"}), ("cache",)))
        two.begin("two", uses("drive"))
        two.end()
        with pytest.raises(LockTimeout, match="container cache") as caught:
            two.begin("two", uses("cache"))
        assert "test test_mine" in caught.value.seen
        one.end()
        two.begin("two", uses("cache"))

    def test_nobody_resets_under_a_running_test(self, ready: Callable[[], StageSession]) -> None:
        one, two = ready(), ready()
        one.begin("one", uses("cache"))
        with pytest.raises(LockTimeout):
            two.begin("two", resets("cache"))
        one.end()
        foresee(two, None)
        two.begin("two", resets("cache"))

    def test_nobody_changes_the_stage_under_a_running_test(self, ready: Callable[[], StageSession]) -> None:
        one = ready()
        one.begin("one", uses("cache"))
        with pytest.raises(LockTimeout), one.engine.lock().hold("provision"):
            pass

    def test_a_test_that_could_not_begin_holds_nothing(self, ready: Callable[[], StageSession]) -> None:
        one = ready()
        foresee(one, CommandFailed("no"))
        with pytest.raises(CommandFailed):
            one.begin("one", resets("cache"))
        with one.engine.lock().hold("provision"):
            pass

    def test_ending_twice_or_without_a_beginning_is_fine(self, ready: Callable[[], StageSession]) -> None:
        one = ready()
        one.end()
        one.begin("one", uses("cache"))
        one.end()
        one.end()
        with one.engine.lock().hold("provision"):
            pass

    def test_resets_and_waits_are_counted(self, ready: Callable[[], StageSession]) -> None:
        one = ready()
        foresee(one, None)
        one.begin("one", resets("drive", "cache"))
        one.end()
        one.begin("two", uses("cache"))
        assert {names: len(seconds) for names, seconds in one.summary.resets.items()} == {("cache", "drive"): 1}
        assert len(one.summary.waits) == 2


class TestMore:
    """A test that asks for more while it runs gets it like what it named, and keeps what it has."""

    @pytest.fixture
    def pair(self, engine: Callable[..., Engine]) -> tuple[StageSession, StageSession]:
        first = engine()
        first.provisioning = [READY]
        made = [session(first), session(engine())]
        for each in made:
            each.ensure()
        return made[0], made[1]

    def test_is_reset_and_its_own(self, pair: tuple[StageSession, StageSession]) -> None:
        one, two = pair
        one.begin("one", uses("cache"))
        foresee(one, None)
        one.begin("one", Requirements(frozenset({"cache", "drive"}), ("drive",)))
        assert done(one) == ["reset drive"]
        with pytest.raises(LockTimeout, match="container drive"):
            two.begin("two", uses("drive"))
        with pytest.raises(LockTimeout, match="container cache"):
            two.begin("two", resets("cache"))
        foresee(one, None)
        one.reset(("drive",))
        one.end()
        foresee(two, None)
        two.begin("two", resets("cache", "drive"))

    def test_what_it_has_is_not_reset_again(self, pair: tuple[StageSession, StageSession]) -> None:
        one, _ = pair
        foresee(one, None)
        one.begin("one", resets("cache"))
        one.begin("one", Requirements(frozenset({"cache", "drive"}), ("cache",)))
        one.begin("one", Requirements(frozenset({"cache", "drive"}), ("cache",)))
        assert done(one) == ["reset cache"]

    @pytest.mark.parametrize(
        ("has", "more", "message"),
        [("drive", "cache", "asked for cache while it ran"), ("cache", "drive", "container drive")],
    )
    def test_that_others_have_is_waited_for_a_while_and_what_it_has_stays(
        self, pair: tuple[StageSession, StageSession], has: str, more: str, message: str
    ) -> None:
        """In the order of all locks as long as for any, against it for a moment: two could wait for each other."""
        one, two = pair
        foresee(two, None)
        two.begin("two", resets(more))
        one.begin("one", uses(has))
        with pytest.raises(LockTimeout, match=message) as caught:
            one.begin("one", uses(has, more))
        assert ("usefixtures" in caught.value.remedy) == (has > more)
        two.end()
        with pytest.raises(LockTimeout, match=f"container {has}"):
            two.begin("two", resets(has))
        one.begin("one", uses(has, more))

    def test_a_reset_that_failed_leaves_it_what_it_had(self, pair: tuple[StageSession, StageSession]) -> None:
        one, two = pair
        one.begin("one", uses("cache"))
        foresee(one, CommandFailed("no"), None)
        with pytest.raises(CommandFailed):
            one.begin("one", Requirements(frozenset({"cache", "drive"}), ("drive",)))
        with pytest.raises(LockTimeout):
            two.begin("two", resets("cache"))
        foresee(two, None)
        two.begin("two", uses("drive"))
        assert done(two) == ["reset drive"]

    def test_another_test_has_nothing_of_it(self, pair: tuple[StageSession, StageSession]) -> None:
        """Also where the first one never ended."""
        one, two = pair
        one.begin("one", uses("cache"))
        one.begin("one", uses("cache", "drive"))
        one.begin("next", uses("llm"))
        foresee(two, None)
        two.begin("two", resets("cache", "drive"))


class TestUnfinished:
    """A reset that did not end is done again before anyone uses the container."""

    @pytest.fixture
    def one(self, engine: Callable[..., Engine]) -> StageSession:
        made = engine()
        made.provisioning = [READY]
        found = session(made)
        found.ensure()
        return found

    @pytest.fixture(params=[CommandFailed("no"), KeyboardInterrupt()], ids=["failed", "interrupted"])
    def broken(self, one: StageSession, request: pytest.FixtureRequest) -> StageSession:
        foresee(one, request.param)
        with pytest.raises(type(request.param)):
            one.begin("one", resets("cache"))
        done(one).clear()
        return one

    def test_by_a_test_that_only_uses_it(self, broken: StageSession) -> None:
        foresee(broken, None)
        broken.begin("two", uses("cache", "drive"))
        broken.end()
        broken.begin("three", uses("cache", "drive"))
        assert done(broken) == ["reset cache"]

    def test_by_a_test_that_resets_another(self, broken: StageSession) -> None:
        foresee(broken, None)
        broken.begin("two", Requirements(frozenset({"cache", "drive"}), ("drive",)))
        assert done(broken) == ["reset drive cache"]

    def test_once_by_a_test_that_resets_it_anyway(self, broken: StageSession) -> None:
        foresee(broken, None)
        broken.begin("two", resets("cache"))
        assert done(broken) == ["reset cache"]

    def test_not_by_a_test_that_uses_others(self, broken: StageSession) -> None:
        broken.begin("two", uses("drive"))
        assert done(broken) == []

    def test_and_if_it_fails_again_by_the_next(self, broken: StageSession) -> None:
        foresee(broken, CommandFailed("still no"), None)
        with pytest.raises(CommandFailed, match="still no"):
            broken.begin("two", uses("cache"))
        broken.begin("three", uses("cache"))
        assert done(broken) == ["reset cache", "reset cache"]

    def test_without_giving_the_test_more_than_it_asked_for(self, broken: StageSession) -> None:
        foresee(broken, None)
        broken.begin("two", uses("cache"))
        with pytest.raises(NotHeld):
            broken.reset(("cache",))


class TestResetInATest:
    @pytest.fixture
    def one(self, engine: Callable[..., Engine]) -> StageSession:
        made = engine()
        made.provisioning = [READY]
        found = session(made)
        found.ensure()
        return found

    def test_of_what_the_test_keeps_to_itself(self, one: StageSession) -> None:
        foresee(one, None, None)
        one.begin("one", resets("cache", "drive"))
        one.reset(("drive", "drive"))
        assert done(one) == ["reset cache drive", "reset drive"]

    def test_of_all(self, one: StageSession) -> None:
        foresee(one, None, None)
        one.begin("one", resets("system", "cache", "drive"))
        one.reset(("all",))
        assert done(one)[1:] == ["reset system cache drive"]

    @pytest.mark.parametrize(
        ("names", "missing"),
        [(("drive",), "'drive'"), (("cache", "drive"), "'drive'"), (("all",), "'system', 'drive'"), ((), "'cache'")],
    )
    def test_of_anything_else_is_refused(self, one: StageSession, names: tuple[str, ...], missing: str) -> None:
        foresee(one, None)
        one.begin("one", resets("cache"))
        with pytest.raises(NotHeld) as caught:
            one.reset(names)
        assert caught.value.seen == "it keeps cache"
        assert caught.value.remedy == f"mark it: @pytest.mark.stage_reset({missing})"
        assert done(one) == ["reset cache"]

    def test_after_the_test_is_refused(self, one: StageSession) -> None:
        foresee(one, None)
        one.begin("one", resets("cache"))
        one.end()
        with pytest.raises(NotHeld, match="it keeps nothing"):
            one.reset(("cache",))


class TestKeep:
    """`--stage-keep`: what a failed test left is not touched by the other processes of its run."""

    def begin(self, engine: Engine, *, run: str = "run") -> StageSession:
        engine.provisioning = [READY]
        made = session(engine, run)
        made.ensure()
        made.begin("first", uses("cache"))
        made.end()
        return made

    def test_no_test_of_the_run_begins(self, engine: Callable[..., Engine]) -> None:
        one = self.begin(engine(**{"pytest.keep": True}))
        one.keep("test_broken")
        with pytest.raises(NotHeld, match="kept as test_broken left it"):
            one.begin("two", resets("cache"))
        with one.engine.lock().hold("provision"):
            pass

    def test_the_next_run_begins(self, engine: Callable[..., Engine]) -> None:
        one = self.begin(engine(**{"pytest.keep": True}))
        one.keep("test_broken")
        self.begin(engine(**{"pytest.keep": True}), run="next")


def foresee(session: StageSession, *results: BaseException | None) -> None:
    cast("Engine", session.engine).resetting = list(results)
    done(session).clear()


def done(session: StageSession) -> list[str]:
    return cast("Engine", session.engine).done


def test_a_reminder_says_where_the_whole_story_is() -> None:
    found = reminder(StageGboError("it broke", seen="a long log"))
    assert found.text == "the stage could not be provisioned: it broke\nwhat to do: see the first test that says so"


class TestQuiet:
    """What a test has frozen; who waits for whom is shown with `locks`."""

    def quiet(self, uses: str, *names: str) -> Requirements:
        return Requirements(frozenset(uses.split()), (), frozenset(names))

    def test_goes_on_when_the_test_ends(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        mine = session(one)
        mine.begin("a", self.quiet("cache", "system"))
        assert one.freezer.frozen == {"system"}
        mine.end()
        assert not one.freezer.frozen

    def test_stays_frozen_for_the_next_quiet_test(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        mine = session(one)
        mine.begin("a", self.quiet("cache", "system"))
        mine.end(frozenset({"system"}))
        assert one.freezer.frozen == {"system"}
        session(engine()).begin("other", uses("system"))  # and is nobody's meanwhile
        mine.end()
        assert not one.freezer.frozen

    def test_nobody_uses_it_meanwhile(self, engine: Callable[..., Engine]) -> None:
        quiet = session(engine())
        quiet.begin("a", self.quiet("cache", "system"))
        with pytest.raises(LockTimeout, match="container system"):
            session(engine()).begin("b", uses("system"))

    def test_and_it_waits_for_users(self, engine: Callable[..., Engine]) -> None:
        user = session(engine())
        user.begin("b", uses("system"))
        one = engine()
        with pytest.raises(LockTimeout, match="container system"):
            session(one).begin("a", self.quiet("cache", "system"))
        assert not one.freezer.frozen

    def test_several_want_it_at_once(self, engine: Callable[..., Engine]) -> None:
        both = [session(engine()), session(engine())]
        for each in both:
            each.begin("a", self.quiet("cache", "system"))

    def test_goes_on_for_a_test_that_asks_for_it_late(self, engine: Callable[..., Engine]) -> None:
        one = engine()
        mine = session(one)
        mine.begin("a", self.quiet("cache", "system"))
        mine.begin("a", self.quiet("cache system"))
        with pytest.raises(LockTimeout):
            session(engine()).begin("b", self.quiet("cache", "system"))
        mine.end()
        assert not one.freezer.frozen
