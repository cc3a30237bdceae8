"""One pytest process and its stage. The stage is provisioned once; containers are locked and reset for each test."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks, notes
from pytest_stagegbo.errors import LockTimeout, NotHeld, StageGboError, StageMissing, VaultSealed
from pytest_stagegbo.locks import AWAKE, STAGE
from pytest_stagegbo.realfiles import real_files
from pytest_stagegbo.services.keys import HOW_TO_GIVE_KEYS
from pytest_stagegbo.session.baselines import SessionBaselines
from pytest_stagegbo.session.outcome import Outcome, forget, reminder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.locks import StageLock
    from pytest_stagegbo.session.requirements import Requirements
    from pytest_stagegbo.session.summary import Summary
    from pytest_stagegbo.verify.event_monitor import EventMonitor

__all__ = ["StageSession"]

LONG_WAIT = 0.1
"""Seconds for locks that are worth a line in the log."""
log = logging.getLogger("stagegbo.locks")

OUT_OF_ORDER_SECONDS = 10.0
"""How long a test that runs waits for a further lock that may be another's who waits for one of its own."""


def _out_of_order(error: LockTimeout, test: str, names: Iterable[str]) -> LockTimeout:
    """Return the error for a test that asks for a container while it runs, when others have it and waiting is
    unsafe."""
    fixtures = ", ".join(f'"stage_{name}"' for name in sorted(names))
    return LockTimeout(
        f"{test} asked for {', '.join(sorted(names))} while it ran, when others had it; it has locks that these may "
        "be waiting for, so it did not wait longer",
        seen=error.seen,
        remedy="name it beforehand, in the test's arguments or with "
        f"@pytest.mark.usefixtures({fixtures}): then all locks are taken together when the test begins",
    )


