"""Vault comes up sealed. Keys open it, and are nowhere to be seen."""

from __future__ import annotations

import base64
import json
import re
import secrets
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import SIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Ground, Stage

pytestmark = pytest.mark.lab

ONLY_VAULT = "[containers]\n" + "".join(f"{name} = false\n" for name in SIX if name != "vault")
NO_FILE = {"STAGEGBO_VAULT__UNSEAL_FILE": ""}


@pytest.fixture(scope="module")
def keys(ground: Ground) -> list[str]:
    """Three of five, as they are needed."""
    found: list[str] = json.loads(ground.lab.vault_init.read_text())["unseal_keys_b64"][:3]
    return found


@pytest.fixture(scope="module")
def vault(ground: Ground) -> Iterator[Stage]:
    stage = ground.stage("STAGE-VAULT", "stagevault0", 10, ONLY_VAULT)
    stage.run("provision")
    yield stage
    stage.destroy()


@pytest.fixture
def sealed(vault: Stage) -> Stage:
    """Its Vault was just restarted, and nobody has unsealed it."""
    vault.exec("vault", "systemctl", "restart", "vault.service")
    return vault


def without_lab(stage: Stage, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """As people run it on their own host, in the lab's network: --lab would give the lab's keys."""
    argv = stage.argv(*args)
    argv.remove("--lab")
    endpoint = ["--endpoint", str(stage.ground.lab.socket)]
    return subprocess.run(
        stage.ground.lab.exec_argv([*argv, *endpoint]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=stage.environment(env),
    )


def test_without_keys_the_stage_is_up_and_vault_is_sealed(sealed: Stage) -> None:
    done = without_lab(sealed, "provision", "--json")
    assert done.returncode == 7
    assert json.loads(done.stdout)["containers"]["vault"]["state"] == "sealed"
    assert sealed.clone("vault")["status"] == "Running"


def test_the_error_says_how_to_give_keys(sealed: Stage) -> None:
    said = without_lab(sealed, "provision").stderr
    for setting in ("unseal_file", "unseal_env", "unseal_command"):
        assert setting in said
    assert "Traceback" not in said


def test_status_and_doctor_say_sealed(sealed: Stage) -> None:
    done = without_lab(sealed, "status", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["containers"][0]["state"] == "sealed"
    findings = json.loads(without_lab(sealed, "doctor", "--json").stdout)["findings"]
    assert "warning" in {finding["state"] for finding in findings if finding["subject"] == "unseal keys"}


@pytest.mark.parametrize("way", ["file", "env", "command", "option"])
def test_keys_open_it(sealed: Stage, keys: list[str], way: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n".join(keys))
    file.chmod(0o600)
    settings: dict[str, dict[str, str]] = {
        "file": {"STAGEGBO_VAULT__UNSEAL_FILE": str(file)},
        "env": {"STAGEGBO_VAULT__UNSEAL_ENV": "MY_KEYS", "MY_KEYS": ",".join(keys)},
        "command": {"STAGEGBO_VAULT__UNSEAL_COMMAND": f"cat {file}"},
        "option": {},
    }
    options = ["--vault-keys", str(file)] if way == "option" else []
    done = without_lab(sealed, "provision", "--json", *options, env=settings[way])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["containers"]["vault"]["state"] == "ready"


def test_wrong_keys_leave_it_sealed_and_are_not_repeated(sealed: Stage, tmp_path: Path) -> None:
    wrong = [base64.b64encode(secrets.token_bytes(33)).decode() for _ in range(3)]
    file = tmp_path / "keys"
    file.write_text("\n".join(wrong))
    file.chmod(0o600)
    done = without_lab(sealed, "provision", "--vault-keys", str(file))
    assert done.returncode == 7
    assert "sealed" in done.stderr
    assert str(file) in done.stderr
    assert not [key for key in wrong if key in done.stdout + done.stderr]
    assert sealed.clone("vault")["status"] == "Running"


def test_a_file_that_is_not_there_is_an_error_before_anything_is_done(sealed: Stage) -> None:
    with sealed.ground.events() as events:
        done = without_lab(sealed, "provision", "--recreate", "--vault-keys", "/no/such/file")
    assert done.returncode == 2
    assert "/no/such/file" in done.stderr
    assert events == []


def test_no_key_is_in_an_output_a_command_line_or_a_log(sealed: Stage, keys: list[str], tmp_path: Path) -> None:
    """With --debug, which logs every request; command lines are looked at while it runs."""
    forms = {form for key in keys for form in (key, base64.b64decode(key).hex())}
    process = subprocess.Popen(
        sealed.argv("--debug", "provision", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env=sealed.environment(),
    )
    command_lines = set()
    with process:
        while process.poll() is None:
            command_lines.add(Path(f"/proc/{process.pid}/cmdline").read_text())
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 0
    assert "GET /1.0" in said
    assert any("provision" in line for line in command_lines)
    logs = [sealed.ground.lab.paths.daemon_log, sealed.ground.lab.paths.log]
    logs += (sealed.rootfs("vault") / "opt/gbo/logs").rglob("*.log")
    texts = [said, *command_lines, *(log.read_text(errors="replace") for log in logs)]
    assert not [form for form in forms for text in texts if form in text]
    assert not re.search(r"unseal_keys_b64\W+\w", said)
    assert tmp_path
