"""Every write, as it leaves; and the gate, through which nothing leads to production."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fakes import SERVER, Ended, Sent, StrictConnection, refused
from msgspec.structs import force_setattr, replace

from pytest_stagegbo.errors import OperationFailed, ProductionProtected, ServerRefused, StageGboError
from pytest_stagegbo.incus import CommandResult, Reader, Writer, WriterScope, dialect
from pytest_stagegbo.incus.channel import ChannelBroken
from pytest_stagegbo.incus.records import Member, Reply, Server
from pytest_stagegbo.incus.retries import TRIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SCOPE = WriterScope(
    project="STAGE-GBO",
    network="stagebr0",
    acl="stagebr0-isolation",
    source_project="PROD-GBO",
    production_networks=frozenset({"prodbr0"}),
    pool="stage",
    production_pools=frozenset({"tank"}),
)
NONE = {"web": {"type": "none"}}
CONFIG = {"key": "value"}


@dataclass(frozen=True)
class Case:
    """A call, the answers that it gets, and the requests that it makes."""

    call: Callable[[Writer], object]
    sent: list[Sent]
    replies: dict[tuple[str, str], Any] = field(default_factory=dict)
    waits: bool = False

    def answers(self) -> dict[tuple[str, str], Any]:
        return {**{(sent.method, "/".join(sent.path)): None for sent in self.sent}, **self.replies}


def both(**values: str) -> dict[str, str]:
    incus = {f"X-Incus-{key}": value for key, value in values.items()}
    return incus | {f"X-LXD-{key}": value for key, value in values.items()}


ETAG = Reply({}, "e7a9", {})
STAGE = {"project": "STAGE-GBO"}
HOST = {"project": "default"}


def streaming(*command: str) -> Sent:
    """The request for a command whose streams are connected."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    body = {
        "command": list(command),
        "environment": {"STAGEGBO_OWN": "1", "LC_ALL": "C", "PATH": path},
        "cwd": "/",
        "wait-for-websocket": True,
        "interactive": False,
    }
    return Sent("POST", ("instances", "cache", "exec"), STAGE, body)


