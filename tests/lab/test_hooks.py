"""What a user has run in a new clone is done before anything else sees it, or the clone is never seen."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import SIX, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.support import Ground, Stage

pytestmark = pytest.mark.lab

KEPT = ("tables", "cache")
SETTINGS = (
    "[containers]\n"
    + "".join(f"{name} = false\n" for name in SIX if name not in KEPT)
    + '[containers.tables]\nhooks = ["hooks/mask.sql"]\n'
    + '[containers.cache]\nneeds = ["tables"]\nhooks = ["hooks/look.sh", "hooks/seed.py"]\n'
)
MASK = "UPDATE users SET name = 'user ' || id, mail = id || '@masked.invalid';\n"
LOOK = """
ip -o link | cut -d: -f2 >/root/links
ip route get 10.0.2.11 >/root/route 2>&1 && exit 9
systemctl is-active valkey.service >/root/unit
id -un >/root/user
"""
SEED = "#!/usr/bin/env python3\nprint('hunter2 password=topsecret')\nopen('/root/seeded', 'w').write('yes')\n"
FAILING = "UPDATE users SET mail = 'the same';\n"
BLOCKED = "touch /root/began; exec sleep 600\n"


class Folder:
    """Hooks beside the settings file, which names them by relative paths."""

    def __init__(self, ground: Ground) -> None:
        self.path: Path = ground.folder / "hooks"
        self.path.mkdir(exist_ok=True)

    def write(self, mask: str = MASK, look: str = LOOK) -> None:
        (self.path / "mask.sql").write_text(mask)
        (self.path / "look.sh").write_text(look)
        (self.path / "seed.py").write_text(SEED)


@pytest.fixture(scope="module")
def folder(ground: Ground) -> Folder:
    return Folder(ground)


@pytest.fixture(scope="module")
def hooked(ground: Ground, folder: Folder) -> Iterator[Stage]:
    stage = ground.stage("STAGE-HOOKS", "stagehooks0", 31, SETTINGS)
    folder.write()
    yield stage
    stage.destroy()


def test_the_plan_names_them(hooked: Stage) -> None:
    steps = {step["key"]: step for step in hooked.json("provision", "--dry-run")["steps"]}
    assert steps["hooks:cache"]["text"] == "run look.sh, seed.py in cache while it has no network"
    assert "hooks:tables" in steps["start:tables"]["after"]


def test_a_failing_one_leaves_the_clone_stopped_and_unready(hooked: Stage, folder: Folder) -> None:
    """The error has the hook and its status, and no row of anybody's."""
    folder.write(mask=FAILING)
    done = hooked.run("provision", check=False)
    assert done.returncode == 1
    assert "SG330 hook mask.sql of tables ended with status 3" in done.stderr
    assert "duplicate key value violates unique constraint" in done.stderr
    assert "the same" not in done.stderr
    assert hooked.clone("tables")["status"] == "Stopped"
    states = {
        each["name"]: each["state"]
        for each in json.loads(hooked.run("status", "--json", check=False).stdout)["containers"]
    }
    assert states["tables"] == "unfinished"
    assert hooked.run("exec", "tables", "--", "true", check=False).returncode == 1


def test_a_missing_one_is_an_error_before_anything_is_done(hooked: Stage, folder: Folder) -> None:
    folder.write()
    (folder.path / "mask.sql").unlink()
    with hooked.ground.events() as events:
        done = hooked.run("provision", check=False)
    assert done.returncode == 2
    assert "hooks/mask.sql can't be read" in done.stderr
    assert events == []


def test_one_that_is_killed_is_not_taken_for_done(hooked: Stage, folder: Folder) -> None:
    """What follows replaces the clone."""
    folder.write(look=BLOCKED)
    process = hooked.start("provision")
    with process:
        until(lambda: (hooked.rootfs("cache") / "root/began").exists(), "the hook runs", 60)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    clone = hooked.clone("cache")
    assert clone["config"]["user.stagegbo.state"] == "building"
    assert clone["expanded_devices"]["eth0"] == {"type": "none"}
    folder.write()
    done = hooked.json("provision")
    assert {"remove:cache", "hooks:cache"} <= set(done["steps"])
    assert not (hooked.rootfs("cache") / "root/began").exists()


def test_rows_are_masked_and_production_s_are_not(hooked: Stage) -> None:
    assert hooked.sql("SELECT count(*) FROM users WHERE mail NOT LIKE '%@masked.invalid'") == "0"
    query = ["runuser", "-u", "postgres", "--", "psql", "-XqAt", "botserver", "-c"]
    question = "SELECT count(*) FROM users WHERE mail LIKE '%@masked.invalid'"
    assert hooked.ground.exec("tables", *query, question).strip() == "0"


def test_programs_run_as_root_beside_their_service_and_without_a_network(hooked: Stage) -> None:
    root = hooked.rootfs("cache") / "root"
    assert (root / "links").read_text().split() == ["lo"]
    assert "unreachable" in (root / "route").read_text()
    assert (root / "unit").read_text() == "active\n"
    assert (root / "user").read_text() == "root\n"
    assert (root / "seeded").read_text() == "yes"


def test_no_hook_is_left_in_the_clone(hooked: Stage) -> None:
    for name in KEPT:
        assert not (hooked.rootfs(name) / "var/lib/stagegbo/hook").exists()


@pytest.mark.parametrize(("way", "done"), [("hot", "spare"), ("restore", "restore")])
def test_a_reset_goes_back_to_masked_rows(hooked: Stage, way: str, done: str) -> None:
    """The golden copy and the snapshot are both of the moment after the hooks."""
    hooked.sql("UPDATE users SET mail = 'of a test ' || id; CREATE TABLE of_a_test (id integer)")
    found = hooked.json("reset", "tables", env={"STAGEGBO_CONTAINERS__TABLES__RESET": way})
    assert found["methods"] == {"tables": {"method": done}}
    assert hooked.sql("SELECT to_regclass('of_a_test') IS NULL") == "t"
    question = "SELECT count(*), count(*) FILTER (WHERE mail LIKE '%@masked.invalid') FROM users"
    assert hooked.sql(question) == "500|500"


def test_they_run_once_until_they_change(hooked: Stage, folder: Folder) -> None:
    assert hooked.json("provision")["changed"] is False
    folder.write(mask=f"-- another\n{MASK}")
    steps = [step["key"] for step in hooked.json("provision", "--dry-run")["steps"] if step["changes"]]
    assert steps == ["remove:tables", "copy:tables", "prepare:tables", "hooks:tables", "start:tables"]
