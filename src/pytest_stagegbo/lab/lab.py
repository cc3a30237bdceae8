"""Bringing a lab up and down, and getting into it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.errors import LabError
from pytest_stagegbo.incus.hostnet import enter
from pytest_stagegbo.lab import api
from pytest_stagegbo.lab.command import PATH, install_missing, remove_tree, require_root
from pytest_stagegbo.lab.host import Host
from pytest_stagegbo.lab.paths import FIRST, Paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_stagegbo.lab.cluster import Cluster
    from pytest_stagegbo.lab.production import Production
    from pytest_stagegbo.lab.status import LabStatus
    from pytest_stagegbo.progress import Progress

__all__ = ["Lab"]


class Lab:
    """A real Incus of its own with a production in it: one daemon, or a cluster of some. Making this object touches
    nothing.

    Args:
        paths: They also say which member of the cluster clients are aimed at.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._host = Host(paths)

    @functools.cached_property
    def _cluster(self) -> Cluster:
        from pytest_stagegbo.lab.cluster import Cluster

        return Cluster(Host(self.paths.of(FIRST)) if self.paths.member else self._host)

    @functools.cached_property
    def _production(self) -> Production:
        from pytest_stagegbo.lab.production import Production  # which those who only join the lab don't need

        return Production(self._cluster.first)

    @classmethod
    def find(cls, version: str | None = None) -> Lab:
        """The lab that the environment and `version` (`6.0` or `7.0`) mean, whether it exists or not."""
        return cls(Paths.find(version))

    def at(self, member: str) -> Lab:
        """The same lab, with clients aimed at another member of its cluster. Raises `LabError` if there is none."""
        self._cluster.host(member)
        return Lab(self.paths.of(member))

    @property
    def socket(self) -> Path:
        """Unix socket of the lab's API."""
        return self.paths.socket

    @property
    def vault_init(self) -> Path:
        """File with production's unseal keys, as `vault operator init -format=json` prints them."""
        return self.paths.vault_init

    def credentials(self) -> dict[str, Any]:
        """What Vault holds below secret/gbo/: for each service its address, port, user and passwords."""
        try:
            loaded: dict[str, Any] = json.loads(self.paths.credentials.read_text())
        except OSError as error:
            raise LabError("the lab has no production yet", seen=str(error), remedy="run `stagegbo lab up`") from error
        return loaded

    def up(
        self, progress: Progress, *, fresh: bool = False, quota: str = "", pool_layout: str = "", members: int = 0
    ) -> None:
        """Make whatever is missing and start whatever is not running. A lab that is up is left alone.

        Args:
            progress: Is told what is being done.
            fresh: Replace production by a new one, from cached images.
            quota: `ordinary`, or `simple`: kind of the pools' quotas. Empty: a lab that exists keeps what it has, a new
                one gets simple quotas if the kernel knows them.
            pool_layout: `own`: a second pool for stages, which stays; `shared`, or empty: none is added.
            members: How many daemons the lab has, as a cluster; more can be added later. 0: as many as there are, or
                one. Members that were stopped or cut off come back.

        Raises:
            MissingRequirement: root, a tool or a package is missing and could not be installed.
            LabError: something did not come up, or the lab was made with another version of Incus, other quotas or more
                members.
        """
        require_root()
        if not fresh:
            self._refuse_another_version()
        if not fresh and members in {0, self._cluster.count} and self._is_up():
            self._complete_pools(quota, pool_layout)
            return
        for folder in (self.paths.cache, self.paths.base, self.paths.state / "locks"):
            folder.mkdir(parents=True, exist_ok=True)
        self.paths.base.chmod(0o700)
        with self._locked(progress):
            self._cluster.want(members, fresh=fresh)
            if fresh or not self._is_up():  # else another process was quicker
                self._up(progress, fresh=fresh, quota=quota)
        self._complete_pools(quota, pool_layout)

    def _complete_pools(self, quota: str, layout: str) -> None:
        from pytest_stagegbo.lab import pools

        found = pools.pools(self._cluster.first)
        simple = found[pools.POOL] == "simple"
        if quota and simple != (quota == "simple"):
            kinds = {"simple": "`stagegbo lab up --quota simple --fresh`"}
            new = kinds.get(quota, "`stagegbo lab up --quota ordinary --fresh`")
            raise LabError(
                f"the lab {self.paths.name} has {'simple' if simple else 'ordinary'} quotas",
                seen=f"its production is in {self.paths.lab}",
                remedy=f"give the other one another STAGEGBO_LAB_NAME, or replace this one with {new}",
            )
        if layout == "own":
            pools.add_stage_pool(self._cluster.hosts(), simple=simple)

    def _up(self, progress: Progress, *, fresh: bool, quota: str) -> None:
        from pytest_stagegbo.lab import image as images
        from pytest_stagegbo.progress import task
        from pytest_stagegbo.workers import Workers

        install_missing(progress, self.paths.log)
        make = fresh or not self._production.complete()
        with Workers(2, "stagegbo lab") as threads:
            image = threads.submit(images.ensure_image, self.paths, progress) if make else None
            images.ensure_host_root(self.paths, progress)
            if make:  # of a production that was interrupted in the making, nothing is kept
                self.paths.marker.unlink(missing_ok=True)
                self._cluster.discard()
            cold = make or not self._cluster.first.answers()
            with task(progress, "daemon", f"Incus {self.paths.version} in {self._cluster.first.paths.netns}"):
                self._cluster.start()
            built = image.result() if image else None
        if built:
            self._production.make(built, progress, quota)
        else:
            self._production.start(progress, restoring=cold)
        self._cluster.form(progress)
        self._cluster.note()

    def _refuse_another_version(self) -> None:
        """A daemon takes over an older one's database for good, and none takes over a newer one's."""
        made_with = self.paths.made_with()
        if made_with not in {"", self.paths.version}:
            raise LabError(
                f"the lab {self.paths.name} has Incus {made_with}, not {self.paths.version}",
                seen=f"its production is in {self.paths.lab}",
                remedy=f"give the other one another STAGEGBO_LAB_NAME, or replace this one with "
                f"`stagegbo lab up --incus {self.paths.version} --fresh`",
            )

    def down(self, progress: Progress | None = None, *, purge: bool = False) -> None:
        """Stop everything; a lab that is down is left alone.

        Args:
            progress: Is told when there is something to wait for.
            purge: Also delete production, and everything downloaded unless another lab shares it.

        Raises:
            LabError: something would not end, or be deleted.
        """
        require_root()
        if not self.paths.state.exists():
            return
        (self.paths.state / "locks").mkdir(exist_ok=True)
        self.paths.base.mkdir(parents=True, exist_ok=True)
        with self._locked(progress):
            self._cluster.end()
            if purge:
                remove_tree(self.paths.base)
        labs = self.paths.state / "labs"
        if purge and not (labs.exists() and any(labs.iterdir())):
            remove_tree(self.paths.state)

    def change_member(self, member: str, action: str, progress: Progress) -> None:
        """Stop one member of the cluster as a power cut would, cut it off from the others, or start it: bring it back.

        Args:
            action: `stop`, `cut` or `start`.

        Raises:
            LabError: there is no such member, or it did not come back.
        """
        require_root()
        self._cluster.host(member)
        with self._locked(progress):
            if action == "stop":
                self._cluster.stop_member(member)
            elif action == "cut":
                self._cluster.cut_member(member)
            else:
                self._cluster.start_member(member)
                if member == FIRST:
                    self._production.start(progress, restoring=True)
            self._cluster.note()

    def status(self) -> LabStatus:
        """What can be seen of the lab right now. Never raises for a lab that is down."""
        from pytest_stagegbo.lab import pools
        from pytest_stagegbo.lab.status import LabStatus

        paths = self.paths
        version, containers, services, found = "", {}, {}, {}
        try:
            version = str(api.get(paths.socket, "/1.0", timeout=5)["environment"]["server_version"])
            containers = self._production.containers()
            services = self._production.services()
            found = pools.pools(self._host)
        except (OSError, KeyError):
            pass
        return LabStatus(
            name=paths.name,
            running=bool(version),
            ready=bool(services) and all(state == "ok" for state in services.values()) and self._production.complete(),
            incus_version=version or paths.version,
            socket=str(paths.socket),
            netns=paths.netns,
            netns_file=str(paths.netns_file),
            state_dir=str(paths.state),
            lab_dir=str(paths.base),
            pid=self._host.namespace.init(),
            vault_init=str(paths.vault_init),
            credentials=str(paths.credentials),
            production=containers,
            services=services,
            pools=found,
            members=self._cluster.states(),
        )

    def environment(self) -> dict[str, str]:
        """Variables that aim programs at the lab: the `incus` client and this package find it by them."""
        path = os.environ.get("PATH", PATH)
        member = {"STAGEGBO_LAB_MEMBER": self.paths.member} if self.paths.member else {}
        return {
            **member,
            "PATH": f"{self.paths.bin}:{path}:{PATH}",
            "INCUS_SOCKET": str(self.paths.socket),
            "INCUS_CONF": str(self.paths.home / ".config/incus"),
            "STAGEGBO_LAB_DIR": str(self.paths.state),
            "STAGEGBO_LAB_NAME": self.paths.name,
            "STAGEGBO_LAB_INCUS": self.paths.version,
        }

    def exec_argv(self, argv: Sequence[str]) -> list[str]:
        """What to execute so that `argv` runs in the lab: in its network, aimed at its Incus.

        A command of this machine sees this machine's files; one that only the lab's Debian has sees the lab's.

        Raises:
            LabError: the lab is not up, or `argv` is empty.
        """
        init = self._require_running()
        if not argv:
            raise LabError("nothing to execute", remedy="for example `stagegbo lab exec -- incus list`")
        environment = self.environment()
        assignments = [f"{name}={value}" for name, value in environment.items()]
        nsenter = shutil.which("nsenter", path=PATH) or "nsenter"
        if shutil.which(argv[0], path=environment["PATH"]):
            return [nsenter, f"--net={self.paths.netns_file}", "--", "env", *assignments, *argv]
        inside = ["env", f"PATH={PATH}", "HOME=/root", "LC_ALL=C.UTF-8", *argv]
        return [nsenter, f"--target={init}", "--net", "--mount", "--pid", "--", *inside]

    def join_network(self) -> None:
        """Move this process into the lab's network, for good.

        To be called before any thread is started: the kernel moves the calling thread, and those it starts.

        Raises:
            LabError: the lab is not up.
        """
        if not (self._host.namespace.exists() and self._host.answers()):
            raise self._not_up()
        try:
            enter(self.paths.netns_file)
        except OSError as error:
            raise LabError("the lab's network cannot be joined", seen=str(error), remedy="run as root") from error

    def _require_running(self) -> int:
        init = self._host.namespace.init()
        if init is None or not self._host.answers():
            raise self._not_up()
        return init

    def _not_up(self) -> LabError:
        seen = f"no Incus at {self.socket}"
        return LabError(f"the lab {self.paths.name} is not up", seen=seen, remedy="run `stagegbo lab up`")

    @contextlib.contextmanager
    def _locked(self, progress: Progress | None) -> Iterator[None]:
        """Hold the lab; its lock ends with the process that holds it."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.paths.lock(f"lab-{self.paths.name}"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress is not None:
                progress.note(f"another process is bringing the lab {self.paths.name} up or down: waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _is_up(self) -> bool:
        if not self._production.complete():
            return False
        try:
            running = all(state == "Running" for state in self._production.containers().values())
        except OSError:
            return False
        return running and self.status().ready and self._cluster.is_whole()