CASES: dict[str, Case] = {
    "create_project": Case(
        lambda w: w.create_project(CONFIG, {}, "text"),
        [Sent("POST", ("projects",), {}, {"name": "STAGE-GBO", "description": "text", "config": CONFIG})],
    ),
    "replace_project": Case(
        lambda w: w.replace_project(CONFIG, "text"),
        [
            Sent("GET", ("projects", "STAGE-GBO")),
            Sent(
                "PUT",
                ("projects", "STAGE-GBO"),
                {},
                {"description": "text", "config": CONFIG},
                headers={"If-Match": "e7a9"},
            ),
        ],
        {("GET", "projects/STAGE-GBO"): ETAG},
    ),
    "delete_project": Case(lambda w: w.delete_project(), [Sent("DELETE", ("projects", "STAGE-GBO"))]),
    "create_network": Case(
        lambda w: w.create_network(CONFIG, "text"),
        [
            Sent(
                "POST",
                ("networks",),
                HOST,
                {"name": "stagebr0", "type": "bridge", "config": CONFIG, "description": "text"},
            )
        ],
    ),
    "replace_network": Case(
        lambda w: w.replace_network(CONFIG, "text"),
        [
            Sent("GET", ("networks", "stagebr0"), HOST),
            Sent(
                "PUT",
                ("networks", "stagebr0"),
                HOST,
                {"config": CONFIG, "description": "text"},
                headers={"If-Match": "e7a9"},
            ),
        ],
        {("GET", "networks/stagebr0"): ETAG},
    ),
    "delete_network": Case(lambda w: w.delete_network(), [Sent("DELETE", ("networks", "stagebr0"), HOST)]),
    "create_forward": Case(
        lambda w: w.create_forward({"listen_address": "192.0.2.7"}),
        [Sent("POST", ("networks", "stagebr0", "forwards"), HOST, {"listen_address": "192.0.2.7"})],
    ),
    "delete_forward": Case(
        lambda w: w.delete_forward("192.0.2.7"),
        [Sent("DELETE", ("networks", "stagebr0", "forwards", "192.0.2.7"), HOST)],
    ),
    "create_acl": Case(
        lambda w: w.create_acl({"ingress": [], "name": "another"}),
        [Sent("POST", ("network-acls",), HOST, {"ingress": [], "name": "stagebr0-isolation"})],
    ),
    "replace_acl": Case(
        lambda w: w.replace_acl({"ingress": []}),
        [
            Sent("GET", ("network-acls", "stagebr0-isolation"), HOST),
            Sent("PUT", ("network-acls", "stagebr0-isolation"), HOST, {"ingress": []}, headers={"If-Match": "e7a9"}),
        ],
        {("GET", "network-acls/stagebr0-isolation"): ETAG},
    ),
    "delete_acl": Case(lambda w: w.delete_acl(), [Sent("DELETE", ("network-acls", "stagebr0-isolation"), HOST)]),
    "replace_default_profile": Case(
        lambda w: w.replace_default_profile(CONFIG, {"root": {}}, "text"),
        [
            Sent(
                "PUT",
                ("profiles", "default"),
                STAGE,
                {"config": CONFIG, "devices": {"root": {}}, "description": "text"},
            )
        ],
    ),
    "create_pool": Case(
        lambda w: w.create_pool("btrfs", CONFIG, "text"),
        [
            Sent(
                "POST",
                ("storage-pools",),
                HOST,
                {"name": "stage", "driver": "btrfs", "config": CONFIG, "description": "text"},
            )
        ],
    ),
    "delete_pool": Case(lambda w: w.delete_pool(), [Sent("DELETE", ("storage-pools", "stage"), HOST)]),
    "refresh_instance": Case(
        lambda w: w.refresh_instance("cache", "valkey", config={"a": ""}, devices=NONE, on_progress=lambda _: None),
        [
            Sent(
                "POST",
                ("instances",),
                STAGE,
                {
                    "name": "cache",
                    "config": {"a": ""},
                    "devices": NONE,
                    "source": {
                        "type": "copy",
                        "source": "valkey",
                        "project": "PROD-GBO",
                        "instance_only": True,
                        "allow_inconsistent": True,
                        "refresh": True,
                    },
                },
            )
        ],
        waits=True,
    ),
    "copy_instance": Case(
        lambda w: w.copy_instance("cache", "valkey", config=CONFIG, devices={"web": {"type": "none"}}),
        [
            Sent(
                "POST",
                ("instances",),
                STAGE,
                {
                    "name": "cache",
                    "profiles": ["default"],
                    "config": CONFIG,
                    "devices": {"web": {"type": "none"}},
                    "ephemeral": False,
                    "source": {
                        "type": "copy",
                        "source": "valkey",
                        "project": "PROD-GBO",
                        "instance_only": True,
                        "allow_inconsistent": True,
                    },
                },
            )
        ],
        waits=True,
    ),
    "set_instance_config": Case(
        lambda w: w.set_instance_config("cache", CONFIG),
        [Sent("PATCH", ("instances", "cache"), STAGE, {"config": CONFIG})],
        waits=True,
    ),
    "set_instance_devices": Case(
        lambda w: w.set_instance_devices("cache", {"root": {}}),
        [Sent("PATCH", ("instances", "cache"), STAGE, {"devices": {"root": {}}})],
        waits=True,
    ),
    "set_state": Case(
        lambda w: w.set_state("cache", "stop"),
        [Sent("PUT", ("instances", "cache", "state"), STAGE, {"action": "stop", "force": False, "timeout": 30})],
        waits=True,
    ),
    "delete_instance": Case(
        lambda w: w.delete_instance("cache"), [Sent("DELETE", ("instances", "cache"), STAGE)], waits=True
    ),
    "put_file": Case(
        lambda w: w.put_file("cache", "/etc/motd", b"hello", mode=0o600, uid=7, gid=8),
        [
            Sent(
                "POST",
                ("instances", "cache", "files"),
                {"path": "/etc/motd", **STAGE},
                data=b"hello",
                headers=both(type="file", mode="0600", uid="7", gid="8", write="overwrite"),
            )
        ],
    ),
    "place_at_first_start": Case(
        lambda w: w.place_at_first_start("cache", "/own/boot", "a ${#b}", mode=0o755),
        [
            Sent(
                "PUT",
                ("instances", "cache", "metadata"),
                STAGE,
                {
                    "templates": {
                        "/own/boot": {
                            "when": ["stagegbo"],
                            "template": "stagegbo.tpl",
                            "mode": "0755",
                            "uid": "0",
                            "gid": "0",
                        }
                    }
                },
            ),
            Sent(
                "POST",
                ("instances", "cache", "metadata", "templates"),
                {"path": "stagegbo.tpl", **STAGE},
                data=b"a ${% templatetag openbrace %}#b}",
            ),
        ],
    ),
    "delete_file": Case(
        lambda w: w.delete_file("cache", "/etc/motd"),
        [Sent("DELETE", ("instances", "cache", "files"), {"path": "/etc/motd", **STAGE})],
    ),
    "snapshot_instance": Case(
        lambda w: w.snapshot_instance("cache", "clean"),
        [Sent("POST", ("instances", "cache", "snapshots"), STAGE, {"name": "clean", "stateful": False})],
        waits=True,
    ),
    "restore_instance": Case(
        lambda w: w.restore_instance("cache", "clean"),
        [Sent("PUT", ("instances", "cache"), STAGE, {"restore": "clean"})],
        waits=True,
    ),
    "channel": Case(
        lambda w: w.channel("cache"),
        [streaming("sh")],
    ),
    "feed": Case(
        lambda w: w.feed("cache", "cat", [b"a"], patience=1),
        [streaming("sh", "-c", "(\ncat\n)\nstatus=$?\nprintf '\nended\n'\ncat >/dev/null\nexit $status")],
        {("POST", "instances/cache/exec"): {"return": 0}},
        waits=True,
    ),
    "output": Case(
        lambda w: list(w.output("cache", "echo", 0, patience=1)),
        [streaming("sh", "-c", "(\necho\n) && read -r _")],
        {("POST", "instances/cache/exec"): {"return": 0}},
        waits=True,
    ),
    "sockets": Case(
        lambda w: w.sockets("cache", ["cat"]),
        [streaming("cat")],
    ),
    "execute": Case(
        lambda w: w.execute("cache", ["id", "-u"]),
        [
            Sent(
                "POST",
                ("instances", "cache", "exec"),
                STAGE,
                {
                    "command": ["id", "-u"],
                    "record-output": True,
                    "wait-for-websocket": False,
                    "interactive": False,
                },
            )
        ],
        {("POST", "instances/cache/exec"): {"return": 0}},
        waits=True,
    ),
}


def writer_on(connection: StrictConnection, scope: WriterScope = SCOPE) -> Writer:
    return Writer(connection.as_connection(), scope, timeout=12.0)


