"""The leases of one stage in the daemon: profiles of a project that exists for nothing else.

Creating a profile is the one step that two clients can't both succeed with, also on two members of a cluster. The
project is not the stage's own: a lease is needed before that exists and while it is removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pytest_stagegbo.errors import OperationFailed, ServerRefused, ServerUnreachable
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.incus.gate import Gate
from pytest_stagegbo.leases.protocol import (
    Create,
    Delete,
    DropTicket,
    Entry,
    Free,
    LeasesRefused,
    Look,
    Seen,
    Ticket,
    TicketRequest,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_stagegbo.incus.connection import Connection
    from pytest_stagegbo.incus.gate import WriterScope
    from pytest_stagegbo.leases.protocol import Request, Steps

__all__ = ["LeaseStore", "read_leases"]

T = TypeVar("T")

TOKEN = "user.stagegbo.token"
SECONDS = "user.stagegbo.seconds"
FREE = "user.stagegbo.free"
ABOUT = "user.stagegbo.about"
WAITING = "wait-"


class LeaseStore(Gate):
    """Carries out what the protocol asks for, for one stage.

    Args:
        scope: Names the project of the leases as the one to write to.
        stage: The stage's project.
        family: The stage that this one is a slot or the golden copy of; its own name otherwise.
        config: Of the project of the leases, which is created when it is missing.
        patience: Seconds that one request may take.
    """

    def __init__(
        self,
        connection: Connection,
        scope: WriterScope,
        stage: str,
        family: str,
        config: Mapping[str, str],
        patience: float,
    ) -> None:
        super().__init__(connection, scope, patience)
        self._stage = stage
        self._family = family
        self._config = dict(config)
        self._made = False
        """Whether the project of the leases was made here."""
        self._more = {"timeout": patience, "counted": False}

    def carry_out(self, steps: Steps[T]) -> T:
        """Carry out requests until the steps end, and return their result. A request without an answer may have been
        carried out; the next look shows that.

        Raises:
            ServerUnreachable: the daemon does not answer a look.
            LeasesRefused: this client may not have leases.
            ServerRefused: anything else that the daemon does not do.
        """
        answer: Any = None
        try:
            while True:
                answer = self._do(steps.send(answer))
        except StopIteration as end:
            result: T = end.value
            return result
        except ServerRefused as error:
            if dialect.lacks_permission(error):
                raise LeasesRefused(error.message, status=error.status, seen=error.seen, remedy=error.remedy) from None
            raise

    def serves_nothing(self) -> bool:
        """Whether the project of the leases was made here for a stage that did not come to be."""
        return self._made and not any(self._exists(name) for name in {self._stage, self._family})

    def _exists(self, project: str) -> bool:
        try:
            self._connection.request("GET", ("projects", project), timeout=self._timeout)
        except ServerRefused as error:
            return error.status != 404
        return True

    def remove_project(self) -> None:
        """Delete the project of the leases, unless anybody has one or waits for it. What was given back goes with it.
        Whoever takes a lease meanwhile creates another profile, which keeps the project. One of that name that this
        tool did not make stays."""
        if not self._is_ours():
            return
        for stage, seen in read_leases(self._profiles()).items():
            if not seen.tickets and all(entry.free for entry in seen.entries):
                for entry in seen.entries:
                    self._answered("DELETE", f"{stage}.{entry.epoch}")
        try:
            self._send("DELETE", ("projects", self.scope.project))
        except ServerRefused as error:
            if not (error.status == 404 or dialect.is_not_empty(error)):
                raise

    def _is_ours(self) -> bool:
        """Whether the project of the leases is there, with the marks that it gets."""
        try:
            found = self._connection.request("GET", ("projects", self.scope.project), timeout=self._timeout).metadata
        except ServerRefused as error:
            if error.status == 404:
                return False
            raise
        config = found.get("config") or {}
        return all(config.get(key) == value for key, value in self._config.items() if key.startswith("user."))

    def _do(self, request: Request) -> Any:
        if isinstance(request, Look):
            return self._look()
        try:
            if isinstance(request, Create):
                return self._create(self._name(request.entry.epoch), _config(request.entry))
            if isinstance(request, TicketRequest):
                ticket = request.ticket
                return self._create(self._name(f"{WAITING}{ticket.number}"), {TOKEN: ticket.token})
            if isinstance(request, Free):
                body = {"config": _config(request.entry), "devices": {}, "description": ""}
                return self._answered("PUT", self._name(request.entry.epoch), body)
            if isinstance(request, Delete):
                return self._answered("DELETE", self._name(request.epoch))
            assert isinstance(request, DropTicket)
            return self._answered("DELETE", self._name(f"{WAITING}{request.number}"))
        except (OperationFailed, ServerUnreachable):
            return None

    def _look(self) -> Seen:
        return read_leases(self._profiles()).get(self._stage, Seen())

    def _profiles(self) -> list[dict[str, Any]]:
        """What the project of the leases has; nothing where there is no such project."""
        try:
            path = ("profiles",)
            params: dict[str, str | int] = {"project": self.scope.project, "recursion": 1}
            found = self._connection.request("GET", path, params=params, timeout=self._timeout).metadata
        except ServerRefused as error:
            if error.status == 404:
                return []
            raise
        return list(found)

    def _create(self, name: str, config: Mapping[str, str]) -> bool:
        body = {"name": name, "config": dict(config), "devices": {}}
        try:
            self._send("POST", ("profiles",), body=body)
        except ServerRefused as error:
            if dialect.exists_already(error):
                return False
            if error.status != 404:
                raise
            self._create_project()
            self._send("POST", ("profiles",), body=body)
        return True

    def _create_project(self) -> None:
        try:
            body = {"name": self.scope.project, "config": self._config, "description": "leases of a stage"}
            self._send("POST", ("projects",), body=body)
            self._made = True
        except ServerRefused as error:
            if not dialect.exists_already(error):
                raise

    def _answered(self, method: str, name: str, body: Mapping[str, Any] | None = None) -> bool:
        """Whether it is done. What is not there needs nothing."""
        try:
            self._send(method, ("profiles", name), body=body)
        except ServerRefused as error:
            if error.status != 404:
                raise
        return True

    def _name(self, what: object) -> str:
        return f"{self._stage}.{what}"


def _config(entry: Entry) -> dict[str, str]:
    config = {TOKEN: entry.token, SECONDS: f"{entry.seconds:g}", ABOUT: entry.about}
    return {**config, FREE: "true"} if entry.free else config


def read_leases(profiles: Iterable[Mapping[str, Any]]) -> dict[str, Seen]:
    """Return, by stage, the leases and tickets among the profiles of their project. Pure."""
    entries: dict[str, list[Entry]] = {}
    tickets: dict[str, list[Ticket]] = {}
    for profile in profiles:
        stage, _, last = str(profile["name"]).rpartition(".")
        config = profile.get("config") or {}
        token = config.get(TOKEN, "")
        number = last.removeprefix(WAITING)
        if not (stage and token and number.isdecimal()):
            continue
        if number != last:
            tickets.setdefault(stage, []).append(Ticket(int(number), token))
        else:
            seconds = float(config.get(SECONDS) or 0)
            entry = Entry(int(number), token, seconds, free=config.get(FREE) == "true", about=config.get(ABOUT, ""))
            entries.setdefault(stage, []).append(entry)
    return {
        stage: Seen(
            tuple(sorted(entries.get(stage, ()), key=lambda each: each.epoch)),
            tuple(sorted(tickets.get(stage, ()), key=lambda each: each.number)),
        )
        for stage in {*entries, *tickets}
    }
