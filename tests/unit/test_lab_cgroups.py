"""Control groups that a lab's containers leave when they are killed, on all kinds of hierarchies."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.lab import cgroups

if TYPE_CHECKING:
    from pathlib import Path

NESTED = "session/1a2b/lxc.payload.STAGE-GBO_cache-2"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("0::/lxc.payload.cache/system.slice/valkey.service", ["lxc.payload.cache"]),
        ("8:pids:/lxc.monitor.cache", ["lxc.monitor.cache"]),
        (f"4:memory:/{NESTED}/init.scope", [NESTED]),
        ("9:name=systemd:/user.slice/session-2.scope", []),
        ("7:blkio:/", []),
    ],
)
def test_a_containers_group_is_found_below_the_one_that_the_lab_was_started_in(line: str, found: list[str]) -> None:
    assert list(cgroups.container_groups(f"{line}\n")) == found


def test_noted_groups_without_processes_go_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    used, noted = "lxc.payload.tables", tmp_path / "noted"
    for group in (f"memory/{NESTED}/system.slice/cron.service", "memory/session/1a2b/lxc.payload.of-another", "pids/x"):
        (tmp_path / group).mkdir(parents=True)
    (tmp_path / "pids" / used / "init.scope").mkdir(parents=True)
    (tmp_path / "pids" / used / "init.scope/cgroup.procs").write_text("4242\n")
    noted.write_text(json.dumps([NESTED, used]))
    cgroups.sweep(noted)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir()}
    assert left & {f"memory/{NESTED}", f"memory/{NESTED}/system.slice"} == set()
    assert {"memory/session/1a2b/lxc.payload.of-another", f"pids/{used}/init.scope", "pids/x"} <= left
    assert not noted.exists()
