"""The user's own scripts and SQL, run in a clone before anything else sees it: to mask personal data, for example.

They run in the clone's first boot, which for a clone with hooks is one without a network device: its services are up,
and nothing but what runs inside can reach them, nor can anything inside reach out. Then the clone is shut down, gets
its network device back, and only now is it marked as safe to start. So whatever goes wrong, or is killed, on the way
leaves a clone that nobody starts and that the next run replaces.
"""

from __future__ import annotations

import contextlib
import posixpath
import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.apply.first_boot import make_safe
from pytest_stagegbo.apply.snapshots import take_snapshot
from pytest_stagegbo.desired import marks
from pytest_stagegbo.desired.allowlist import violations
from pytest_stagegbo.errors import CommandFailed, NotReady, StageGboError, StageMissing, UnsafeClone
from pytest_stagegbo.guest.keeping import keep_script
from pytest_stagegbo.guest.units import FOLDER
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_stagegbo.guest.hooks import Hook
    from pytest_stagegbo.incus import Instance, Reader, Writer
    from pytest_stagegbo.plan.steps import RunHooks
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["run_hooks"]

NO_DEVICE = {"type": "none"}
LINES = 20
"""Lines of a failed hook's output that are shown."""
SUPERUSER = "postgres"


def run_hooks(reader: Reader, writer: Writer, settings: Settings, step: RunHooks, *, snapshot: bool) -> None:
    """Boot the prepared clone without a network device, run its hooks one after the other, and mark it as prepared.

    Args:
        snapshot: Take one of what the hooks left.

    Raises:
        CommandFailed: a hook ended with another status than 0. The clone is stopped, and nobody starts it.
        NotReady: the clone, or PostgreSQL for SQL, did not come up in time.
    """
    name = step.subject
    devices = {key: dict(device) for key, device in _clone(reader, settings, name).devices.items()}
    writer.set_instance_devices(name, {"eth0": NO_DEVICE})
    if _clone(reader, settings, name).expanded_devices.get("eth0", NO_DEVICE).get("type") != "none":
        raise UnsafeClone(f"{name} keeps its network device, so its hooks are not run", remedy="please report it")
    try:
        make_safe(reader, writer, settings, step.container)
        writer.set_state(name, "start")
        _await_boot(writer, settings, name)
        for hook in step.hooks:
            _run(writer, settings, step.container, hook)
        _keep(writer, settings, step.container)
        writer.set_state(name, "stop", seconds=_seconds(settings))
    except BaseException:
        with contextlib.suppress(StageGboError):  # the first error is the one to tell
            writer.set_state(name, "stop", force=True)
        raise
    writer.set_instance_devices(name, {"eth0": devices["eth0"]})
    clone = _clone(reader, settings, name)
    problems = violations(clone, settings)
    if problems or clone.is_running:
        raise UnsafeClone(
            f"{name} in {settings.project} must not be started after its hooks",
            seen=", ".join(problems) or "it is running",
            remedy="something else is changing the stage: run `stagegbo provision` again",
        )
    if snapshot:
        take_snapshot(reader, writer, name)
    writer.set_instance_config(name, {marks.STATE: marks.PREPARED})


def _keep(writer: Writer, settings: Settings, container: ContainerSettings) -> None:
    """Keep the copy that resets of a database go back to: of a stopped server, and with what the hooks changed."""
    if container.data:
        script = f"systemctl stop {shlex.join(container.units)}\n{keep_script(container.data)}"
        writer.execute(container.name, ["sh", "-c", script], timeout=settings.timeouts.operation)


def _clone(reader: Reader, settings: Settings, name: str) -> Instance:
    clone = reader.instance(settings.project, name)
    if clone is None:
        raise StageMissing(f"{name} vanished from {settings.project}", remedy="run `stagegbo provision` again")
    return clone


def _seconds(settings: Settings) -> int:
    return max(1, int(settings.timeouts.ready))


def _await_boot(writer: Writer, settings: Settings, name: str) -> None:
    """Wait until systemd has started what the clone's target wants, whether all of it came up or not."""
    seconds = _seconds(settings)
    # `offline` until systemd's bus is there, right after the start.
    script = """while :; do
    state=$(systemctl is-system-running --wait 2>/dev/null) || true
    case $state in running | degraded) exit 0 ;; esac
    sleep 0.05
done"""
    result = writer.execute(name, ["timeout", str(seconds), "sh", "-c", script], timeout=seconds + 10)
    if result.status != 0:
        raise NotReady(
            f"{name} did not boot within {seconds} s to run its hooks",
            seen=mask((result.stderr or result.stdout).strip()[-1000:]) or f"status {result.status}",
            remedy="see timeouts.ready",
        )


def _run(writer: Writer, settings: Settings, container: ContainerSettings, hook: Hook) -> None:
    name, path = container.name, posixpath.join(FOLDER, "hook")
    if hook.is_sql:
        _await_postgresql(writer, settings, container)
    writer.put_file(name, path, hook.content, mode=0o700)
    try:
        command = _psql(container, "-f", "-") + f" <{path}" if hook.is_sql else path
        result = writer.execute(name, ["sh", "-c", f"cd /; {command}"], timeout=settings.timeouts.operation)
    finally:
        writer.delete_file(name, path)
    if result.status != 0:
        said = f"{result.stdout.rstrip()}\n{result.stderr.rstrip()}".strip().splitlines()
        raise CommandFailed(
            f"hook {hook.name} of {name} ended with status {result.status}, so the clone stays stopped",
            seen=mask("\n".join(said[-LINES:])) or "no output",
            remedy="correct the hook, then run `stagegbo provision`, which replaces the clone",
        )


def _psql(container: ContainerSettings, *options: str) -> str:
    """A command line for psql as the superuser, over PostgreSQL's Unix socket.

    Errors without their details, which may quote rows: personal data has no place in a log.
    """
    port = next((probe.port for probe in container.probes if probe.protocol == "postgresql"), 5432)
    words: Sequence[str] = (
        *("runuser", "-u", SUPERUSER, "--", "psql", "-Xq", "-p", str(port), "-d", container.database),
        *("-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=terse", *options),
    )
    return shlex.join(words)


def _await_postgresql(writer: Writer, settings: Settings, container: ContainerSettings) -> None:
    deadline = clocks.monotonic() + settings.timeouts.ready
    while True:
        result = writer.execute(container.name, ["sh", "-c", f"cd /; {_psql(container, '-c', 'SELECT 1')}"], timeout=30)
        if result.status == 0:
            return
        if clocks.monotonic() >= deadline:
            raise NotReady(
                f"PostgreSQL in {container.name} let nobody in within {settings.timeouts.ready:g} s to run its hooks",
                seen=mask(result.stderr.strip()[-500:]),
                remedy=f"see containers.{container.name}.database and .units, and timeouts.ready",
            )
        clocks.sleep(0.05)  # a poll with a deadline
