"""Every error that this package raises on purpose.

::

    StageGboError
    ├── SettingsError            what was asked for is malformed or contradicts itself
    ├── MissingRequirement       a tool, a privilege or a file of the host is not there
    ├── LabError                 the lab could not be brought up or taken down
    ├── ServerUnreachable        no Incus daemon answered
    ├── ServerRefused            Incus answered a request with an error
    ├── MemberAway               the cluster member that the stage is on does not answer, or is evacuated
    ├── OperationFailed          an Incus operation was accepted and then failed, or never ended
    ├── ProductionProtected      a request would have reached production
    ├── ProductionAccessError    a test would have connected to production
    ├── NotOurs                  something in the way was not made for this stage
    ├── SourceMissing            production has no such container
    ├── NoRoom                   the pool or the host's file system is too full
    ├── LimitTooSmall            a clone's disk limit is below what its source references
    ├── UnsafeClone              a clone carries configuration that must not be started
    ├── IsolationBroken          a line of the certificate is red
    ├── NotReady                 a service did not answer in time
    ├── VaultSealed              Vault is up, and nobody gave it its keys
    ├── LockTimeout              another process holds the stage
    ├── LeaseLost                another host has the stage by now
    ├── NotHeld                  a test would reset what it does not keep to itself
    ├── StageMissing             the stage, or a container of it, does not exist
    ├── BaselineMissing          there is no such baseline, or it is of another build or copy of production
    ├── BaselineInTheWay         a clone that would be replaced by another version's has baselines
    ├── CapsuleMissing           there is no such capsule, or a part of it is gone
    ├── CommandFailed            a command inside a stage container failed
    ├── BuildFailed              a build that was deployed did not come up; the one before is back
    └── Residue                  a reset could not remove everything

Each says what failed, what was seen last and what to do about it, and ends with the command that explains its code.
What it explains is in `explanations.md`. Messages never carry secrets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pytest_stagegbo.text import did_you_mean, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "BaselineInTheWay",
    "BaselineMissing",
    "BuildFailed",
    "CapsuleMissing",
    "CommandFailed",
    "IsolationBroken",
    "LabError",
    "LeaseLost",
    "LimitTooSmall",
    "LockTimeout",
    "MemberAway",
    "MissingRequirement",
    "NoRoom",
    "NotHeld",
    "NotOurs",
    "NotReady",
    "OperationFailed",
    "ProductionAccessError",
    "ProductionProtected",
    "Residue",
    "ServerRefused",
    "ServerUnreachable",
    "SettingsError",
    "SourceMissing",
    "StageGboError",
    "StageMissing",
    "UnsafeClone",
    "VaultSealed",
]


class StageGboError(Exception):
    """An error of no special kind, and the root of all others: catch it to catch all that this package raises.

    Args:
        message: What failed, in one sentence.
        seen: The last thing that was observed (an answer, a state, log lines). May have several lines.
        remedy: What to do next.

    Survives pickling, which pytest-xdist needs to carry errors between processes.
    """

    code: ClassVar[str] = "SG000"
    """Stable identifier, for searching the documentation."""
    exit_code: ClassVar[int] = 1
    """What the command line exits with."""

    def __init__(self, message: str, *, seen: str = "", remedy: str = "") -> None:
        super().__init__(message := printable(message))
        self.message = message
        self.seen = printable(seen)
        self.remedy = printable(remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.seen, self.remedy, self.__dict__.copy()))

    @property
    def more(self) -> str:
        """The command that says what can cause this kind of error, and what mends it."""
        return f"stagegbo explain {self.code}"

    @property
    def text(self) -> str:
        """What failed, what was seen last and what to do, to be quoted in another error, which has its own `more`."""
        parts = [self.message]
        if self.seen:
            parts.append(f"last seen: {self.seen}")
        if self.remedy:
            parts.append(f"what to do: {self.remedy}")
        return "\n".join(parts)

    def __str__(self) -> str:
        return f"{self.text}\nmore: {self.more}"


def _rebuild(cls: type[StageGboError], message: str, seen: str, remedy: str, state: dict[str, object]) -> StageGboError:
    error = cls.__new__(cls)
    StageGboError.__init__(error, message, seen=seen, remedy=remedy)
    error.__dict__.update(state)
    return error


class SettingsError(StageGboError):
    """Settings are malformed or contradict each other. Lists every problem, each with where it stands."""

    code = "SG010"
    exit_code = 2

    @classmethod
    def unknown(cls, what: str, names: Sequence[str], known: Iterable[str]) -> SettingsError:
        """The error about names of which there is none: what is similar to them, and all that there is.

        Args:
            what: The beginning of the message: `no container`.
        """
        every = tuple(known)
        message = f"{what} {', '.join(names)}{did_you_mean(names, every)}"
        return cls(message, remedy=f"choose from {', '.join(every)}" if every else "")


class MissingRequirement(StageGboError):
    """A tool, a privilege or a file that the host must provide is missing."""

    code = "SG020"
    exit_code = 3


class LabError(StageGboError):
    """The lab could not be brought up, entered or taken down."""

    code = "SG030"


class ServerUnreachable(StageGboError):
    """No Incus daemon answered at any of the places looked at."""

    code = "SG100"
    exit_code = 3


class ServerRefused(StageGboError):
    """Incus answered a request with an error."""

    code = "SG101"

    def __init__(self, message: str, *, status: int = 0, seen: str = "", remedy: str = "") -> None:
        super().__init__(message, seen=seen, remedy=remedy)
        self.status = status
        """HTTP status of the answer; 0 when there was none."""


class MemberAway(ServerRefused):
    """The cluster member that a stage is on is offline or evacuated, or its daemon does not answer."""

    code = "SG103"
    exit_code = 3


class OperationFailed(StageGboError):
    """An Incus operation was accepted and then failed, or did not end in time."""

    code = "SG102"


class ProductionProtected(StageGboError):
    """A request would have written to production. It was not sent."""

    code = "SG200"
    exit_code = 4


class ProductionAccessError(StageGboError):
    """The process of the tests would have connected to an address of production. Nothing was sent."""

    code = "SG203"
    exit_code = 4


class NotOurs(StageGboError):
    """Something in the way was not made by this tool for this stage, so it is left alone."""

    code = "SG201"
    exit_code = 4


class SourceMissing(StageGboError):
    """The source project lacks a container that the settings name."""

    code = "SG202"


class NoRoom(StageGboError):
    """The storage pool, or the host's file system below it, has too little room."""

    code = "SG210"
    exit_code = 5