class TestEveryMethod:
    def test_each_has_a_case_here(self) -> None:
        public = {name for name, _ in inspect.getmembers(Writer, inspect.isfunction) if not name.startswith("_")}
        assert public == set(CASES)

    @pytest.mark.parametrize("name", CASES)
    def test_sends_these_requests_and_no_others(self, name: str) -> None:
        case = CASES[name]
        connection = StrictConnection(case.answers())
        case.call(writer_on(connection))
        assert connection.sent == case.sent
        connection.check()

    @pytest.mark.parametrize("name", CASES)
    def test_waits_for_background_operations_within_the_time_set(self, name: str) -> None:
        case = CASES[name]
        connection = StrictConnection(case.answers())
        case.call(writer_on(connection))
        assert [timeout for _, timeout in connection.waited] == [12.0] * case.waits

    @pytest.mark.parametrize("name", CASES)
    def test_writes_to_the_stage_whatever_its_name_is(self, name: str) -> None:
        """No request but the copy's source carries the name of production's project, network or host project."""
        case = CASES[name]
        connection = StrictConnection(case.answers())
        case.call(writer_on(connection))
        for sent in connection.sent:
            if sent.method == "GET":
                continue
            assert sent.params.get("project", "STAGE-GBO") in {"STAGE-GBO", "default"}
            on_the_host = sent.path[0] in {"networks", "network-acls", "storage-pools"}
            assert (sent.params.get("project") == "default") == on_the_host
            assert "PROD-GBO" not in (*sent.path, *sent.params.values())

    @pytest.mark.parametrize(
        "name", [name for name, case in CASES.items() if case.sent[-1].path[0] in {"instances", "profiles", "networks"}]
    )
    def test_sends_nothing_to_a_stage_that_is_production(self, name: str) -> None:
        """A scope can't be made so; one that was tampered with still opens nothing."""
        scope = WriterScope("STAGE-GBO", "stagebr0", "stagebr0-isolation", "PROD-GBO", frozenset())
        force_setattr(scope, "source_project", "STAGE-GBO")
        force_setattr(scope, "production_networks", frozenset({"stagebr0"}))
        connection = StrictConnection(CASES[name].answers())
        with pytest.raises(ProductionProtected):
            CASES[name].call(writer_on(connection, scope))
        assert [sent for sent in connection.sent if sent.method != "GET"] == []


class TestFormerName:
    """What the stage had under another name may be deleted, and nothing else."""

    FORMER = replace(
        SCOPE, former_networks=frozenset({"stagebr7", "prodbr0"}), former_acls=frozenset({"stagebr7-isolation"})
    )

    def test_it_is_deleted(self) -> None:
        connection = StrictConnection(
            {("DELETE", "networks/stagebr7"): None, ("DELETE", "network-acls/stagebr7-isolation"): None}
        )
        writer = writer_on(connection, self.FORMER)
        writer.delete_network("stagebr7")
        writer.delete_acl("stagebr7-isolation")
        assert {sent.params["project"] for sent in connection.sent} == {"default"}
        connection.check()

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("PUT", ("networks", "stagebr7")),
            ("DELETE", ("networks", "stagebr7", "forwards", "10.0.0.1")),
            ("DELETE", ("networks", "prodbr0")),
            ("DELETE", ("networks", "stagebr8")),
            ("PUT", ("network-acls", "stagebr7-isolation")),
        ],
    )
    def test_nothing_else_is(self, method: str, path: tuple[str, ...]) -> None:
        with pytest.raises(ProductionProtected):
            writer_on(StrictConnection(), self.FORMER)._send(method, path)


class TestOwnPool:
    @pytest.mark.parametrize("pool", ["tank", ""], ids=["production's", "none"])
    def test_no_other_pool_is_written_to(self, pool: str) -> None:
        """A scope can't be made so; one that was tampered with still opens nothing."""
        scope = replace(SCOPE, pool="")
        force_setattr(scope, "pool", pool)
        connection = StrictConnection()
        for call in (lambda w: w.create_pool("btrfs", {}, ""), Writer.delete_pool):
            with pytest.raises(ProductionProtected):
                call(writer_on(connection, scope))
        assert connection.sent == []

    def test_production_s_is_no_stage_s(self) -> None:
        with pytest.raises(ProductionProtected, match="pool tank is production's"):
            replace(SCOPE, pool="tank")


class TestDetails:
    def test_a_copy_can_be_aimed_at_a_member_of_a_cluster(self) -> None:
        connection = StrictConnection({("POST", "instances"): None})
        writer_on(connection).copy_instance("cache", "cache", config={}, devices={}, target="member-2")
        assert connection.sent[0].params == {"target": "member-2", "project": "STAGE-GBO"}

    def test_a_stop_can_be_forced(self) -> None:
        connection = StrictConnection({("PUT", "instances/cache/state"): None})
        writer_on(connection).set_state("cache", "stop", force=True, seconds=5)
        assert connection.sent[0].body == {"action": "stop", "force": True, "timeout": 5}

    @pytest.mark.parametrize("name", ["delete_instance", "delete_file"])
    def test_what_is_gone_already_is_deleted(self, name: str) -> None:
        case = CASES[name]
        (sent,) = case.sent
        case.call(writer_on(StrictConnection({(sent.method, "/".join(sent.path)): refused(404)})))

    @pytest.mark.parametrize("name", ["delete_instance", "delete_file"])
    def test_another_refusal_to_delete_is_an_error(self, name: str) -> None:
        case = CASES[name]
        (sent,) = case.sent
        with pytest.raises(ServerRefused):
            case.call(writer_on(StrictConnection({(sent.method, "/".join(sent.path)): refused(400)})))


class Grudging(StrictConnection):
    """Refuses a request's first try."""

    def __init__(self, first: tuple[str, str], refusal: StageGboError, replies: dict[tuple[str, str], Any]) -> None:
        super().__init__({first: None, **replies})
        self._refusals: dict[tuple[str, str], StageGboError] = {first: refusal}

    def _answer(self, method: str, path: Sequence[str]) -> Reply:
        if refusal := self._refusals.pop((method, "/".join(path)), None):
            raise refusal
        return super()._answer(method, path)


