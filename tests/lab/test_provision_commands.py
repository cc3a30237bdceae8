"""The commands, as a person or a script uses them."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import SIX, client_settings, run, until

from pytest_stagegbo.facts.usage import volume_name
from pytest_stagegbo.incus import Reader

if TYPE_CHECKING:
    from tests.lab.support import Ground, Stage

    from pytest_stagegbo.incus import Instance, Pool

pytestmark = pytest.mark.lab


# -- provision


def test_a_dry_run_changes_nothing_and_says_all(ground: Ground) -> None:
    stage = ground.stage("STAGE-DRY", "stagedry0", 15)
    with ground.events() as events:
        said = stage.run("provision", "--dry-run").stdout
        plan = stage.json("provision", "--dry-run")
    assert events == []
    assert "STAGE-DRY" not in ground.names("projects")
    keys = [step["key"] for step in plan["steps"]]
    assert {f"{verb}:{name}" for verb in ("copy", "prepare", "start", "await") for name in SIX} <= set(keys)
    assert len(keys) == len(set(keys))
    for step in plan["steps"]:
        assert set(step) == {"key", "text", "changes", "after"}
        if step["changes"]:
            assert step["text"] in said


def test_a_dry_run_of_a_finished_stage_has_nothing_to_do(stage: Stage) -> None:
    assert "nothing to change" in stage.run("provision", "--dry-run").stdout


def test_recreate_is_planned_as_removing_and_copying(stage: Stage) -> None:
    keys = [step["key"] for step in stage.json("provision", "--recreate", "--dry-run")["steps"]]
    assert {f"{verb}:{name}" for verb in ("remove", "copy") for name in SIX} <= set(keys)


def test_provision_prints_one_json_object(stage: Stage) -> None:
    result = stage.json("provision")
    parts = {"changed", "steps", "notes", "containers", "timings", "seconds", "requests", "start_up"}
    assert set(result) == {"schema", *parts}
    assert set(result["containers"]) == set(SIX)
    assert set(result["containers"]["system"]["answers"]) == {"5858", "5859"}


# -- status, endpoints


def test_status_tells_of_each_clone(stage: Stage) -> None:
    status = stage.json("status")
    assert status["ready"] is True
    assert status["project"] == "STAGE-GBO"
    found = {each["name"]: each for each in status["containers"]}
    assert {name: each["state"] for name, each in found.items()} == dict.fromkeys(SIX, "ready")
    assert found["cache"]["address"] == "10.0.3.13"
    assert found["cache"]["source"] == "default/cache"
    assert 0 < found["cache"]["disk_used"] < 1 << 30


@pytest.mark.both_lts
def test_the_kernel_says_of_disk_use_what_the_daemon_says(stage: Stage) -> None:
    reader = Reader(stage.ground.connection)
    host = reader.host()
    for clone in reader.instances("STAGE-GBO").values():
        pool = reader.pool(clone.pool)

        def agree(clone: Instance = clone, pool: Pool = pool) -> bool:  # its services write in between
            seen = host.exclusive_bytes(pool, volume_name(clone))
            return seen is not None and seen == reader.volume_usage(pool.name, clone.project, clone.name)

        until(agree, f"the kernel and the daemon count {clone.name} alike")


def test_status_is_one_line_a_container(stage: Stage) -> None:
    head, *lines = stage.run("status").stdout.splitlines()
    assert head.split("\t") == ["container", "state", "address", "port", "age"]
    rows = {name: rest for name, *rest in (line.split("\t") for line in lines[: len(SIX)])}
    assert set(rows) == set(SIX)
    assert rows["cache"][:3] == ["ready", "10.0.3.13", "6379"]
    assert "10GB" in stage.run("status", "--wide").stdout


def test_status_of_no_stage_ends_with_1(ground: Ground) -> None:
    stage = ground.stage("STAGE-NONE", "stagenone0", 16)
    done = stage.run("status", "--json", check=False)
    assert done.returncode == 1
    assert {each["state"] for each in json.loads(done.stdout)["containers"]} == {"missing"}


def test_endpoints_answer_where_they_say(stage: Stage) -> None:
    script = "import socket, sys\nsocket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()"
    found = stage.json("endpoints")["endpoints"]
    assert {each["container"] for each in found} == set(SIX)
    for each in found:
        stage.ground.inside("python3", "-c", script, each["host"], str(each["port"]))


def test_endpoints_are_lines_that_a_shell_evaluates(stage: Stage) -> None:
    lines = stage.run("endpoints", "--env").stdout
    script = (
        lines + 'echo "$STAGEGBO_ENDPOINT_TABLES_URL $STAGEGBO_ENDPOINT_SYSTEM_2_PORT $STAGEGBO_ENDPOINT_CACHE_HOST"'
    )
    done = subprocess.run(["sh", "-eu"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["postgresql://10.0.3.11:5432", "5859", "10.0.3.13"]


def test_endpoints_carry_no_credentials(stage: Stage) -> None:
    said = stage.run("endpoints", "--json").stdout + stage.run("endpoints", "--env").stdout
    secrets = stage.ground.lab.credentials()
    hidden = [secrets["tables"]["password"], secrets["cache"]["password"], secrets["drive"]["secret_key"]]
    assert not [secret for secret in hidden if secret in said]


# -- exec, logs


def test_exec_passes_output_and_status_on(stage: Stage) -> None:
    done = stage.run("exec", "tables", "--", "sh", "-c", "cat /etc/hostname >&2; exit 5", check=False)
    assert done.returncode == 5
    assert "tables" in done.stderr


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        pytest.param(["exec", "web", "--", "true"], 2, "web", id="unknown"),
        pytest.param(["exec", "tables"], 2, "no command to run", id="no command"),
        pytest.param(["exec", "tables", "--", "/no/such/command"], 127, "", id="no such command"),
        pytest.param(["logs", "web"], 2, "web", id="logs of an unknown"),
    ],
)
def test_what_can_t_be_executed_is_an_error(stage: Stage, argv: list[str], status: int, said: str) -> None:
    done = stage.run(*argv, check=False)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_logs_write_no_controls_to_a_terminal(stage: Stage) -> None:
    stage.exec("system", "sh", "-c", "printf 'a\\033[31mred\\n' >>/opt/gbo/logs/escapes.log")
    try:
        said = stage.run("logs", "system").stdout
        assert "a\\x1b[31mred" in said
        assert "\x1b" not in said
    finally:
        stage.exec("system", "rm", "/opt/gbo/logs/escapes.log")


def test_logs_show_unit_journal_and_files(stage: Stage) -> None:
    said = stage.run("logs", "system").stdout
    assert "unit botserver.service:" in said
    assert "BotServer listens on port 5858" in said
    assert "production's past" not in said


def test_commands_in_a_stage_that_is_not_there_are_errors(ground: Ground) -> None:
    stage = ground.stage("STAGE-NONE", "stagenone0", 16)
    for argv in ["exec", "tables", "--", "true"], ["logs", "tables"], ["reset", "cache"]:
        done = stage.run(*argv, check=False)
        assert done.returncode == 1, done.stderr
        assert "provision" in done.stderr, "what to do"
        assert "Traceback" not in done.stderr


# -- reset


def test_reset_of_the_cache_clears_its_keys(stage: Stage) -> None:
    stage.exec("cache", "env", f"REDISCLI_AUTH={stage.password}", "valkey-cli", "SET", "mine", "1")
    assert stage.json("reset", "cache")["reset"] == ["cache"]
    assert "mine" not in stage.valkey_keys()


def test_reset_of_drive_clears_buckets_and_what_is_hidden(stage: Stage) -> None:
    data = stage.rootfs("drive") / "opt/gbo/data/minio"
    stage.exec("drive", "mkdir", "-p", "/opt/gbo/data/minio/mine.gbai/-x/with space", "/opt/gbo/data/minio/.minio.sys")
    before = data.stat()
    stage.run("reset", "drive")
    assert list(data.iterdir()) == []
    assert (data.stat().st_mode, data.stat().st_uid) == (before.st_mode, before.st_uid)


def test_reset_of_system_clears_its_work(stage: Stage) -> None:
    stage.exec("system", "sh", "-c", "mkdir -p /opt/gbo/work/mine.gbai && echo {} >/opt/gbo/work/mine.gbai/start.ast")
    stage.run("reset", "system")
    assert not (stage.rootfs("system") / "opt/gbo/work/mine.gbai").exists()
    assert stage.run("status").returncode == 0


def test_reset_all_means_those_whose_data_is_wiped(stage: Stage) -> None:
    rows = stage.sql("SELECT count(*) FROM message_history")
    assert set(stage.json("reset", "all")["reset"]) == {"system", "cache", "drive"}
    assert stage.sql("SELECT count(*) FROM message_history") == rows
    assert stage.json("provision")["changed"] is False


def test_reset_of_a_container_that_keeps_its_data_brings_it_back_as_it_was_cloned(stage: Stage) -> None:
    stage.exec("llm", "sh", "-c", "echo x >/opt/gbo/models/left")
    assert set(stage.json("reset", "llm", "tables")["reset"]) == {"llm", "tables"}
    assert not (stage.rootfs("llm") / "opt/gbo/models/left").exists()
    assert stage.json("provision")["changed"] is False


def test_reset_of_an_unknown_container_names_those_there_are(stage: Stage) -> None:
    done = stage.run("reset", "cache", "web", check=False)
    assert done.returncode == 2
    assert "web" in done.stderr
    assert "drive" in done.stderr


# -- doctor, errors


def test_doctor_finds_nothing_wrong_with_a_finished_stage(stage: Stage) -> None:
    findings = stage.json("doctor")["findings"]
    assert {finding["state"] for finding in findings} == {"ok"}, findings
    subjects = " ".join(finding["subject"] for finding in findings)
    for part in ("daemon", "source default/tables", "pool pool", "clone vault", "unseal keys"):
        assert part in subjects


def test_doctor_names_a_missing_source_with_a_remedy(stage: Stage) -> None:
    done = stage.run("doctor", "--json", check=False, env={"STAGEGBO_CONTAINERS__LLM__SOURCE": "ollama"})
    assert done.returncode == 1
    failed = [finding for finding in json.loads(done.stdout)["findings"] if finding["state"] == "failed"]
    assert any("ollama" in finding["subject"] + finding["seen"] and finding["remedy"] for finding in failed)


def test_a_traceback_is_shown_with_debug_alone(stage: Stage) -> None:
    argv = ["--source-project", "PROD-NONE", "provision"]
    plain, debugged = (stage.run(*options, *argv, check=False) for options in ([], ["--debug"]))
    assert plain.returncode == 1
    assert "Traceback" not in plain.stderr
    assert "what to do:" in plain.stderr
    assert "Traceback" in debugged.stderr


def test_a_daemon_that_is_not_there_ends_with_3(stage: Stage) -> None:
    done = stage.run("--endpoint", "/no/such/socket", "status", check=False)
    assert done.returncode == 3
    assert "/no/such/socket" in done.stderr


def test_no_command_changes_what_the_incus_client_has_set(stage: Stage) -> None:
    before = client_settings(stage.ground)
    stage.run("exec", "tables", "--", "true")
    stage.run("status")
    stage.run("provision")
    assert client_settings(stage.ground) == before


def test_a_program_that_reads_no_further_is_no_error(stage: Stage) -> None:
    argv = " ".join(stage.argv("endpoints"))
    done = run(["sh", "-c", f"{argv} | head -n 1"], env=stage.environment())
    assert "Traceback" not in done.stderr
