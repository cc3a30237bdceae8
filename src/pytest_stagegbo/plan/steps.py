"""The steps that a plan consists of: frozen, comparable, printable. `apply/step_runner.py` carries them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

if TYPE_CHECKING:
    from pytest_stagegbo.guest.hooks import Hook
    from pytest_stagegbo.settings import ContainerSettings

__all__ = [
    "AdoptClone",
    "AttachClone",
    "AwaitClone",
    "AwaitRoom",
    "CheckSecrets",
    "CopyClone",
    "CreatePool",
    "FinishResets",
    "MendBuild",
    "PrepareClone",
    "RefreshClone",
    "RemoveAcl",
    "RemoveClone",
    "RemoveForward",
    "RemoveNetwork",
    "RemoveProject",
    "ReplaceSecrets",
    "ResizeClone",
    "RunHooks",
    "SetAcl",
    "SetNetwork",
    "SetProfile",
    "SetProject",
    "StartClone",
    "Step",
    "Verify",
]


class Step(Struct, frozen=True, kw_only=True):
    """One thing to do or to look at, as part of a plan."""

    verb: ClassVar[str]
    changes: ClassVar[bool] = True
    """False for steps that only look."""

    subject: str
    """The name of what it is done to."""
    after: frozenset[str] = frozenset()
    """Keys of the steps that must have succeeded first; keys that a plan lacks need nothing."""

    @property
    def key(self) -> str:
        """Return the step's name, which is unique in a plan, such as `copy:tables`."""
        return f"{self.verb}:{self.subject}"

    @property
    def text(self) -> str:
        """Return the step as a sentence for people, such as "copy tables"."""
        return f"{self.verb} {self.subject}"


class _CreateOrUpdate(Step, frozen=True, kw_only=True):
    create: bool

    @property
    def text(self) -> str:
        return f"{'create' if self.create else 'update'} {self.verb} {self.subject}"


class SetProject(_CreateOrUpdate, frozen=True, kw_only=True):
    verb: ClassVar[str] = "project"


class SetAcl(_CreateOrUpdate, frozen=True, kw_only=True):
    verb: ClassVar[str] = "access-list"


class SetNetwork(_CreateOrUpdate, frozen=True, kw_only=True):
    verb: ClassVar[str] = "network"


class SetProfile(_CreateOrUpdate, frozen=True, kw_only=True):
    """Set the stage's default profile, which Incus creates with the project. `subject` is its name."""

    verb: ClassVar[str] = "profile"
    pool: str


class CreatePool(Step, frozen=True, kw_only=True):
    """Create the stage's own storage pool: btrfs in a file."""

    verb: ClassVar[str] = "pool"
    size: str

    @property
    def text(self) -> str:
        return f"create storage pool {self.subject}: btrfs in a file of {self.size}"