class TestDialects:
    """What servers do differently, in their own words."""

    OWN, SHARED = {"features.networks": "true"}, {"features.networks": "false"}
    NO_OVN = refused(400, '400 OVN is required for projects with "features.networks" enabled')
    LOW_LEVEL = refused(
        403, '403 Use of low-level config "raw.lxc" on container "cache" of project "STAGE-GBO" is forbidden'
    )

    def test_a_project_has_networks_of_its_own_where_the_server_lets_it(self) -> None:
        connection = StrictConnection({("POST", "projects"): None})
        assert writer_on(connection).create_project(self.OWN, self.SHARED, "")
        assert [sent.body["config"] for sent in connection.sent] == [self.OWN]

    def test_without_ovn_a_project_shares_those_of_default(self) -> None:
        connection = Grudging(("POST", "projects"), self.NO_OVN, {})
        assert not writer_on(connection).create_project(self.OWN, self.SHARED, "")
        assert [sent.body["config"] for sent in connection.sent] == [self.OWN, self.SHARED]

    def test_another_refusal_of_a_project_is_an_error(self) -> None:
        connection = Grudging(("POST", "projects"), refused(403), {})
        with pytest.raises(ServerRefused):
            writer_on(connection).create_project(self.OWN, self.SHARED, "")
        assert len(connection.sent) == 1

    BLOCKED, ALLOWED = {dialect.LOW_LEVEL: "block"}, {dialect.LOW_LEVEL: "allow"}

    def copying(self, refusal: ServerRefused, then: ServerRefused | None = None) -> Grudging:
        project = Reply({"config": {"restricted": "true", **self.BLOCKED}, "description": "text"}, "e7a9", {})
        replies = {("GET", "projects/STAGE-GBO"): project, ("PUT", "projects/STAGE-GBO"): None}
        return Grudging(("POST", "instances"), refusal, {**replies, ("POST", "instances"): then})

    def test_low_level_keys_are_taken_away_while_the_project_allows_it(self) -> None:
        connection = self.copying(self.LOW_LEVEL)
        writer_on(connection).copy_instance("cache", "cache", config={"raw.lxc": ""}, devices={})
        assert [(sent.method, sent.path[0]) for sent in connection.sent if sent.method != "GET"] == [
            ("POST", "instances"),
            ("PUT", "projects"),
            ("POST", "instances"),
            ("PUT", "projects"),
        ]
        allowed, blocked = (sent.body for sent in connection.sent if sent.method == "PUT")
        assert allowed == {"config": {"restricted": "true", **self.ALLOWED}, "description": "text"}
        assert blocked == {"config": {"restricted": "true", **self.BLOCKED}, "description": "text"}

    def test_the_restriction_is_back_after_a_copy_that_is_refused_all_the_same(self) -> None:
        connection = self.copying(self.LOW_LEVEL, refused(500))
        with pytest.raises(ServerRefused, match="500"):
            writer_on(connection).copy_instance("cache", "cache", config={}, devices={})
        assert connection.sent[-1].body["config"] == {"restricted": "true", **self.BLOCKED}

    def test_another_refusal_of_a_copy_lifts_no_restriction(self) -> None:
        connection = self.copying(refused(400))
        with pytest.raises(ServerRefused):
            writer_on(connection).copy_instance("cache", "cache", config={}, devices={})
        assert [sent.path[0] for sent in connection.sent] == ["instances"]


class TestRestore:
    """Of a snapshot in a restricted project. Incus 7.4 compares keys that it made itself (lxc/incus#3993)."""

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param('Setting "volatile.eth0.host_name" on container "a" in project "b" is forbidden', id="set"),
            pytest.param(
                'Changing "volatile.cloud-init.instance-id" on container "a" in project "b" is forbidden', id="changed"
            ),
        ],
    )
    @pytest.mark.parametrize("late", [False, True], ids=["at once", "by the operation"])
    def test_the_restriction_is_lifted_for_it(self, answer: str, late: bool) -> None:
        refusal = OperationFailed("restoring cache failed", seen=answer) if late else refused(403, answer)
        blocked = {"restricted": "true", "restricted.containers.lowlevel": "block"}
        project = Reply({"config": blocked, "description": "text"}, "e7a9", {})
        replies = {("GET", "projects/STAGE-GBO"): project, ("PUT", "projects/STAGE-GBO"): None}
        connection = Grudging(("PUT", "instances/cache"), refusal, {**replies, ("PUT", "instances/cache"): None})
        writer_on(connection).restore_instance("cache", "clean")
        puts = [sent for sent in connection.sent if sent.method == "PUT"]
        assert [sent.path[0] for sent in puts] == ["instances", "projects", "instances", "projects"]
        assert puts[1].body["config"]["restricted.containers.lowlevel"] == "allow"
        assert puts[3].body["config"] == blocked


class TestStart:
    FAILED = OperationFailed("start of cache failed", seen="Failed to run: /usr/bin/incusd forkstart: exit status 1")
    LOG = b"lxc a 2026 TRACE start\nlxc a 2026 ERROR    start - no /sbin/init\npassword=hunter2hunter2 ERROR x\n"

    def connection(self, log: object) -> StrictConnection:
        return StrictConnection({("PUT", "instances/cache/state"): self.FAILED, ("GET", self.PATH): log})

    PATH = "instances/cache/logs/lxc.log"

    def test_a_container_that_cannot_start_is_named_with_its_log(self) -> None:
        with pytest.raises(OperationFailed) as caught:
            writer_on(self.connection(self.LOG)).set_state("cache", "start")
        assert caught.value.message == "container cache of STAGE-GBO could not be started"
        assert "no /sbin/init" in caught.value.seen
        assert "forkstart" in caught.value.seen
        assert "TRACE" not in caught.value.seen
        assert "hunter2" not in str(caught.value)
        assert "--show-log cache" in caught.value.remedy

    def test_a_log_that_cannot_be_had_does_not_hide_it(self) -> None:
        with pytest.raises(OperationFailed, match="forkstart"):
            writer_on(self.connection(refused(404))).set_state("cache", "start")

    def test_a_daemon_that_is_busy_says_so_itself(self) -> None:
        busy = refused(400, "Instance is busy running a start operation")
        with pytest.raises(ServerRefused, match="busy"):
            writer_on(StrictConnection({("PUT", "instances/cache/state"): busy})).set_state("cache", "start")


