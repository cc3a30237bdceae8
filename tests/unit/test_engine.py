"""What an engine asks the daemon before it writes: no more than the write needs, and nothing that protects less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from fakes import SERVER, StrictConnection, clone, finished, project, source
from msgspec import to_builtins
from msgspec.structs import replace

from pytest_stagegbo import clocks
from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.exposure import Exposure, forward_body
from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.errors import MemberAway, NotOurs, ProductionProtected, SettingsError, SourceMissing
from pytest_stagegbo.services import dial
from pytest_stagegbo.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.incus.records import Server
    from pytest_stagegbo.settings import StorageSettings

SETTINGS = Settings()
FORWARDS = f"networks/{SETTINGS.network.name}/forwards"
EXPOSED = Exposure("tables", "10.0.3.11", 5432, "192.0.2.7", 15432, until=int(clocks.now()) + 3600)
MARKED = {marks.OWNER: marks.OWNER_VALUE}


@pytest.fixture(autouse=True)
def no_way_to_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process connect to the same addresses."""
    monkeypatch.setattr(dial, "_ways", {})


class Daemon(StrictConnection):
    """Answers with production's instances, and what else a test has laid out."""

    requests = 0

    def __init__(self, replies: Mapping[str, Any], server: Server = SERVER) -> None:
        super().__init__({("GET", path): answer for path, answer in replies.items()})
        self._said = server

    def server(self) -> Server:
        return self._said

    def asked(self) -> list[tuple[str, object]]:
        """Paths, each with the project that it is about."""
        return [("/".join(each.path), each.params.get("project")) for each in self.sent]


def engine(
    daemon: Daemon, *, settings: Settings = SETTINGS, parent: str = "", monkeypatch: pytest.MonkeyPatch | None = None
) -> StageEngine:
    made = StageEngine(settings, daemon.as_connection(), parent=parent)
    if monkeypatch is not None:
        monkeypatch.setattr(made, "facts", lambda: pytest.fail("the facts of a plan were read"))
    return made


def replies(**stage_config: str) -> dict[str, Any]:
    projects = [project("default"), *([project("STAGE-GBO", **stage_config)] if stage_config else [])]
    return {"projects": list(map(to_builtins, projects)), "instances": [to_builtins(source("tables"))]}


def test_whoever_writes_to_clones_asks_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(replies(**MARKED))
    made = engine(daemon, monkeypatch=monkeypatch)
    scope = made.clone_writer().scope
    assert made.clone_writer() is made.clone_writer()
    assert daemon.asked() == [("projects", None), ("instances", "default")]
    assert (scope.project, scope.source_project) == ("STAGE-GBO", "default")
    assert (scope.production_networks, scope.production_pools) == (frozenset({"prodbr0"}), frozenset({"tank"}))


@pytest.mark.parametrize(
    ("settings", "config", "parent", "error"),
    [
        pytest.param({"source_project": "elsewhere"}, MARKED, "", SourceMissing, id="production-is-not-there"),
        pytest.param({"project": "default"}, MARKED, "", ProductionProtected, id="production-s-project"),
        pytest.param({"network": "prodbr0"}, MARKED, "", ProductionProtected, id="production-s-bridge"),
        pytest.param({"pool": "tank"}, MARKED, "", ProductionProtected, id="production-s-pool"),
        pytest.param({}, {**MARKED, marks.FAMILY: "STAGE"}, "", SettingsError, id="a-slot-of-another-stage"),
        pytest.param({}, MARKED, "STAGE", NotOurs, id="a-stage-of-its-own-where-a-slot-is-meant"),
    ],
)
def test_what_protects_production_is_asked_before_a_clone_is_written_to(
    settings: dict[str, str], config: dict[str, str], parent: str, error: type[Exception]
) -> None:
    changes: dict[str, Any] = {key: settings[key] for key in ("source_project", "project") if key in settings}
    if "network" in settings:
        changes["network"] = replace(SETTINGS.network, name=settings["network"])
    if "pool" in settings:
        storage: StorageSettings = replace(SETTINGS.storage, pool=settings["pool"])
        changes["storage"] = storage
    with pytest.raises(error):
        engine(Daemon(replies(**config)), settings=replace(SETTINGS, **changes), parent=parent).clone_writer()


def test_nothing_is_written_to_a_stage_whose_member_is_away() -> None:
    instances = [to_builtins(replace(clone("tables", SETTINGS), location="second"))]
    states = {"first": "Online", "second": "Offline"}
    members = [{"server_name": name, "status": status, "url": ""} for name, status in states.items()]
    daemon = Daemon(
        {**replies(**MARKED), "instances": instances, "cluster/members": members}, replace(SERVER, clustered=True)
    )
    with pytest.raises(MemberAway, match="second, which is offline"):
        engine(daemon).clone_writer()


def test_a_reset_finds_with_one_request_that_nothing_is_exposed(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"listen_address": "192.0.2.7", "config": {}, "ports": []}
    daemon = Daemon({FORWARDS: [others]})
    exposures = engine(daemon, monkeypatch=monkeypatch).exposures
    assert not exposures.close_over()
    assert not exposures.close_over()
    assert daemon.asked() == [(FORWARDS, "default")]


def test_a_reset_reads_the_facts_where_something_is_exposed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(Daemon({FORWARDS: [forward_body(EXPOSED)]}))
    facts = Mock(return_value=finished(SETTINGS, exposed=(EXPOSED,)))
    monkeypatch.setattr(made, "facts", facts)
    assert not made.exposures.close_over()
    facts.assert_called_once_with()
