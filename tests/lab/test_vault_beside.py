"""A container with a name of its own in which Vault is the second service, and the first one needs what Vault holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.lab.support import SIX, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.lab.support import Ground, Stage

pytestmark = [pytest.mark.lab, pytest.mark.both_lts]

SETTINGS = (
    'vault = { token_env = "STAGE_TOKEN" }\n[containers]\n'
    + "".join(f"{name} = false\n" for name in SIX if name != "cache")
    + """
[containers.cache]
needs = ["safe"]
[containers.safe]
source = "vault"
address = "10.0.33.12"
production_address = "10.0.2.12"
units = ["vault.service"]
reset = "restore"
probes = [{ protocol = "http", port = 8200, path = "/v1/sys/health" }, { protocol = "vault", port = 8200 }]
[secrets."secret/gbo/drive"]
secret_key_env = "STAGE_SECRET"
"""
)
"""Vault's own health over HTTP is 503 while it is sealed, as that of a service that reads Vault when it starts."""


@pytest.fixture(scope="module")
def environ(ground: Ground) -> Mapping[str, str]:
    token = json.loads(ground.lab.vault_init.read_text())["root_token"]
    return {"STAGE_TOKEN": token, "STAGE_SECRET": "a-value-of-the-stage"}


@pytest.fixture(scope="module")
def stage(ground: Ground) -> Iterator[Stage]:
    found = ground.stage("STAGE-SAFE", "stagesafe0", 33, SETTINGS)
    yield found
    found.destroy()


def test_without_keys_the_error_says_that_vault_is_sealed_and_how_to_give_them(
    stage: Stage, environ: Mapping[str, str]
) -> None:
    """It spoke of a ready time-out to raise."""
    argv = stage.argv("provision", "--endpoint", str(stage.ground.lab.socket))
    argv.remove("--lab")
    done = run(
        stage.ground.lab.exec_argv(argv),
        env=stage.environment({**environ, "STAGEGBO_TIMEOUTS__READY": "12"}),
        check=False,
    )
    assert done.returncode == 6, done.stderr
    assert "Vault in safe is sealed" in done.stderr
    assert "unseal_file" in done.stderr


def test_it_is_opened_its_secrets_are_replaced_and_what_reads_it_finds_them(
    stage: Stage, environ: Mapping[str, str]
) -> None:
    found = stage.json("provision", env=environ)
    assert {name: each["state"] for name, each in found["containers"].items()} == {"safe": "ready", "cache": "ready"}
    assert stage.json("provision", env=environ)["changed"] is False
    # The password of the cache comes from that Vault: without it the reset is a restart.
    stage.run("reset", "cache", env=environ)
    found = stage.json("reset", "cache", env=environ)["methods"]["cache"]
    assert found["method"] == "hot", found


def test_it_goes_back_to_its_snapshot_and_is_opened_again(stage: Stage, environ: Mapping[str, str]) -> None:
    stage.run("reset", "safe", env=environ)
    status = json.loads(stage.run("status", "--json", env=environ).stdout)
    assert {each["state"] for each in status["containers"]} == {"ready"}
    said = stage.run("verify", "--check", "reach.stage", "--check", "locked.boot", env=environ)
    assert said.returncode == 0