class TestExecute:
    RECORDS = "instances/cache/logs/exec-output"

    def connection(self, **metadata: Any) -> StrictConnection:
        folder = "/1.0/instances/cache/logs/exec-output"
        output = {"1": f"{folder}/exec_7.stdout", "2": f"{folder}/exec_7.stderr"}
        return StrictConnection(
            {
                ("POST", "instances/cache/exec"): {"return": 3, "output": output, **metadata},
                ("GET", f"{self.RECORDS}/exec_7.stdout"): "grün\n".encode(),
                ("GET", f"{self.RECORDS}/exec_7.stderr"): b"\xff",
                ("DELETE", f"{self.RECORDS}/exec_7.stdout"): None,
                ("DELETE", f"{self.RECORDS}/exec_7.stderr"): None,
            }
        )

    def test_returns_the_status_and_both_outputs(self) -> None:
        assert writer_on(self.connection()).execute("cache", ["x"]) == CommandResult(
            3, "grün\n", "\N{REPLACEMENT CHARACTER}"
        )

    def test_deletes_the_recorded_outputs_once_read(self) -> None:
        connection = self.connection()
        writer_on(connection).execute("cache", ["x"])
        connection.check()
        assert [(sent.method, sent.path[-1], sent.params) for sent in connection.sent[1:]] == [
            ("GET", "exec_7.stdout", STAGE),
            ("DELETE", "exec_7.stdout", STAGE),
            ("GET", "exec_7.stderr", STAGE),
            ("DELETE", "exec_7.stderr", STAGE),
        ]

    def test_output_that_nobody_wants_is_neither_recorded_nor_asked_for(self) -> None:
        connection = StrictConnection({("POST", "instances/cache/exec"): {"return": 5, "output": None}})
        assert writer_on(connection).execute("cache", ["x"], record=False) == CommandResult(5, "", "")
        assert [(sent.method, sent.body["record-output"]) for sent in connection.sent] == [("POST", False)]

    def test_has_a_time_limit_of_its_own(self) -> None:
        connection = StrictConnection({("POST", "instances/cache/exec"): {"return": 0}})
        writer_on(connection).execute("cache", ["id"], timeout=0)
        assert connection.waited == [("id in cache", 0)]

    def test_an_operation_that_was_forgotten_is_an_error(self) -> None:
        with pytest.raises(OperationFailed, match="id in cache ended without a result"):
            writer_on(StrictConnection({("POST", "instances/cache/exec"): None})).execute("cache", ["id"])


class GivesUp:
    """Streams of a script that gives up: it says so, and reads the rest of its input to the end before it ends."""

    def __init__(self, *, at_once: bool) -> None:
        self.ended = False
        self.at_once = at_once
        self.said = [b"no room\n\nended\n"]

    def write(self, data: bytes) -> None:
        assert not self.ended, data

    def read(self, timeout: float) -> bytes:
        if self.said:
            return self.said.pop() if timeout or self.at_once else b""
        assert self.ended, f"nothing comes for {timeout} s: the script still reads"
        raise ChannelBroken("it has ended")

    def close(self) -> None:
        self.ended = True


class TestFeed:
    @pytest.mark.parametrize("at_once", [True, False], ids=["while it is fed", "in the end"])
    def test_a_script_that_gives_up_gets_the_end_of_its_input(self, at_once: bool) -> None:
        """Without it, the script would be waited for as long as for a copy that makes no progress."""
        connection = StrictConnection({("POST", "instances/cache/exec"): {"return": 3}})
        streams = GivesUp(at_once=at_once)
        connection.streams = lambda _: (streams, streams, Ended())  # type: ignore[method-assign, assignment]
        result = writer_on(connection).feed("cache", "script", [b"x"] * 3, patience=60)
        assert result == CommandResult(3, "no room\n", "")


class TestScope:
    """The names that a writer is bound to are never production's."""

    @pytest.mark.parametrize(
        ("project", "source"),
        [
            pytest.param("PROD-GBO", "PROD-GBO", id="the-source"),
            pytest.param("default", "PROD-GBO", id="the-hosts"),
            pytest.param("default", "default", id="both"),
        ],
    )
    def test_a_project_of_production_is_refused(self, project: str, source: str) -> None:
        with pytest.raises(ProductionProtected, match=f"project {project} is where production lives"):
            WriterScope(project, "stagebr0", "acl", source, frozenset())

    def test_a_network_of_production_is_refused(self) -> None:
        with pytest.raises(ProductionProtected, match="network stagebr0 is used by production"):
            WriterScope("STAGE-GBO", "stagebr0", "acl", "default", frozenset({"stagebr0", "prodbr0"}))

    def test_a_stage_of_its_own_is_fine(self) -> None:
        assert WriterScope("STAGE-GBO", "stagebr0", "acl", "default", frozenset({"prodbr0"})).project == "STAGE-GBO"


