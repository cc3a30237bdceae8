"""Secrets of the stage's Vault are replaced before what reads them is started, or that is not started."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.support import SIX, run

from pytest_stagegbo.credentials.kv import KeyValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.lab.support import Ground, Stage

pytestmark = pytest.mark.lab

KEPT = ("vault", "cache")
SETTINGS = (
    'vault = { token_env = "STAGE_TOKEN" }\n[containers]\n'
    + "".join(f"{name} = false\n" for name in SIX if name not in KEPT)
    + '[containers.cache]\nneeds = ["vault"]\n[secrets."secret/gbo/drive"]\n'
)
GOOD = 'secret_key_env = "STAGE_SECRET_KEY"\naccess_key = "throwaway"\n'
VALUE = "a-value-of-the-stage"


@pytest.fixture(scope="module")
def token(ground: Ground) -> str:
    """That may do everything."""
    return str(json.loads(ground.lab.vault_init.read_text())["root_token"])


@pytest.fixture(scope="module")
def read(ground: Ground, token: str) -> Iterator[Callable[[str, str], Any]]:
    """`read("10.0.3.12", "newest")`: asks a Vault about the secret."""
    with ThreadPoolExecutor(1, initializer=ground.lab.join_network) as thread:

        def ask(host: str, question: str) -> Any:
            store = KeyValue(host, 8200, token, "secret")
            return thread.submit(getattr(store, question), "gbo/drive").result(30)

        yield ask


def write(ground: Ground, fields: str) -> Stage:
    return ground.stage("STAGE-SECRET", "stagesecret0", 52, SETTINGS + fields)


@pytest.fixture(scope="module")
def environ(token: str) -> Mapping[str, str]:
    return {"STAGE_TOKEN": token, "STAGE_SECRET_KEY": VALUE}


@pytest.fixture(scope="module")
def stage(ground: Ground) -> Iterator[Stage]:
    found = write(ground, GOOD)
    yield found
    found.destroy()


def running(stage: Stage, name: str) -> bool:
    """One that is not there does not run: provisioning that fails may have removed it, to copy it again."""
    there = stage.ground.get("instances", project=stage.project)
    return any(url.partition("?")[0].endswith(f"/{name}") for url in there) and stage.clone(name)["status"] == "Running"


def test_a_variable_that_is_not_set_is_an_error_before_anything_is_done(stage: Stage, token: str) -> None:
    with stage.ground.events() as events:
        done = stage.run("provision", env={"STAGE_TOKEN": token}, check=False)
    assert done.returncode == 2
    assert "secrets.secret/gbo/drive.secret_key_env: $STAGE_SECRET_KEY is not set" in done.stderr
    assert events == []


def test_the_plan_names_fields_and_no_value(stage: Stage, environ: Mapping[str, str]) -> None:
    done = stage.run("provision", "--dry-run", env=environ)
    expected = "replace in vault (secret/gbo/drive: access_key, secret_key) and destroy older versions"
    assert expected in done.stdout
    assert VALUE not in done.stdout + done.stderr


def test_a_field_that_is_not_there_keeps_what_reads_vault_from_starting(
    stage: Stage, environ: Mapping[str, str]
) -> None:
    """A misspelled name would leave production's value in place."""
    done = write(stage.ground, 'secretkey_env = "STAGE_SECRET_KEY"\n').run("provision", env=environ, check=False)
    write(stage.ground, GOOD)
    assert done.returncode == 2
    assert "secret/gbo/drive in vault could not be replaced, so nothing that reads Vault is started" in done.stderr
    assert "it has no field secretkey; it has access_key" in done.stderr
    assert running(stage, "vault")
    assert not running(stage, "cache")


def test_a_token_that_may_not_write_does_so_too(stage: Stage, environ: Mapping[str, str]) -> None:
    lines = stage.ground.exec("system", "cat", "/opt/gbo/bin/.env").splitlines()
    weak = next(line.partition("=")[2] for line in lines if line.startswith("VAULT_TOKEN="))
    done = stage.run("provision", env={**environ, "STAGE_TOKEN": weak}, check=False)
    assert done.returncode == 3
    assert "permission denied" in done.stderr
    assert weak not in done.stderr
    assert not running(stage, "cache")


def test_without_unseal_keys_nothing_that_reads_vault_is_started(stage: Stage, environ: Mapping[str, str]) -> None:
    """--lab would give the lab's keys."""
    stage.exec("vault", "systemctl", "restart", "vault.service")
    argv = stage.argv("provision", "--endpoint", str(stage.ground.lab.socket))
    argv.remove("--lab")
    done = run(stage.ground.lab.exec_argv(argv), env=stage.environment(environ), check=False)
    assert done.returncode == 7
    assert "secret/gbo/drive in vault could not be replaced" in done.stderr
    assert not running(stage, "cache")


def test_fields_are_replaced_and_production_s_values_are_gone(
    stage: Stage, environ: Mapping[str, str], read: Callable[[str, str], Any]
) -> None:
    before = read("10.0.2.12", "newest")
    done = stage.run("provision", "--json", env=environ)
    data, version = read("10.0.52.12", "newest")
    assert (data["access_key"], data["secret_key"]) == ("throwaway", VALUE)
    changed = {"access_key", "secret_key"}
    assert {key: value for key, value in data.items() if key not in changed} == {
        key: value for key, value in before[0].items() if key not in changed
    }
    versions = read("10.0.52.12", "versions")
    assert versions == {number: number < version for number in versions}
    assert len(versions) > 1
    assert running(stage, "cache")
    assert VALUE not in done.stdout + done.stderr
    assert read("10.0.2.12", "newest") == before
    assert not any(read("10.0.2.12", "versions").values())
    ended = {timing["key"]: timing["ended"] for timing in json.loads(done.stdout)["timings"]}
    began = {timing["key"]: timing["began"] for timing in json.loads(done.stdout)["timings"]}
    assert began["start:cache"] >= ended["secrets:vault"]


def test_what_is_so_already_is_not_written_again(
    stage: Stage, environ: Mapping[str, str], read: Callable[[str, str], Any]
) -> None:
    before = read("10.0.52.12", "newest")
    assert stage.json("provision", env=environ)["changed"] is False
    assert read("10.0.52.12", "newest") == before


def test_another_value_is_put_in_its_place(
    stage: Stage, environ: Mapping[str, str], read: Callable[[str, str], Any]
) -> None:
    done = stage.run("provision", env={**environ, "STAGE_SECRET_KEY": "the-next-value"})
    data, version = read("10.0.52.12", "newest")
    assert data["secret_key"] == "the-next-value"
    assert read("10.0.52.12", "versions")[version - 1]
    assert "secret/gbo/drive replaced, 1 older versions destroyed" in done.stderr


def test_they_are_replaced_again_when_vault_goes_back_to_its_snapshot(
    stage: Stage, environ: Mapping[str, str], read: Callable[[str, str], Any]
) -> None:
    """The snapshot is of the moment before the first boot, so it has production's."""
    stage.json("reset", "vault", env={**environ, "STAGEGBO_CONTAINERS__VAULT__RESET": "restore"})
    data, version = read("10.0.52.12", "newest")
    assert (data["access_key"], data["secret_key"]) == ("throwaway", VALUE)
    versions = read("10.0.52.12", "versions")
    assert versions == {number: number < version for number in versions}
    assert len(versions) > 1
