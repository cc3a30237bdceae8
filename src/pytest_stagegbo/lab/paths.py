"""Where a lab keeps its files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from pytest_stagegbo.errors import LabError

__all__ = ["FIRST", "MOST_MEMBERS", "SUITES", "Paths"]

SUITES = {"6.0": "trixie", "7.0": "forky"}
"""Debian suite that carries each long-term version of Incus."""

FIRST = "member1"
"""The cluster member that production is on."""
MOST_MEMBERS = 5

_OLDEST = next(iter(SUITES))
_STATE_DIR = "/var/lib/stagegbo-lab"
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")


class Paths(Struct, frozen=True):
    """Files and folders of one lab. Several labs share one state folder, and with it everything downloaded."""

    state: Path
    """`$STAGEGBO_LAB_DIR`, or /var/lib/stagegbo-lab."""
    name: str
    """`$STAGEGBO_LAB_NAME`, or the version of Incus."""
    version: str
    """Version of Incus: a key of `SUITES`."""
    member: str = ""
    """A further member of the lab's cluster, whose daemon this is about: `$STAGEGBO_LAB_MEMBER`. Empty: the first one,
    or the only daemon."""

    @classmethod
    def find(cls, version: str | None = None) -> Paths:
        """The lab, and the member of it, that the environment and `version` mean. Touches nothing. A lab that exists
        keeps its version.

        Raises:
            LabError: the version, the name or the member is not one that a lab can have.
        """
        asked = version or os.environ.get("STAGEGBO_LAB_INCUS") or ""
        if asked and asked not in SUITES:
            raise LabError(f"there is no lab with Incus {asked!r}", remedy=f"choose one of {', '.join(SUITES)}")
        name = os.environ.get("STAGEGBO_LAB_NAME") or asked or _OLDEST
        if not _NAME.fullmatch(name):
            raise LabError(
                f"a lab cannot be named {name!r}", remedy="set STAGEGBO_LAB_NAME to lower-case letters, digits, . and -"
            )
        state = Path(os.environ.get("STAGEGBO_LAB_DIR") or _STATE_DIR)
        _check_folder(state.absolute())
        found = cls(state.absolute(), name, asked or _OLDEST).of(os.environ.get("STAGEGBO_LAB_MEMBER") or FIRST)
        return found if asked else replace(found, version=found.made_with() or found.version)

    def of(self, member: str) -> Paths:
        """The paths of another member of the same lab.

        Raises:
            LabError: a lab has no member of that name.
        """
        names = [f"{FIRST[:-1]}{number}" for number in range(1, MOST_MEMBERS + 1)]
        if member not in names:
            raise LabError(f"a lab has no member {member!r}", remedy=f"choose from {', '.join(names)}")
        return replace(self, member="" if member == FIRST else member)

    @property
    def cache(self) -> Path:
        """What is downloaded or built once, for all labs."""
        return self.state / "cache"

    @property
    def host_root(self) -> Path:
        """The Debian root folder that the daemon runs in; mounted read-only by every lab of the version."""
        return self.cache / f"host-{self.version}"

    @property
    def base(self) -> Path:
        """Everything that belongs to this lab alone, with all of its members."""
        return self.state / "labs" / self.name

    @property
    def lab(self) -> Path:
        """Everything that belongs to this member's daemon."""
        return self.base / "members" / self.member if self.member else self.base

    @property
    def root(self) -> Path:
        """Mount point of the host root, within the lab's mount namespace only."""
        return self.lab / "root"

    @property
    def incus(self) -> Path:
        """/var/lib/incus of the lab: database, pool and socket."""
        return self.lab / "incus"

    @property
    def socket(self) -> Path:
        """Unix socket of the API, reachable from outside of the namespaces."""
        return self.incus / "unix.socket"

    def pool_images(self) -> list[Path]:
        """The sparse files that hold pools."""
        return sorted((self.incus / "disks").glob("*.img"))

    @property
    def home(self) -> Path:
        """/root of the lab."""
        return self.lab / "home"

    @property
    def bin(self) -> Path:
        """Holds the `incus` command that speaks to the lab."""
        return self.lab / "bin"

    @property
    def log(self) -> Path:
        """What the commands run by `up` and `down` printed."""
        return self.lab / "lab.log"

    @property
    def daemon_log(self) -> Path:
        return self.lab / "log" / "incusd.log"

    @property
    def credentials(self) -> Path:
        """Users and passwords of production's services (JSON, readable by root alone)."""
        return self.base / "credentials.json"

    @property
    def vault_init(self) -> Path:
        """Unseal keys and root token, as `vault operator init -format=json` prints them."""
        return self.base / "vault-init.json"

    @property
    def marker(self) -> Path:
        """Exists once production is complete."""
        return self.base / "production.json"

    def made_with(self) -> str:
        """The version of Incus that production was made with; empty before it is."""
        try:
            return str(json.loads(self.marker.read_text())["incus"])
        except (OSError, ValueError, KeyError):
            return ""

    @property
    def cgroups(self) -> Path:
        """Names of the control groups that the lab's containers were in."""
        return self.lab / "cgroups.json"

    @property
    def members(self) -> Path:
        """How many members the lab's cluster has, or gets (JSON). It is missing where there is no cluster."""
        return self.base / "members.json"

    @property
    def netns(self) -> str:
        """Name of the network namespace: such names are the machine's, so other state folders get other ones."""
        # An underscore, which no lab's name has: a lab may be named as another one's member.
        return self._netns + (f"_{self.member}" if self.member else "")

    @property
    def switch_file(self) -> Path:
        """The network namespace of the switch between the members."""
        return Path("/run/netns") / f"{self._netns}_switch"

    @property
    def _netns(self) -> str:
        if self.state == Path(_STATE_DIR):
            return f"stagegbo-lab-{self.name}"
        return f"stagegbo-lab-{self.name}-{hashlib.sha256(os.fsencode(self.state)).hexdigest()[:8]}"

    @property
    def netns_file(self) -> Path:
        return Path("/run/netns") / self.netns

    def lock(self, what: str) -> Path:
        """File to lock while working on `what`."""
        return self.state / "locks" / f"{what}.lock"


def _check_folder(state: Path) -> None:
    """Raises `LabError` for what can't be a folder, whoever makes it."""
    problem = "" if str(state).isprintable() else "it has control characters in its name"
    for place in (state, *state.parents):
        try:
            if place.exists():
                problem = problem or ("" if place.is_dir() else f"{place} is not a folder")
                break
        except OSError as error:
            problem = f"{place}: {error.strerror}"
    if problem:
        raise LabError(
            f"the lab's files can't be in {state}",
            seen=problem,
            remedy=f"set STAGEGBO_LAB_DIR to a folder, or leave it out for {_STATE_DIR}",
        )