FORBIDDEN = [
    pytest.param("DELETE", ("projects", "default"), None, id="delete-the-hosts-project"),
    pytest.param("PUT", ("projects", "PROD-GBO"), {}, id="change-productions-project"),
    pytest.param("POST", ("projects",), {"name": "another"}, id="make-another-project"),
    pytest.param("POST", ("projects",), None, id="make-a-project-without-name"),
    pytest.param("DELETE", ("networks", "prodbr0"), None, id="delete-productions-network"),
    pytest.param("PUT", ("networks", "lxdbr0"), {}, id="change-another-network"),
    pytest.param("PUT", ("networks", "stagebr0", "peers", "x"), {}, id="more-of-the-stages-network-than-forwards"),
    pytest.param("POST", ("networks",), {"name": "prodbr0"}, id="make-productions-network"),
    pytest.param("POST", ("networks", "prodbr0", "forwards"), {"name": "stagebr0"}, id="forward-of-another-network"),
    pytest.param("DELETE", ("network-acls", "prod"), None, id="delete-another-acl"),
    pytest.param("POST", ("network-acls",), {"name": "prod"}, id="make-another-acl"),
    pytest.param("PUT", (), {"config": {}}, id="change-the-server"),
    pytest.param("PATCH", ("",), {"config": {}}, id="change-the-server-by-a-slash"),
    pytest.param("PATCH", ("instances", ".."), {"config": {}}, id="change-the-server-by-dots"),
    pytest.param("DELETE", ("instances", "..", "projects", "default"), None, id="out-of-the-instances"),
    pytest.param("PUT", ("instances", ".", "state"), {}, id="dot"),
    pytest.param("DELETE", ("instances", ""), None, id="no-name"),
    pytest.param("DELETE", ("projects", "STAGE-GBO", "..", "default"), None, id="from-the-stages-project-elsewhere"),
    pytest.param("POST", ("instances", "cache"), {"migration": True, "project": "default"}, id="move-to-production"),
    pytest.param("PUT", ("storage-pools", "tank"), {}, id="change-the-pool"),
    pytest.param("DELETE", ("storage-pools", "tank", "volumes", "container", "tables"), None, id="delete-a-volume"),
    pytest.param("POST", ("images",), {}, id="make-an-image"),
    pytest.param("POST", ("certificates",), {}, id="trust-somebody"),
    pytest.param("DELETE", ("operations", "1234"), None, id="cancel-an-operation"),
    pytest.param("PUT", ("cluster",), {}, id="change-the-cluster"),
    pytest.param("DELETE", ("warnings", "1234"), None, id="delete-a-warning"),
]


class TestGate:
    @pytest.mark.parametrize(("method", "path", "body"), FORBIDDEN)
    def test_a_write_outside_the_stage_is_not_sent(self, method: str, path: tuple[str, ...], body: Any) -> None:
        connection = StrictConnection()
        with pytest.raises(ProductionProtected) as caught:
            writer_on(connection)._send(method, path, body=body)
        assert connection.sent == []
        assert caught.value.message.startswith(f"{method} /1.0/")

    @pytest.mark.parametrize(("method", "path", "body"), FORBIDDEN)
    def test_nor_is_one_that_would_be_waited_for(self, method: str, path: tuple[str, ...], body: Any) -> None:
        connection = StrictConnection()
        with pytest.raises(ProductionProtected):
            writer_on(connection)._run("x", method, path, body=body)
        assert (connection.sent, connection.waited) == ([], [])

    def test_the_caller_does_not_choose_the_project(self) -> None:
        connection = StrictConnection({("DELETE", "instances/cache"): None})
        writer_on(connection)._send("DELETE", ("instances", "cache"), params={"project": "PROD-GBO"})
        assert connection.sent[0].params == STAGE

    @pytest.mark.parametrize("name", ["", ".", ".."])
    def test_no_method_takes_a_name_that_leads_elsewhere(self, name: str) -> None:
        connection = StrictConnection()
        writer = writer_on(connection)
        calls: list[Callable[[], object]] = [
            lambda: writer.set_instance_config(name, {}),
            lambda: writer.set_instance_devices(name, {}),
            lambda: writer.set_state(name, "stop"),
            lambda: writer.delete_instance(name),
            lambda: writer.put_file(name, "/etc/motd", b""),
            lambda: writer.place_at_first_start(name, "/opt/gbo", "", mode=0o755),
            lambda: writer.delete_file(name, "/etc/motd"),
            lambda: writer.execute(name, ["id"]),
            lambda: writer.channel(name),
            lambda: writer.snapshot_instance(name, "clean"),
            lambda: writer.restore_instance(name, "clean"),
        ]
        for call in calls:
            with pytest.raises(ProductionProtected):
                call()
        assert connection.sent == []


class OnlyGet:
    """A connection that can do nothing but GET, whatever is asked for."""

    endpoint = "/nowhere/unix.socket"
    is_local = True

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def server(self) -> Server:
        return replace(SERVER, clustered=True, name="c2")

    def events(self) -> str:
        return "events"

    def get(self, *path: str, **params: str | int) -> Any:
        self.asked.append((path, params))
        return self.answer

    def read_bytes(self, *path: str, **params: str | int) -> bytes:
        self.asked.append((path, params))
        return b"content"

    def read_pieces(self, *path: str, **params: str | int) -> Iterator[bytes]:
        yield self.read_bytes(*path, **params)


