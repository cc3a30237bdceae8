"""What the staging guide keeps is kept, and what it wipes is gone before anything in a clone could read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.lab import unsafe_sources
from tests.lab.support import SIX, TRAPS, checksums, immutable, sql, tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.support import Ground, Stage

pytestmark = [pytest.mark.lab, pytest.mark.both_lts]

STAMP = "var/lib/stagegbo/prepared"
CACHE, LOGS = "opt/gbo/data/valkey", "opt/gbo/logs"


# -- logs


@pytest.mark.parametrize("name", SIX)
def test_no_line_of_production_s_logs_is_left(stage: Stage, name: str) -> None:
    assert (stage.ground.rootfs(name) / LOGS / "archive/last-year.log").exists()
    assert not (stage.rootfs(name) / LOGS / "archive/last-year.log").exists()
    assert f"cleared /{LOGS}" in (stage.rootfs(name) / STAMP).read_text().splitlines()


@pytest.mark.parametrize("name", SIX)
def test_folders_of_logs_stay_with_owners_and_modes(stage: Stage, name: str) -> None:
    folders = [
        {path: entry for path, entry in tree(rootfs / LOGS).items() if entry[0].startswith("d")}
        for rootfs in (stage.ground.rootfs(name), stage.rootfs(name))
    ]
    assert folders[0] == folders[1]
    assert len(folders[0]) >= 2


def test_files_of_every_kind_are_cleared_from_logs_and_folders_of_every_name_stay(trapped: Stage) -> None:
    source, clone = (tree(rootfs / LOGS) for rootfs in (source_of(trapped), trapped.rootfs("cache")))
    folders = {path: entry for path, entry in source.items() if entry[0].startswith("d")}
    written_since = {f"valkey/{name}" for name in ("valkey.log", "valkey-server.log")}
    assert {path: entry for path, entry in clone.items() if path not in written_since} == folders
    assert folders["owned by others"] == ("drwxr-s--x", 1234, 4321)
    assert len(folders) > len(unsafe_sources.ODD_NAMES)


def test_what_is_mounted_below_a_folder_to_clear_is_kept_and_said(trapped: Stage) -> None:
    """`find -xdev` would enter it: a bind mount has the file system of the folder around it."""
    assert trapped.exec("cache", "cat", "/opt/gbo/logs/mounted/kept") == "production's\n"
    assert (trapped.rootfs("cache") / unsafe_sources.MOUNTED / "kept").read_text() == "production's\n"
    assert "/opt/gbo/logs/mounted is a mount inside a folder" in trapped.config.with_suffix(".log").read_text()


def test_a_source_that_was_a_clone_itself_is_wiped(trapped: Stage) -> None:
    """Its stamp, its identity and its marks are in the copy, and prove nothing."""
    assert unsafe_sources.OLD_IDENTITY in (source_of(trapped) / STAMP).read_text()
    stamp = (trapped.rootfs("cache") / STAMP).read_text()
    assert "emptied /opt/gbo/data/valkey" in stamp
    assert unsafe_sources.OLD_IDENTITY not in stamp
    config = trapped.clone("cache")["config"]
    assert unsafe_sources.OLD_IDENTITY not in {
        value for key, value in config.items() if key.startswith("user.stagegbo.")
    }


@pytest.mark.parametrize("name", SIX)
def test_system_logs_of_production_are_empty_and_its_journals_gone(stage: Stage, name: str) -> None:
    machine = stage.ground.rootfs(name).joinpath("etc/machine-id").read_text().strip()
    left = stage.rootfs(name) / "var/log"
    assert [file for file in left.glob(f"journal/{machine}/*") if file.is_file()] == []
    assert [file for file in (left / "gbo-cron.log", left / "dpkg.log") if file.exists() and file.stat().st_size] == []


def test_a_system_log_keeps_its_owner_and_mode(trapped: Stage) -> None:
    assert (source_of(trapped) / "var/log/mail.log").read_text() == "production's\n"
    assert (trapped.rootfs("cache") / "var/log/mail.log").read_text() == ""


# -- data to wipe


def test_every_kind_of_file_is_wiped_and_valkey_begins_empty(trapped: Stage) -> None:
    """Names with spaces, newlines and dashes; hidden and deep ones; links, pipes, and ten thousand in one folder."""
    assert len(list((source_of(trapped) / CACHE / "many").iterdir())) == unsafe_sources.MANY
    left = set(tree(trapped.rootfs("cache") / CACHE))
    recreated = {path for path in left if path.startswith("appendonlydir")} | {"dump.rdb"}
    assert left <= recreated


def test_links_that_lead_out_of_a_wiped_folder_delete_nothing_there(trapped: Stage) -> None:
    outside = trapped.rootfs("cache") / unsafe_sources.OUTSIDE / "kept"
    assert outside.read_text() == "production's\n"
    assert outside.stat().st_nlink == 1, "the second name was in the wiped folder"


@pytest.mark.parametrize(
    ("name", "folder"), [("cache", CACHE), ("drive", "opt/gbo/data/minio"), ("system", "opt/gbo/work")]
)
def test_a_wiped_folder_keeps_its_own_owner_and_mode(stage: Stage, name: str, folder: str) -> None:
    of = [(status.st_mode, status.st_uid) for status in ((root / folder).stat() for root in roots(stage, name))]
    assert of[0] == of[1]


def test_valkey_has_no_key_of_production_even_after_a_restart(trapped: Stage) -> None:
    """The source had an RDB file, an append-only folder and a flat append-only file."""
    assert (source_of(trapped) / CACHE / "appendonlydir").is_dir()
    assert (source_of(trapped) / CACHE / "appendonly.aof").exists()
    assert trapped.valkey_keys() == []
    trapped.exec("cache", "systemctl", "restart", "valkey.service")
    assert trapped.valkey_keys() == []


def test_only_the_stage_s_own_keys_are_in_its_cache(stage: Stage) -> None:
    assert len(keys_of_production(stage.ground)) > 250
    assert [key for key in stage.valkey_keys() if not key.startswith("botserver:")] == []


def test_buckets_are_gone_and_so_is_what_minio_hides(stage: Stage) -> None:
    before = tree(stage.ground.rootfs("drive") / "opt/gbo/data/minio")
    assert {"default.gbai", ".minio.sys/format.json"} <= set(before)
    assert tree(stage.rootfs("drive") / "opt/gbo/data/minio") == {}


def test_data_behind_a_link_are_wiped(trapped: Stage) -> None:
    assert (trapped.ground.rootfs("devices", TRAPS) / "srv/minio/default.gbai").is_dir()
    assert (trapped.rootfs("drive") / "opt/gbo/data/minio").is_symlink()
    assert tree(trapped.rootfs("drive") / "srv/minio") == {}


def test_compiled_scripts_are_gone_and_none_is_made_from_production_s_buckets(stage: Stage) -> None:
    before = tree(stage.ground.rootfs("system") / "opt/gbo/work")
    assert "retired.gbai/retired.gbdialog/start.ast" in before
    assert any(path.startswith("default.gbai/") for path in before)
    assert tree(stage.rootfs("system") / "opt/gbo/work") == {}


# -- data to keep


TABLES = ("bots", "users", "message_history", "bot_configuration")


@pytest.mark.parametrize("table", TABLES)
def test_the_database_is_intact(stage: Stage, table: str) -> None:
    query = f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t"
    rows = stage.sql(query)
    assert rows == sql(stage.ground, query)
    assert not rows.startswith("0|")


def test_the_schema_is_intact(stage: Stage) -> None:
    query = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
    query += " ORDER BY 1, 2"
    assert stage.sql(query) == sql(stage.ground, query)


def test_production_s_rows_of_before_the_copy_are_in_the_stage(stage: Stage) -> None:
    newest = int(stage.sql("SELECT max(id) FROM heartbeat WHERE address = '10.0.2.11' AND client <> '10.0.2.10'") or 0)
    query = f"SELECT count(*) FROM heartbeat WHERE id <= {newest}"
    assert stage.sql("SELECT count(*) > 0 FROM heartbeat") == "t"
    assert stage.sql(query) == sql(stage.ground, query)


@pytest.mark.parametrize("secret", ["tables", "cache", "drive", "llm"])
def test_vault_s_secrets_are_intact(stage: Stage, secret: str) -> None:
    """Asked with the token that BotServer has in its own environment file."""
    environment = (stage.rootfs("system") / "opt/gbo/bin/.env").read_text()
    token = next(line.partition("=")[2] for line in environment.splitlines() if line.startswith("VAULT_TOKEN="))
    script = (
        "import json, sys, urllib.request as u\n"
        f"r = u.Request('http://127.0.0.1:8200/v1/secret/data/gbo/{secret}')\n"
        "r.add_header('X-Vault-Token', sys.argv[1])\n"
        "print(json.dumps(json.load(u.urlopen(r, timeout=5))['data']['data'], sort_keys=True))\n"
    )
    answer = json.loads(stage.exec("vault", "python3", "-c", script, token))
    assert answer == stage.ground.lab.credentials()[secret]


def test_models_are_intact(stage: Stage) -> None:
    sums = [checksums(rootfs, ["opt/gbo/models"], large=1 << 40) for rootfs in roots(stage, "llm")]
    assert sums[0] == sums[1]
    assert len(sums[0]) == 1


@pytest.mark.parametrize("name", SIX)
def test_configuration_and_programs_are_intact(stage: Stage, name: str) -> None:
    folders = ["opt/gbo/conf", "opt/gbo/bin"]
    sums = [checksums(rootfs, folders) for rootfs in roots(stage, name)]
    assert sums[0] == sums[1]
    assert sums[0]


# -- a wipe that fails


@pytest.fixture(scope="module")
def stuck(ground: Ground, trapped: Stage) -> Iterator[Stage]:
    """A stage with one container, whose source has a file that nobody can delete."""
    assert trapped.project
    settings = unsafe_sources.one_container("cache", "stuck")
    stage = ground.stage("STAGE-STUCK", "stagestuck0", 57, settings)
    yield stage
    stage.destroy()


@pytest.fixture(scope="module")
def failure(stuck: Stage) -> tuple[int, str]:
    done = stuck.run("provision", check=False)
    return done.returncode, done.stderr


def test_a_wipe_that_fails_stops_the_boot_and_is_named(stuck: Stage, failure: tuple[int, str]) -> None:
    status, said = failure
    assert status == 6
    assert "cache" in said
    assert "the container is stopped" in said
    assert f"/{CACHE}/immutable" in said, "the line of the log of the first boot"
    assert stuck.clone("cache")["status"] == "Stopped"
    assert "Traceback" not in said


def test_nothing_was_started_in_a_clone_that_could_not_be_wiped(stuck: Stage, failure: tuple[int, str]) -> None:
    assert failure[0] == 6
    assert not (stuck.rootfs("cache") / STAMP).exists()
    source = stuck.ground.rootfs("stuck", TRAPS)
    logs = [rootfs / LOGS / "valkey/valkey-server.log" for rootfs in (source, stuck.rootfs("cache"))]
    assert logs[0].read_text() == logs[1].read_text(), "Valkey writes to it as soon as it is started"


def test_the_next_run_wipes_again_and_comes_up_clean(stuck: Stage, failure: tuple[int, str]) -> None:
    assert failure[0] == 6
    immutable(stuck.rootfs("cache") / CACHE / "immutable", False)
    stuck.run("provision")
    assert stuck.valkey_keys() == []
    assert not (stuck.rootfs("cache") / CACHE / "immutable").exists()
    assert (stuck.rootfs("cache") / STAMP).exists()


def roots(stage: Stage, name: str) -> tuple[Path, Path]:
    """Files of the source and of the clone."""
    return stage.ground.rootfs(name), stage.rootfs(name)


def source_of(trapped: Stage) -> Path:
    return trapped.ground.rootfs("files", TRAPS)


def keys_of_production(ground: Ground) -> list[str]:
    password = ground.lab.credentials()["cache"]["password"]
    return ground.exec("cache", "env", f"REDISCLI_AUTH={password}", "valkey-cli", "--raw", "KEYS", "*").split()