class StageSession:
    """The stage as one process of a pytest run uses it: provisioning, locks and resets.

    Args:
        run: Identifies the run; the same in all its processes.
        summary: Counts resets and waits.
        kind: What uses the stage, in the words of those who wait for it: a `test`, a `command`.
    """

    def __init__(self, engine: StageEngine, run: str, summary: Summary, kind: str = "test") -> None:
        self.engine = engine
        self.settings = engine.settings
        self.summary = summary
        self._lock = engine.lock()
        self.baselines = SessionBaselines(engine, run, self._lock.folder, lambda: self._held)
        self._run = run
        self._kind = kind
        self._ensured = False
        self._failure: StageGboError | None = None
        self._told = False
        self._test = ""
        self._locks: list[StageLock] = []
        self._uses: frozenset[str] = frozenset()
        self._held: frozenset[str] = frozenset()
        self._quiet: frozenset[str] = frozenset()
        """Containers that the test has frozen."""
        self._silenced: frozenset[str] = frozenset()
        """Those, and what earlier tests left frozen for the next one."""
        self._monitor: EventMonitor | None = None

    # -- provisioning

    @real_files()
    def ensure(self) -> None:
        """Provision the stage, unless another process of this run has done so or failed. `check` raises what went
        wrong."""
        if self._ensured:
            return
        self._ensured = True
        outcome = self._outcome
        with outcome.lock():
            if outcome.exists():
                self._failure = outcome.read()
            else:
                try:
                    self._provision()
                except StageGboError as error:
                    self._failure = error
                outcome.write(self._failure)
        if self._failure is None:
            try:
                self.listen()
            except StageGboError as error:
                self._failure = error

    @property
    def began(self) -> bool:
        """Whether this process has tried to get the stage."""
        return self._ensured

    @property
    def failed(self) -> bool:
        """Whether provisioning was tried and failed."""
        return self._failure is not None

    def check(self) -> None:
        """Raise the error that provisioning ended with, if it failed: the whole error the first time, later a
        reminder."""
        if self._failure is None:
            return
        if not self._told:
            self._told = True
            raise self._failure
        raise reminder(self._failure)

    def _provision(self) -> None:
        engine, mode = self.engine, self.settings.pytest.provision
        if mode == "never":
            left = engine.plan().changes
            if left:
                raise StageMissing(
                    f"stage {self.settings.project} is not what the settings say, and this session may not change it",
                    seen="left to do: " + "; ".join(step.text for step in left),
                    remedy="run `stagegbo provision`, or pytest without --stage-provision=never",
                )
        result = engine.provision(recreate=mode == "recreate")
        if result.changed:
            self.summary.provisioned = result.seconds
        if result.sealed:
            raise VaultSealed(f"the stage is up, and {', '.join(result.sealed)} is sealed", remedy=HOW_TO_GIVE_KEYS)
        self._deploy()
        if self.settings.pytest.verify:
            self.listen()
            self.verify()

    def _deploy(self) -> None:
        """Deploy the builds that `pytest.deploy` names, unless the stage runs them already."""
        if not self.settings.pytest.deploy:
            return
        from pytest_stagegbo.plan.builds import wanted_files

        deployments = self.engine.deployments
        for name, files in wanted_files(self.settings).items():
            if self.settings.pytest.provision == "never" and deployments.plan(name, files):
                raise StageMissing(
                    f"{name} does not run {', '.join(files)} as pytest.deploy names it, and this session may not "
                    "change it",
                    remedy=f"run `stagegbo deploy {name} {' '.join(f'{each}={file}' for each, file in files.items())}`",
                )
            deployments.deploy(name, files)

    def check_deployed(self) -> None:
        """Raise `StageMissing` unless the stage runs the builds that this run is about: it had them when it was
        provisioned, and until this run took its locks somebody else may have deployed another one."""
        from pytest_stagegbo.plan.builds import wanted_files

        for name, files in wanted_files(self.settings).items():
            if self.engine.deployments.plan(name, files):
                raise StageMissing(
                    f"{name} does not run {', '.join(files)} any more: somebody deployed another build meanwhile",
                    remedy="run this again, or take a stage of your own with `--slot auto`",
                )

    @real_files()
    def verify(self) -> None:
        """Prove the stage's isolation; raises `IsolationBroken` with every red line.

        What happened to production is looked at since the first call of `listen`.
        """
        from pytest_stagegbo.verify import verify

        verify(self.engine, monitor=self._monitor).check()

    def listen(self) -> None:
        """Listen to what happens to production, if isolation is to be proven, until `stop_listening`."""
        if self.settings.pytest.verify and self._monitor is None:
            from pytest_stagegbo.verify import listen

            self._monitor = listen(self.engine)

    @real_files()
    def verify_events(self) -> None:
        """Prove that this process did nothing to production since `listen`. Raises `IsolationBroken`."""
        if self._monitor is not None:
            from pytest_stagegbo.verify import chosen, verify

            verify(self.engine, chosen(["production.events"]), monitor=self._monitor).check()

    @property
    def _outcome(self) -> Outcome:
        self._lock.make_folder()
        return Outcome(self._lock.folder, self._run)

    @real_files()
    def forget(self, run: str) -> None:
        """Remove what a run, and killed ones of yesterday, noted about the stage, and the baselines that it has saved
        for itself. For its last process."""
        self.baselines.forget()
        forget(self._lock.folder, run)

    # -- tests

    @real_files()
    def begin(self, test: str, demand: Requirements) -> None:
        """Take the locks that a test needs and make clean what it wants clean.

        A test that asks for more while it runs begins once more, with all that it asks for: what it has stays its own.
        Everybody takes locks in one order, so that no two wait for each other. Where a further lock comes after all
        that the test has, it is waited for like any other; else only for `OUT_OF_ORDER_SECONDS`.

        Raises:
            NotHeld: the stage is kept as a failed test left it.
            StageGboError: provisioning failed; the locks were not had in time; a reset failed. The test has no more
                than before.
        """
        self.check()
        if test != self._test:
            self.end(demand.quiet)
        began = clocks.monotonic()
        wanted, silent = demand.uses - self._uses, demand.quiet - self._quiet
        if self._locks and not (wanted or silent):
            return
        self._wake(wanted & self._quiet)
        lock, uses = self._lock, {STAGE, *wanted}
        quiet = silent if self._quiet or not silent else silent | {AWAKE}
        in_order = not self._uses or min(wanted | quiet) > max(self._uses | self._quiet)
        if self._locks:
            lock = self.engine.lock(None if in_order else min(OUT_OF_ORDER_SECONDS, self.settings.timeouts.lock))
            uses = set(wanted)
        try:
            resets = self._take(lock, test, uses, tuple(name for name in demand.resets if name in wanted), quiet)
            self._test, self._uses = test, self._uses | wanted
            waited = clocks.monotonic() - began
            self.summary.lock_wait(waited)
            if waited >= LONG_WAIT:
                log.info("%s waited %.2f s for %s", test, waited, ", ".join(sorted(wanted)))
            self.check_kept()
            if silent:
                self._freeze(silent, test, resets)
            if resets:
                self.baselines.begin(demand.baseline)
                self._reset(resets)
            self._held |= wanted.intersection(demand.resets)
            self._sign(test, wanted)
        except BaseException as error:
            lock.release()
            self._uses -= wanted
            self._quiet -= silent
            if isinstance(error, LockTimeout) and not in_order:
                raise _out_of_order(error, test, wanted) from None
            raise
        self._locks.append(lock)

    def _take(
        self, lock: StageLock, test: str, uses: set[str], resets: tuple[str, ...], quiet: frozenset[str]
    ) -> tuple[str, ...]:
        """Take a test's locks; what has to be reset."""
        names, doing = sorted(uses - {STAGE}), f"{self._kind} {test}"
        lock.acquire(doing, self.engine.waiting, shared=uses, exclusive=resets, quiet=quiet)
        # Whoever was resetting these was killed, or failed: they are nobody's to use until it is done.
        unfinished = lock.unfinished(names)
        wider = resets
        if not unfinished.issubset(resets):
            lock.release()
            wider = tuple(dict.fromkeys((*resets, *sorted(lock.unfinished(names)))))
            lock.acquire(doing, self.engine.waiting, shared=uses, exclusive=wider, quiet=quiet)
            unfinished = lock.unfinished(names)
        return tuple(name for name in wider if name in resets or name in unfinished)

    def _freeze(self, names: frozenset[str], test: str, resets: tuple[str, ...]) -> None:
        """Freeze the containers that may write to what a quiet test uses."""
        if resets:  # what a killed deployment left may have to be mended in what is frozen next
            self.engine.deployments.recover(resets)
        self._quiet |= names
        self._silenced |= names
        self.engine.freezer.freeze(names, f"{self._kind} {test}")

    def _wake(self, names: frozenset[str]) -> None:
        """Let containers go on that a quiet test has frozen and now wants to use: taking their locks does that."""
        for lock in self._locks:
            lock.leave(names)
        self._quiet -= names

    @real_files()
    def end(self, staying: frozenset[str] = frozenset()) -> None:
        """Release the test's locks, and let the containers go on that it had frozen.

        Args:
            staying: Containers that this process's next test has frozen, too. They stay so, unless others want them.
        """
        self._held, self._uses, self._quiet, self._test = frozenset(), frozenset(), frozenset(), ""
        self.baselines.begin("")
        with contextlib.ExitStack() as releases:
            for lock in self._locks:
                releases.callback(lock.release)
            self._locks = []
            releases.callback(self.engine.check_lease)  # called first: another host's test may have used it, too
        leaving, self._silenced = self._silenced - staying, self._silenced & staying
        self.engine.freezer.release(leaving)

    @real_files()
    def reset(self, names: tuple[str, ...]) -> None:
        """Reset containers in the middle of a test. The test must have reserved them with the marker `stage_reset`.

        Raises:
            NotHeld: another test may be using one of the containers.
        """
        wiped = [name for name, container in self.settings.containers.items() if container.wipe]
        wanted = [container for name in names for container in (wiped if name == "all" else [name])]
        missing = [name for name in wanted if name not in self._held]
        if missing or not wanted:
            raise NotHeld(
                f"this test does not keep {', '.join(missing) or 'anything'} to itself, so it may not reset it",
                seen="it keeps " + (", ".join(sorted(self._held)) or "nothing"),
                remedy=f"mark it: @pytest.mark.stage_reset({', '.join(map(repr, missing or ['cache']))})",
            )
        self._reset(tuple(dict.fromkeys(wanted)))

    @real_files()
    def keep(self, test: str) -> None:
        """Keep the stage as a failed test left it: no other test of this run gets it."""
        notes.write(self._kept, test)

    def check_kept(self) -> None:
        """Raise `NotHeld` if a failed test of this run left the stage to be looked at."""
        if self.settings.pytest.keep and self._kept.exists():
            raise NotHeld(
                f"the stage is kept as {notes.read(self._kept)} left it",
                remedy="run pytest without --stage-keep to run all tests",
            )

    @property
    def _kept(self) -> Path:
        return self._lock.folder / f"run-{self._run}.kept"

    def _reset(self, names: tuple[str, ...]) -> None:
        began = clocks.monotonic()
        left_by = {name: self._last_user(name) for name in names}
        with self._lock.changing(names):
            self.baselines.reset(names, left_by)
        self.summary.reset(names, clocks.monotonic() - began)

    def _sign(self, test: str, names: Iterable[str]) -> None:
        """Note who uses containers that may be reset: when something can't be removed, that is who left it."""
        for name in names:
            if self.settings.containers[name].wipe:
                with contextlib.suppress(OSError):  # only for people
                    notes.rewrite(self._signature(name), test)

    def _last_user(self, name: str) -> str:
        try:
            return notes.read(self._signature(name))
        except OSError:
            return ""

    def _signature(self, name: str) -> Path:
        return self._lock.folder / f"{name}.user"

    @real_files()
    def close(self) -> None:
        """Close what resets keep open, and let frozen containers go on."""
        leaving, self._silenced = self._silenced - self._quiet, frozenset()
        self.engine.freezer.release(leaving)
        self.engine.close()

    def stop_listening(self) -> None:
        """Stop listening to what happens to production. It does nothing if nobody listens."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