READS: dict[str, tuple[Any, Any, list[tuple[tuple[str, ...], dict[str, Any]]]]] = {
    "server": (lambda r: r.server(), None, []),
    "host": (lambda r: r.host(), None, []),
    "set_member": (lambda r: r.set_member("c1"), None, []),
    "why_away": (lambda r: r.why_away(), None, []),
    "members": (
        lambda r: r.members(),
        [{"server_name": "c1", "status": "Online", "url": "https://10.99.0.1:8443"}],
        [(("cluster", "members"), {"recursion": 1})],
    ),
    "events": (lambda r: r.events(), None, []),
    "projects": (lambda r: r.projects(), [], [(("projects",), {"recursion": 1})]),
    "instances": (lambda r: r.instances("P"), [], [(("instances",), {"project": "P", "recursion": 1})]),
    "instances_of_all_projects": (
        lambda r: r.instances_of_all_projects(),
        [],
        [(("instances",), {"all-projects": "true", "recursion": 1})],
    ),
    "link": (
        lambda r: r.link("stagebr0"),
        {"state": "up"},
        [(("networks", "stagebr0", "state"), {"project": "default"})],
    ),
    "instance": (lambda r: r.instance("P", "n"), {"name": "n"}, [(("instances", "n"), {"project": "P"})]),
    "init": (lambda r: r.init("P", "n"), {"pid": 7}, [(("instances", "n", "state"), {"project": "P"})]),
    "is_worked_on": (
        lambda r: r.is_worked_on("P", "n"),
        {"running": [{"resources": {"instances": ["/1.0/instances/n?project=P"]}}]},
        [(("operations",), {"project": "P", "recursion": 1})],
    ),
    "is_at_work": (
        lambda r: r.is_at_work(),
        {"running": [{"description": "Executing command"}]},
        [(("operations",), {"recursion": 1, "all-projects": "true"})],
    ),
    "networks": (lambda r: r.networks(), [], [(("networks",), {"project": "default", "recursion": 1})]),
    "network": (
        lambda r: r.network("stagebr0"),
        {"name": "stagebr0"},
        [(("networks", "stagebr0"), {"project": "default"})],
    ),
    "acls": (lambda r: r.acls(), [], [(("network-acls",), {"project": "default", "recursion": 1})]),
    "acl": (lambda r: r.acl("acl"), {}, [(("network-acls", "acl"), {"project": "default"})]),
    "forwards": (
        lambda r: r.forwards("stagebr0"),
        [],
        [(("networks", "stagebr0", "forwards"), {"recursion": 1, "project": "default"})],
    ),
    "network_names": (lambda r: r.network_names(), ["/1.0/networks/br0"], [(("networks",), {"project": "default"})]),
    "acl_names": (lambda r: r.acl_names(), ["/1.0/network-acls/l"], [(("network-acls",), {"project": "default"})]),
    "host_networks": (lambda r: r.host_networks(), [], [(("networks",), {"project": "default"})]),
    "documents": (lambda r: r.documents("a", project="P"), [], [(("a",), {"recursion": 1, "project": "P"})]),
    "document": (lambda r: r.document("a", "b", project="P"), {}, [(("a", "b"), {"project": "P"})]),
    "profile": (lambda r: r.profile("P"), {}, [(("profiles", "default"), {"project": "P"})]),
    "pool": (
        lambda r: r.pool("tank"),
        {},
        [(("storage-pools", "tank"), {}), (("storage-pools", "tank", "resources"), {})],
    ),
    "has_pool": (lambda r: r.has_pool("tank"), {}, [(("storage-pools", "tank"), {})]),
    "volume_usage": (
        lambda r: r.volume_usage("tank", "P", "n"),
        {},
        [(("storage-pools", "tank", "volumes", "container", "n", "state"), {"project": "P"})],
    ),
    "memory_available": (lambda r: r.memory_available(), {}, [(("resources",), {})]),
    "cores": (lambda r: r.cores(), {}, [(("resources",), {})]),
    "snapshots": (lambda r: r.snapshots("P", "n"), [], [(("instances", "n", "snapshots"), {"project": "P"})]),
    "snapshot": (
        lambda r: r.snapshot("P", "n", "clean"),
        {"name": "clean"},
        [(("instances", "n", "snapshots", "clean"), {"project": "P"})],
    ),
    "console": (lambda r: r.console("P", "n"), None, [(("instances", "n", "console"), {"project": "P"})]),
    "file": (lambda r: r.file("P", "n", "/x"), None, [(("instances", "n", "files"), {"project": "P", "path": "/x"})]),
    "file_pieces": (
        lambda r: list(r.file_pieces("P", "n", "/x")),
        None,
        [(("instances", "n", "files"), {"project": "P", "path": "/x"})],
    ),
}


class TestReader:
    """What the package holds of production can only read."""

    def test_each_method_has_a_case_here(self) -> None:
        public = {name for name, _ in inspect.getmembers(Reader, inspect.isfunction) if not name.startswith("_")}
        assert public == set(READS)

    @pytest.mark.parametrize("name", READS)
    def test_it_works_over_a_connection_that_can_only_get(self, name: str) -> None:
        call, answer, asked = READS[name]
        connection: Any = OnlyGet(answer)
        call(Reader(connection))
        assert connection.asked == asked

    @pytest.mark.parametrize(("name", "nothing"), [("instances", {}), ("instance", None), ("profile", None)])
    def test_what_does_not_exist_is_not_an_error(self, name: str, nothing: Any) -> None:
        assert READS[name][0](Reader(Refusing(404).as_connection())) == nothing

    @pytest.mark.parametrize("name", ["instances", "instance", "profile", "file"])
    def test_another_refusal_is_an_error(self, name: str) -> None:
        with pytest.raises(ServerRefused):
            READS[name][0](Reader(Refusing(500).as_connection()))

    ANOTHER = "Failed getting ACL usage: Network ACL not found"
    """What Incus says of a list that exists, as `tests/lab/test_ownership.py` shows."""

    @pytest.mark.parametrize(("said", "found"), [(ANOTHER, True), ("Network ACL not found", False)])
    def test_an_access_list_is_there_although_another_was_deleted_while_the_daemon_looked(
        self, said: str, found: bool
    ) -> None:
        answers: list[Any] = [ServerRefused("Incus refused", status=404, seen=said), {"name": "l"}]

        def get(*_: str, **__: Any) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, ServerRefused):
                raise answer
            return answer

        connection: Any = SimpleNamespace(get=get)
        assert Reader(connection).acl("l") == ({"name": "l"} if found else None)

    def test_an_access_list_that_can_not_be_read_is_an_error(self) -> None:
        def get(*_: str, **__: Any) -> Any:
            raise ServerRefused("Incus refused", status=404, seen=self.ANOTHER)

        connection: Any = SimpleNamespace(get=get)
        with pytest.raises(ServerRefused):
            Reader(connection).acl("l")

    def test_a_file_that_does_not_exist_has_no_content(self) -> None:
        assert Reader(Refusing(404).as_connection()).file("P", "n", "/x") is None

    @pytest.mark.parametrize(
        ("state", "used"),
        [({"usage": {"used": 7}}, 7), ({"usage": {"used": -1}}, None), ({"usage": None}, None), (None, None)],
    )
    def test_a_volumes_usage_is_unknown_where_the_driver_does_not_count(self, state: Any, used: int | None) -> None:
        connection: Any = OnlyGet(state)
        assert Reader(connection).volume_usage("tank", "P", "n") == used


