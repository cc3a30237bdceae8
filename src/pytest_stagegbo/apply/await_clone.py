"""Waiting until a clone's services answer, with evidence when they don't, and the proof that it was wiped."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_stagegbo import clocks
from pytest_stagegbo.apply.first_boot import own_stamp
from pytest_stagegbo.errors import NotReady
from pytest_stagegbo.guest import STAMP, SYSTEM_LOGS
from pytest_stagegbo.services.readiness import wait_ready

if TYPE_CHECKING:
    from pytest_stagegbo.apply.outlook import Outlook
    from pytest_stagegbo.incus import Instance, Reader, Writer
    from pytest_stagegbo.services import Answer
    from pytest_stagegbo.services.unseal import UnsealKeys
    from pytest_stagegbo.settings import ContainerSettings, ProbeSettings, Settings

__all__ = ["Readiness", "await_clone"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a container answered last."""

    state: str
    """`ready` or `sealed`."""
    answers: tuple[tuple[int, Answer], ...]
    """Port and answer, probe by probe."""
    warnings: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)


def await_clone(
    reader: Reader,
    writer: Writer,
    settings: Settings,
    container: ContainerSettings,
    keys: UnsealKeys | None,
    *,
    first_boot: bool,
    running: bool = False,
    booted: Instance | None = None,
    crashes: int | None = None,
) -> Readiness:
    """Wait until every probe of `container` is answered; unseal Vault if keys are given.

    Args:
        first_boot: Also prove, from the stamp of the first boot, that everything to wipe was wiped.
        running: The clone ran already: a service of it that is down was stopped by somebody, or failed.
        booted: The clone as it was just before it was started, if it was.
        crashes: See `UnitWatch`.

    Raises:
        NotReady: time is up, the container stopped, a service can't come up, or the stamp does not say what it must.
        VaultSealed: the keys given do not open Vault.
    """
    began = clocks.monotonic()

    @cache
    def outlook() -> Outlook:
        from pytest_stagegbo.apply.outlook import Outlook  # a clone that runs answers at once

        return Outlook(reader, writer, settings, container, running=running, crashes=crashes)

    def opened(probe: ProbeSettings, answer: Answer) -> Answer:
        return answer if keys is None else _open(settings, container, probe, keys)

    try:
        answers = dict(
            wait_ready(
                container.name,
                str(container.address),
                container.probes,
                timeout=settings.timeouts.ready,
                opened=opened,
                still_alive=lambda: outlook().look(),
                diagnostics=lambda: outlook().evidence(),
            )
        )
    except NotReady as error:
        remedy = outlook().remedy
        if not remedy:
            raise
        raise NotReady(error.message, seen=error.seen, remedy=remedy) from None
    state = "sealed" if any(answer.state == "sealed" for answer in answers.values()) else "ready"
    warnings = _prove_wiped(reader, settings, container, booted) if first_boot else ()
    numbered = tuple((probe.port, answer) for probe, answer in answers.items())
    return Readiness(state, numbered, warnings, clocks.monotonic() - began)


def _open(settings: Settings, container: ContainerSettings, probe: ProbeSettings, keys: UnsealKeys) -> Answer:
    from pytest_stagegbo.services.unseal import unseal

    return unseal(
        str(container.address), probe.port, probe.tls, keys, settings.timeouts.ready, container=container.name
    )


def _prove_wiped(
    reader: Reader, settings: Settings, container: ContainerSettings, booted: Instance | None
) -> tuple[str, ...]:
    """Check the stamp of the first boot against the settings; warnings for folders that did not exist."""
    content = _stamp(reader, settings, container, booted)
    if not content:
        raise NotReady(
            f"{container.name}: its first boot left no stamp of its own",
            seen=f"{STAMP} is missing, or came with the container that this one was copied from",
            remedy="run `stagegbo provision --recreate`; if it happens again, please report it",
        )
    said = set(content.splitlines())
    warnings = []
    mounted = "not entered, since it is a mount: "
    for line in sorted(said):
        if line.startswith(mounted):
            path = line.removeprefix(mounted)
            warnings.append(
                f"{container.name}: {path} is a mount inside a folder to empty, so what is in it was kept; name it "
                f"in containers.{container.name}.wipe if it has to go"
            )
    truncated = SYSTEM_LOGS if container.system_logs else ()
    for verb, paths in (("emptied", container.wipe), ("cleared", container.logs), ("truncated", truncated)):
        for path in paths:
            if f"absent {path}" in said:
                if verb == "emptied":
                    warnings.append(
                        f"{container.name}: {path} does not exist in the clone, so nothing was wiped there; "
                        f"set containers.{container.name}.wipe if its data is elsewhere"
                    )
            elif f"{verb} {path}" not in said:
                raise NotReady(
                    f"{container.name}: its first boot did not report {path} as {verb}",
                    seen=content,
                    remedy="run `stagegbo provision --recreate`; if it happens again, please report it",
                )
    return tuple(warnings)


def _stamp(reader: Reader, settings: Settings, container: ContainerSettings, booted: Instance | None) -> str:
    """The stamp's content; waited for where a container has no probe that would have waited."""
    if booted is not None and container.probes:  # which were answered, so it runs
        text = own_stamp(reader, replace(booted, status="Running"))
        if text:
            return text
    deadline = clocks.monotonic() + (0 if container.probes else settings.timeouts.ready)
    while True:
        clone = reader.instance(settings.project, container.name)
        text = own_stamp(reader, clone) if clone is not None else ""
        if text or clocks.monotonic() >= deadline:
            return text
        clocks.sleep(0.05)  # a poll with a deadline: Incus has no event for a file
