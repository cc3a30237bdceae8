"""What several clones hold at one moment: writers are held in all of them, something is kept of each, all go on."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from pytest_stagegbo.errors import CommandFailed, OperationFailed, StageGboError
from pytest_stagegbo.guest.moment import LONGEST, hold_script, let_go_script
from pytest_stagegbo.resets.cache import go_on, write_down
from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.services.answer import NoAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_stagegbo.resets.resetter import Resetter
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings

__all__ = ["at_one_moment"]

T = TypeVar("T")


def at_one_moment(
    resetter: Resetter,
    containers: Sequence[ContainerSettings],
    keep: Callable[[ResetTarget], T],
    *,
    as_it_is: bool = False,
) -> list[T]:
    """The results of `keep` for each container. While it is called, nothing in any of them runs but this tool.

    What a service has answered for is in its files by then, or in files and a log that it recovers from.

    Args:
        as_it_is: A service that can't write its data down is no error.

    Raises:
        OperationFailed: it took so long that the containers went on by themselves.
        StageGboError: a container can't be held, or `keep` failed. All go on.
    """
    try:
        resetter.on_targets(containers, lambda target: _hold(target, as_it_is))
        kept = resetter.on_targets(containers, keep)
    except BaseException:
        resetter.on_targets(containers, _let_go)
        raise
    held = resetter.on_targets(containers, _let_go)
    if not all(held):
        late = [container.name for container, whole in zip(containers, held, strict=True) if not whole]
        raise OperationFailed(
            f"{', '.join(late)} went on before everything was kept, so this is not the state of one moment",
            seen=f"containers are held for {LONGEST} s at most",
            remedy="run it again when the host has less to do",
        )
    return kept


def _hold(target: ResetTarget, as_it_is: bool) -> None:
    if _is_valkey(target):
        try:
            write_down(target)
        except (NeedsRestart, NoAnswer) as error:
            if not as_it_is:
                raise CommandFailed(
                    f"{target.name} does not write its data down",
                    seen=str(error),
                    remedy=f"run `stagegbo logs {target.name}`",
                ) from None
        except StageGboError:
            if not as_it_is:
                raise
    target.run_checked(hold_script())


def _is_valkey(target: ResetTarget) -> bool:
    return bool(target.container.probes) and target.probe.protocol == "valkey"


def _let_go(target: ResetTarget) -> bool:
    try:
        held = target.run(let_go_script())[0] == 0
        if _is_valkey(target):
            with suppress(StageGboError):
                go_on(target)
        return held
    except StageGboError:  # it goes on by itself
        return False
