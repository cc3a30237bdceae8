"""Programs that use the stage by its environment: `env`."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.cli import env

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.conftest import Incus, StageGbo

    from pytest_stagegbo.lab import Lab

pytestmark = pytest.mark.lab

AWKWARD = ["plain", "two words", "it's", 'say "yes"', "$HOME `id`", "back\\slash \\n", "# none", ""]


@pytest.fixture(scope="module")
def there(stagegbo: StageGbo) -> subprocess.CompletedProcess[str]:
    return stagegbo("provision")


def test_a_file_leads_programs_to_the_stage(
    lab: Lab, stagegbo: StageGbo, there: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    """PostgreSQL's own client, in a shell that read the file."""
    assert there.returncode == 0
    file = tmp_path / "stage.env"
    stagegbo("env", "--secrets", "-o", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    script = f'set -a; . {file}; psql "$DATABASE_URL" -XqAt -c "SELECT host(inet_server_addr()), $((DB_PORT + 1))"'
    done = subprocess.run(lab.exec_argv(["sh", "-c", script]), capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("10.0.3.11|5433\n", 0), done.stderr


def test_without_being_asked_it_shows_no_secret(
    lab: Lab, stagegbo: StageGbo, there: subprocess.CompletedProcess[str]
) -> None:
    assert there.returncode == 0
    done = stagegbo("env", "--format", "json")
    made = lab.credentials()
    secrets = [made[name][key] for name in made for key in ("password", "secret_key") if key in made[name]]
    assert json.loads(done.stdout)["DB_HOST"] == "10.0.3.11"
    assert len(secrets) == 3
    assert not [secret for secret in secrets if secret in done.stdout + done.stderr]


def test_systemd_reads_what_is_quoted(there: subprocess.CompletedProcess[str], incus: Incus) -> None:
    """With a systemd of its own, in a clone, whose next reset ends what this test started."""
    assert there.returncode == 0
    lines = "".join(f"V{n}={env.FORMATS['systemd'](value)}\n" for n, value in enumerate(AWKWARD))
    script = r"""cd /run; printf %s "$1" >of-a-test.env
    systemd-run -q -p Type=oneshot -p EnvironmentFile=/run/of-a-test.env \
      -p StandardOutput=file:/run/of-a-test.out env -0
    tr '\0' '\n' <of-a-test.out; rm of-a-test.*"""
    done = incus("exec", "cache", "--", "bash", "-c", script, "sh", lines, project="STAGE-GBO")
    found = [line for line in done.stdout.splitlines() if line[:1] == "V"]
    assert found == [f"V{n}={value}" for n, value in enumerate(AWKWARD)]
