"""The services of a real production, asked in their own protocols."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, get_args

import pytest

from pytest_stagegbo.lab import Lab
from pytest_stagegbo.services import ask
from pytest_stagegbo.services.readiness import wait_ready
from pytest_stagegbo.services.unseal import read_keys, unseal
from pytest_stagegbo.settings.model import (
    ContainerSettings,
    ProbeSettings,
    Protocol,
    VaultSettings,
    default_containers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.services.answer import Answer

pytestmark = pytest.mark.lab

CONTAINERS = default_containers()
PROBES = [
    pytest.param(container, probe, id=f"{name} {probe.port}")
    for name, container in CONTAINERS.items()
    for probe in container.probes
]


@pytest.fixture(scope="module")
def inside() -> Iterator[ThreadPoolExecutor]:
    """A thread in the lab's network. Only a thread, so that the other tests stay where they are."""
    with ThreadPoolExecutor(1, initializer=Lab.find().join_network) as thread:
        yield thread


def address(container: ContainerSettings) -> str:
    assert container.production_address
    return str(container.production_address)


@pytest.mark.parametrize(("container", "probe"), PROBES)
def test_a_service_of_production_is_ready(
    inside: ThreadPoolExecutor, container: ContainerSettings, probe: ProbeSettings
) -> None:
    def still_alive() -> None: ...

    def wait() -> Answer:
        answers = wait_ready(
            container.name,
            address(container),
            [probe],
            timeout=30,
            still_alive=still_alive,
            diagnostics=str,
        )
        return answers[probe]

    assert inside.submit(wait).result(60).ready


@pytest.mark.parametrize(("container", "probe"), PROBES)
def test_no_other_protocol_takes_it_for_its_own(
    inside: ThreadPoolExecutor, container: ContainerSettings, probe: ProbeSettings
) -> None:
    """`tcp` does, which is why it is the weakest."""
    others = [protocol for protocol in get_args(Protocol) if protocol not in {probe.protocol, "tcp"}]
    for protocol in others:
        other = ProbeSettings(protocol, probe.port, "/health")
        answer = inside.submit(ask, other, address(container), 0.5).result(5)
        assert answer.state in {"wrong", "unreachable"}, f"{protocol}: {answer}"


def test_a_port_where_nothing_listens_is_refused(inside: ThreadPoolExecutor) -> None:
    answer = inside.submit(ask, ProbeSettings("tcp", 9), address(CONTAINERS["tables"]), 1).result(5)
    assert answer.state == "refused"


def test_an_address_that_nobody_has_takes_no_longer_than_it_is_given(inside: ThreadPoolExecutor) -> None:
    began = time.monotonic()
    answer = inside.submit(ask, ProbeSettings("postgresql", 5432), "10.0.2.99", 0.3).result(5)
    assert answer.state == "unreachable"
    assert time.monotonic() - began < 1


def test_a_vault_that_is_open_needs_no_key(inside: ThreadPoolExecutor) -> None:
    answer = inside.submit(unseal, address(CONTAINERS["vault"]), 8200, False, None, 10).result(20)
    assert answer.ready


def test_productions_own_init_file_holds_keys() -> None:
    keys = read_keys(VaultSettings(unseal_file=str(Lab.find().vault_init)))
    assert keys
    assert len(keys) == 5
