"""Ready means that a service answered in its own protocol; a wait that fails says why."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from tests.lab import unsafe_sources
from tests.lab.support import until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.lab.support import Ground, Stage

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def broken(ground: Ground, trapped: Stage) -> Iterator[subprocess.CompletedProcess[str]]:
    """A service that ends as soon as it begins, waited for three seconds."""
    assert trapped.project
    stage = ground.stage(
        "STAGE-BROKEN", "stagebroken0", 11, "timeouts.ready = 3\n" + unsafe_sources.one_container("llm", "broken")
    )
    yield stage.run("provision", check=False)
    stage.destroy()


def test_a_service_that_does_not_come_up_is_an_error_of_its_own(broken: subprocess.CompletedProcess[str]) -> None:
    assert broken.returncode == 6
    assert "SG300" in broken.stderr
    assert "Traceback" not in broken.stderr


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(r"llm: http at 10\.0\.11\.15:8081/health was not ready after", id="container and endpoint"),
        pytest.param("http 8081: refused", id="last answer"),
        pytest.param(r"unit llm\.service: .*(\b(failed|activating)\b|restarts: [1-9])", id="unit"),
        pytest.param("status=3", id="journal"),
        pytest.param("no such model: smollm2", id="the service's own log"),
        pytest.param("what to do:", id="next step"),
    ],
)
def test_the_error_tells(broken: subprocess.CompletedProcess[str], part: str) -> None:
    assert re.search(part, broken.stderr), broken.stderr


def test_a_container_that_stops_ends_the_wait_at_once(ground: Ground, trapped: Stage) -> None:
    """The time-out is ten minutes, and the run is given two."""
    assert trapped.project
    settings = "timeouts.ready = 600\n" + unsafe_sources.one_container("llm", "halting")
    stage = ground.stage("STAGE-HALT", "stagehalt0", 12, settings)
    try:
        done = stage.run("provision", check=False, timeout=120)
        assert done.returncode == 6
        assert "the container is stopped" in done.stderr
        assert "llm" in done.stderr
    finally:
        stage.destroy()


def test_a_port_that_is_open_is_not_enough(stage: Stage) -> None:
    """PostgreSQL's processes are held: the kernel still takes connections, and nobody answers."""
    stage.exec("tables", "systemctl", "kill", "--signal=STOP", "postgresql.service")
    try:
        done = stage.run("provision", check=False, env={"STAGEGBO_TIMEOUTS__READY": "2"})
        assert done.returncode == 6
        assert "tables: postgresql at 10.0.3.11:5432" in done.stderr
    finally:
        stage.exec("tables", "systemctl", "kill", "--signal=CONT", "postgresql.service")
    until(lambda: stage.run("status", check=False).returncode == 0, "the stage answers again")


def test_a_stopped_service_is_started(stage: Stage) -> None:
    """The time-out is ten minutes, and the run is given one."""
    stage.exec("cache", "systemctl", "stop", "valkey")
    stage.run("provision", env={"STAGEGBO_TIMEOUTS__READY": "600"}, timeout=60)
    assert stage.exec("cache", "systemctl", "is-active", "valkey").strip() == "active"


FAILING = """set -e
folder=/etc/systemd/system
! systemctl show -p UnitPath | grep -qw /run/systemd/system || folder=/run/systemd/system
mkdir -p $folder/valkey.service.d
printf '[Service]\\nRestart=no\\nExecStartPre=false\\n' >$folder/valkey.service.d/failing.conf
systemctl daemon-reload
systemctl restart valkey || true"""
MEND = """rm -r /run/systemd/system/valkey.service.d /etc/systemd/system/valkey.service.d 2>/dev/null
systemctl daemon-reload
systemctl reset-failed
systemctl restart valkey"""


def test_a_service_that_fails_ends_the_wait(stage: Stage) -> None:
    """Also when it is given another start; and what else is wrong with the clone is named."""
    stage.exec("cache", "sh", "-c", FAILING)
    stage.exec("cache", "sh", "-c", "systemd-run -q --unit=slow -p Type=oneshot --no-block sleep 1000")
    try:
        done = stage.run("provision", check=False, env={"STAGEGBO_TIMEOUTS__READY": "600"}, timeout=60)
        assert done.returncode == 6
        assert "valkey.service failed (exit-code)" in done.stderr
        assert "failed unit: valkey.service" in done.stderr
        assert "running job: start slow.service" in done.stderr
    finally:
        stage.exec("cache", "sh", "-c", f"systemctl stop slow; {MEND}")


def test_a_stopped_clone_is_started_again_with_its_data(stage: Stage) -> None:
    stage.exec("drive", "touch", "/opt/gbo/data/minio/of-the-stage")
    stage.ground.incus("stop", "--force", "drive", project=stage.project)
    result = stage.json("provision")
    assert result["steps"] == ["start:drive"]
    assert (stage.rootfs("drive") / "opt/gbo/data/minio/of-the-stage").exists(), "only the first boot wipes"
    stage.exec("drive", "rm", "/opt/gbo/data/minio/of-the-stage")


@pytest.mark.both_lts
def test_a_clone_that_cannot_start_is_named_with_its_log(stage: Stage) -> None:
    stage.ground.incus("stop", "--force", "llm", project=stage.project)
    init, away = stage.rootfs("llm") / "usr/sbin/init", stage.rootfs("llm") / "usr/sbin/init.away"
    init.rename(away)
    try:
        done = stage.run("provision", check=False)
    finally:
        away.rename(init)
    assert done.returncode == 1
    assert f"container llm of {stage.project} could not be started" in done.stderr
    assert "lxc.log: " in done.stderr
    assert "No such file or directory" in done.stderr
    assert "incus info --show-log llm" in done.stderr
    stage.run("provision")