class RemoveClone(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "remove"
    reason: str = ""
    """Why, for people; empty where the whole stage goes."""

    @property
    def text(self) -> str:
        return f"delete container {self.subject}" + (f" ({self.reason})" if self.reason else "")


class AwaitRoom(Step, frozen=True, kw_only=True):
    """Check the room on a pool again after old clones were removed, before anything is copied."""

    verb: ClassVar[str] = "room"
    changes: ClassVar[bool] = False
    cost: int
    """Bytes that the copies take at once."""

    @property
    def text(self) -> str:
        return f"wait until pool {self.subject} has given back what the old clones took"


class CopyClone(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "copy"
    container: ContainerSettings
    pool: str
    limit: str
    location: str
    """Cluster member that the stage is on; empty without a cluster."""
    dropped: tuple[str, ...]
    """What of the source's configuration the clone will not have, for people."""
    in_full: bool = False
    """Whether every byte is moved, since the source is on another pool or another member of the cluster."""
    unconfirmed: bool = False
    """Whether there is nothing to prepare: a copy of a golden clone gets its addresses from its environment."""
    at_rest: bool = False
    """Whether the copy is never started: it is the golden copy of another member of the cluster."""

    @property
    def text(self) -> str:
        limit = f"limit {self.limit}" if self.limit else "in full"
        where = f" of {self.location}" if self.location and self.in_full else ""
        return f"copy {self.subject} from {self.container.source_name} on pool {self.pool}{where}, {limit}"


class RefreshClone(Step, frozen=True, kw_only=True):
    """Bring what differs from the source into a clone on another pool than the source's. It has the key of a copy: what
    follows is the same."""

    verb: ClassVar[str] = "copy"
    copy: CopyClone
    """What to do where there is nothing to start from."""
    reason: str

    @property
    def text(self) -> str:
        source = self.copy.container.source_name
        return f"refresh {self.subject} from {source}, only what differs is copied: {self.reason}"


class PrepareClone(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "prepare"
    container: ContainerSettings

    @property
    def text(self) -> str:
        wiped = ", ".join(self.container.wipe) or "no data"
        started = f"start only {', '.join(self.container.units) or 'nothing'}"
        if self.container.boot == "full":
            started = "then boot in full, with all that production starts"
        return f"prepare {self.subject}: address {self.container.address}, wipe {wiped}, empty the logs; {started}"


class ResizeClone(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "resize"
    limit: str

    @property
    def text(self) -> str:
        return f"set the disk limit of {self.subject} to {self.limit}"


class AttachClone(Step, frozen=True, kw_only=True):
    """Put the clone on the stage's bridge again. One that runs is stopped for it: what its boot has done to its
    network device is gone with that device."""

    verb: ClassVar[str] = "attach"
    container: ContainerSettings
    bridge: str
    reason: str

    @property
    def text(self) -> str:
        return f"connect {self.subject} to {self.bridge}, which restarts it: {self.reason}"


class AdoptClone(Step, frozen=True, kw_only=True):
    """Mark a clone of an earlier version as this very instance."""

    verb: ClassVar[str] = "adopt"

    @property
    def text(self) -> str:
        return f"mark {self.subject}, which an earlier version made, as this stage's own"


class StartClone(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "start"


class AwaitClone(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "await"
    changes: ClassVar[bool] = False
    container: ContainerSettings
    crashes: int | None = None
    """How often systemd may start a unit again; None: as often as it likes."""
    prove: bool
    """Whether its first boot has yet to be seen to have wiped what it had to."""

    @property
    def text(self) -> str:
        return f"wait until {self.subject} answers"


class RunHooks(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "hooks"
    container: ContainerSettings
    hooks: tuple[Hook, ...]

    @property
    def text(self) -> str:
        names = ", ".join(hook.name for hook in self.hooks)
        return f"run {names} in {self.subject} while it has no network"


class CheckSecrets(Step, frozen=True, kw_only=True):
    """Check secrets that were replaced, and replace them again if somebody has changed them."""

    verb: ClassVar[str] = "secrets"
    changes: ClassVar[bool] = False
    fields: tuple[tuple[str, tuple[str, ...]], ...]
    """Paths and names of fields; never values."""

    @property
    def text(self) -> str:
        what = "; ".join(f"{path}: {', '.join(fields)}" for path, fields in self.fields)
        return f"replace in {self.subject} ({what}) and destroy older versions"


class ReplaceSecrets(CheckSecrets, frozen=True, kw_only=True):
    """Replace secrets that still have production's values."""

    changes: ClassVar[bool] = True


class RemoveForward(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "remove-forward"

    @property
    def text(self) -> str:
        return f"close what is exposed at {self.subject}"


class RemoveProject(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "remove-project"

    @property
    def text(self) -> str:
        return f"delete project {self.subject}"


class RemoveNetwork(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "remove-network"

    @property
    def text(self) -> str:
        return f"delete network {self.subject}"


class RemoveAcl(Step, frozen=True, kw_only=True):
    verb: ClassVar[str] = "remove-access-list"

    @property
    def text(self) -> str:
        return f"delete access list {self.subject}"


class MendBuild(Step, frozen=True, kw_only=True):
    """Bring back what ran before a deployment that was killed."""

    verb: ClassVar[str] = "mend"

    @property
    def text(self) -> str:
        return f"{self.subject}: a deployment was interrupted, so what ran before it comes back"


class FinishResets(Step, frozen=True, kw_only=True):
    """Resets that failed or were killed may have left a service stopped, and nobody would start it."""

    verb: ClassVar[str] = "resets"
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"finish the reset of {', '.join(self.names)}, which a run before did not"


class Verify(Step, frozen=True, kw_only=True):
    """Check, after all changes, that the stage is as it should be."""

    verb: ClassVar[str] = "verify"
    changes: ClassVar[bool] = False

    @property
    def text(self) -> str:
        return "verify that nothing is left to do"