class LimitTooSmall(StageGboError):
    """The disk limit of a clone is below the bytes that its source already references."""

    code = "SG211"
    exit_code = 5


class UnsafeClone(StageGboError):
    """A stopped clone still carries configuration that must not be started."""

    code = "SG220"
    exit_code = 4


class IsolationBroken(StageGboError):
    """The certificate of `verify` has a red line: something gets into the stage, or out of it."""

    code = "SG221"
    exit_code = 9


class NotReady(StageGboError):
    """A service did not answer in its own protocol before the deadline, or its container stopped."""

    code = "SG300"
    exit_code = 6


class VaultSealed(StageGboError):
    """Vault answers and is sealed, and no usable unseal keys were given."""

    code = "SG301"
    exit_code = 7


class LockTimeout(StageGboError):
    """Another process held the stage for longer than this one was willing to wait."""

    code = "SG310"
    exit_code = 8


class LeaseLost(LockTimeout):
    """This host's lease of the stage is over: it slept, or lost the daemon, and another host may have it."""

    code = "SG312"


class NotHeld(StageGboError):
    """A test asked for a reset of a container that other tests may be using at this moment."""

    code = "SG311"


class StageMissing(StageGboError):
    """The stage, or one of its containers, does not exist (yet)."""

    code = "SG320"


class BaselineMissing(StageGboError):
    """There is no baseline of that name, or the one that there is can't be used: part of it is gone, or it is of
    another build or another copy of production."""

    code = "SG321"


class CapsuleMissing(StageGboError):
    """There is no such capsule, or a part of it is gone."""

    code = "SG322"


class BaselineInTheWay(StageGboError):
    """A clone that another version made would be replaced, and baselines in it would be lost."""

    code = "SG323"


class CommandFailed(StageGboError):
    """A command inside a stage container ended with a status other than 0."""

    code = "SG330"


class BuildFailed(StageGboError):
    """A build that was deployed did not come up. What ran before runs again."""

    code = "SG350"
    exit_code = 11


class Residue(StageGboError):
    """A reset left something behind that it should have removed. Whatever uses the container next resets it again."""

    code = "SG340"
    exit_code = 10

    @classmethod
    def of(cls, container: str, left: Sequence[str], left_by: str, *, seen: str, remedy: str) -> Residue:
        """The error about what is left in a container.

        Args:
            left: Names of what is there; at least one.
            left_by: The test that used the container last; empty when nobody knows.
        """
        who = f", left by {left_by}" if left_by else ""
        return cls(f"{container} is not clean: {', '.join(left)} can't be removed{who}", seen=seen, remedy=remedy)