ACL = ("network-acls", SCOPE.acl)
COME_BETWEEN = {
    ("POST", ("networks",)): (500, "Failed to delete bridge children interfaces: ip link show vethx: does not exist"),
    ("DELETE", ("networks", SCOPE.network)): (
        500,
        "Failed to delete bridge children interfaces: ip link show vethx: does not exist",
    ),
    ("PUT", ACL): (404, "Failed getting ACL network usage: Network ACL not found"),
    ("DELETE", ACL): (404, "Failed getting ACL usage: Network ACL not found"),
}
"""What the daemon says when something else of the host goes while it looks."""


class Unlucky(StrictConnection):
    """Something else of the host goes while the first requests are worked on."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def request(self, method: str, path: Sequence[str], **_: Any) -> Reply:
        status, said = COME_BETWEEN[method, tuple(path)]
        self._times -= 1
        if self._times >= 0:
            raise refused(status, said)
        return Reply({}, "", {})

    def get_reply(self, *_: str, **__: Any) -> Reply:
        return Reply({}, "e", {})


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda writer: writer.create_network({}, ""), id="make-network"),
        pytest.param(Writer.delete_network, id="delete-network"),
        pytest.param(lambda writer: writer.replace_acl({}), id="replace-access-list"),
        pytest.param(Writer.delete_acl, id="delete-access-list"),
    ],
)
class TestSomethingElseOnTheHost:
    def test_that_came_between_is_no_harm(self, ask: Callable[[Writer], None]) -> None:
        ask(Writer(Unlucky(TRIES - 1).as_connection(), SCOPE, 10))

    def test_is_not_waited_for_for_ever(self, ask: Callable[[Writer], None]) -> None:
        with pytest.raises(ServerRefused):
            ask(Writer(Unlucky(TRIES).as_connection(), SCOPE, 10))


class Refusing(StrictConnection):
    """Refuses everything with one status."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self._status = status

    def get_reply(self, *path: str, **params: str | int) -> Reply:
        raise refused(self._status, f"{path} {params}")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param({"running": [{"resources": {"instances": ["/1.0/instances/n?project=P"]}}]}, True, id="it"),
        pytest.param({"running": [{"resources": {"instances": ["/1.0/instances/nn"]}}]}, False, id="another"),
        pytest.param({"success": [{"resources": {"instances": ["/1.0/instances/n"]}}]}, False, id="ended"),
        pytest.param(
            {"running": [{"description": "Executing command", "resources": {"instances": ["/1.0/instances/n"]}}]},
            False,
            id="a-shell-in-it",
        ),
        pytest.param({"running": [{"resources": None}]}, False, id="nothing-named"),
        pytest.param({}, False, id="none"),
    ],
)
def test_what_is_worked_on(answer: dict[str, Any], expected: bool) -> None:
    connection: Any = OnlyGet(answer)
    assert Reader(connection).is_worked_on("P", "n") is expected


class TestMemberOfACluster:
    """What differs between members is asked of the one that the stage is on."""

    @pytest.mark.parametrize(
        ("call", "path"),
        [
            (lambda r: r.link("stagebr0"), ("networks", "stagebr0", "state")),
            (lambda r: r.memory_available(), ("resources",)),
            (lambda r: r.cores(), ("resources",)),
            (lambda r: r.pool("tank"), ("storage-pools", "tank", "resources")),
        ],
    )
    def test_it_is_asked(self, call: Any, path: tuple[str, ...]) -> None:
        connection: Any = OnlyGet({})
        call(Reader(connection, lambda _: "c1"))
        asked = dict(connection.asked)
        assert asked[path]["target"] == "c1"

    @pytest.mark.parametrize(("member", "here"), [("c1", False), ("c2", True)])
    def test_the_host_is_looked_at_where_this_process_is_on_it(self, member: str, here: bool) -> None:
        reader = Reader(OnlyGet({}), lambda _: member)  # type: ignore[arg-type]
        assert reader.is_here is here
        assert reader.elsewhere == ("" if here else "cluster member c1")

    def test_it_is_looked_for_once_until_it_is_known(self) -> None:
        found = iter(["c1"])
        reader = Reader(OnlyGet({}), lambda _: next(found))  # type: ignore[arg-type]
        assert [reader.member, reader.member] == ["c1", "c1"]
        reader.set_member("c2")
        assert reader.member == "c2"

    def test_members_have_addresses(self) -> None:
        answer = [{"server_name": "c2", "status": "Offline", "url": "https://[fd00::2]:8443"}, {"server_name": "c1"}]
        found = Reader(OnlyGet(answer)).members()  # type: ignore[arg-type]
        assert found == (Member("c1", "", ""), Member("c2", "Offline", "fd00::2"))
        assert [each.is_missing for each in found] == [False, True]

    def test_a_bridge_is_announced_to_each_member_before_it_is_made(self) -> None:
        connection = StrictConnection({("POST", "networks"): None})
        writer_on(connection).create_network({"ipv4.address": "10.0.3.1/24"}, "made here", ["c1", "c2"])
        sent = [(each.params.get("target"), each.body["config"]) for each in connection.sent]
        assert sent == [("c1", {}), ("c2", {}), (None, {"ipv4.address": "10.0.3.1/24"})]
