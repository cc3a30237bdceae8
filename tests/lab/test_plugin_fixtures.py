"""What the fixtures hand out, with all six containers; these tests only read, so that they disturb nobody."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess

    from tests.lab.inner_pytest import Plug

pytestmark = pytest.mark.lab

LIBRARIES = ("psycopg", "valkey", "boto3", "hvac", "openai")
has_libraries = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in LIBRARIES), reason="needs the extra `clients`"
)

STAGE = """
    import os, subprocess, sys
    from pytest_stagegbo.errors import CommandFailed, NotHeld
    import pytest

    HOSTS = {
        "system": ("10.0.3.10", 5858, "http://10.0.3.10:5858"),
        "tables": ("10.0.3.11", 5432, "postgresql://10.0.3.11:5432"),
        "vault": ("10.0.3.12", 8200, "http://10.0.3.12:8200"),
        "cache": ("10.0.3.13", 6379, "redis://10.0.3.13:6379"),
        "drive": ("10.0.3.14", 9100, "http://10.0.3.14:9100"),
        "llm": ("10.0.3.15", 8081, "http://10.0.3.15:8081"),
    }

    def test_whole_stage(stage_gbo):
        assert stage_gbo.project == "STAGE-GBO"
        assert {name: (each.host, each.port, each.url) for name, each in stage_gbo.services.items()} == HOSTS
        assert stage_gbo.system is stage_gbo["system"]
        assert stage_gbo.tables.dsn.startswith("postgresql://")
        assert "@10.0.3.11:5432/botserver" in stage_gbo.tables.dsn
        assert stage_gbo.cache.dsn.endswith("@10.0.3.13:6379/0")

    def test_one_container_each(
        stage_system, stage_tables, stage_vault, stage_cache, stage_drive, stage_llm, stage_gbo, stage_settings
    ):
        each = [stage_system, stage_tables, stage_vault, stage_cache, stage_drive, stage_llm]
        assert each == list(stage_gbo.services.values())
        assert list(stage_settings.containers) == [service.name for service in each]

    def test_commands(stage_llm):
        assert stage_llm.exec("hostname").stdout == "llm\\n"
        with pytest.raises(CommandFailed):
            stage_llm.exec("false")
        assert stage_llm.exec("false", check=False).status == 1

    def test_logs(stage_vault):
        assert stage_vault.logs()

    def test_child(stage_gbo):
        code = "import os, psycopg; print(psycopg.connect(os.environ['DATABASE_URL']).info.host)"
        environ = {**os.environ, **stage_gbo.env()}
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
        assert done.stdout == "10.0.3.11\\n", done.stderr
        assert environ["STAGEGBO_ENDPOINT_CACHE_URL"] == "redis://10.0.3.13:6379"

    def test_no_reset_without_asking(stage_gbo):
        for names in [(), ("all",), ("cache",)]:
            with pytest.raises(NotHeld):
                stage_gbo.reset(*names)
"""

CLIENTS = """
    def test_psycopg(stage_psycopg):
        assert stage_psycopg.execute("SELECT count(*) FROM users").fetchone() == (500,)

    def test_valkey(stage_valkey):
        assert stage_valkey.ping()

    def test_s3(stage_s3):
        assert "Buckets" in stage_s3.list_buckets()

    def test_hvac(stage_hvac):
        assert stage_hvac.is_authenticated()

    def test_openai(stage_openai):
        assert list(stage_openai.models.list())
"""

AGAIN = """
    seen = []
    def test_first(stage_valkey, stage_psycopg): seen.append((stage_valkey, stage_psycopg))
    def test_second(stage_valkey, stage_psycopg):
        assert stage_valkey is not seen[0][0]
        assert stage_psycopg is not seen[0][1]
        assert seen[0][1].closed
"""


@pytest.fixture
def six(provisioned: subprocess.CompletedProcess[str], plug: Plug) -> Plug:
    """The shared stage instead of the small one, the way BotServer finds its credentials."""
    assert provisioned.returncode == 0
    (plug.folder / "stagegbo.toml").unlink()
    return plug


@has_libraries
def test_the_stage_and_its_services(six: Plug) -> None:
    six.write(test_it=STAGE)
    six.run().assert_outcomes(passed=6)


@has_libraries
def test_a_client_is_connected_and_each_test_has_its_own(six: Plug) -> None:
    six.write(test_clients=CLIENTS, test_again=AGAIN)
    six.run().assert_outcomes(passed=7)


def test_without_the_library_the_error_names_the_extra(six: Plug) -> None:
    extras = {"psycopg": "postgres", "valkey": "valkey", "s3": "s3", "hvac": "vault", "openai": "llm"}
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({LIBRARIES}))\n"
    six.write(test_it=hidden + "".join(f"def test_{name}(stage_{name}): pass\n" for name in extras))
    result = six.run()
    result.assert_outcomes(errors=5)
    for name, extra in extras.items():
        result.stdout.fnmatch_lines(
            [
                f"*ERROR at setup of test_{name} *",
                f"*MissingRequirement: the client for {extra} is not installed",
                f"*what to do: pip install 'pytest-stagegbo[[]{extra}]'*",
            ]
        )


def test_credentials_can_be_given_by_a_fixture(plug: Plug) -> None:
    """Over the settings and over Vault; also when the first test that used the stage has failed before."""
    plug.write(
        test_it="""
            from pytest_stagegbo.credentials import Credentials

            class Mine(Credentials):
                def __getitem__(self, name):
                    note(f"asked for {name}")
                    return super().__getitem__(name)

            @pytest.fixture(scope="session")
            def stage_credentials(stage_settings):
                return Mine(stage_settings, None)

            @pytest.fixture
            def broken():
                raise RuntimeError

            def test_before(broken, stage_cache): pass

            def test_it(stage_cache):
                assert stage_cache.credentials.password == os.environ["PLUG_CACHE"]
        """
    )
    plug.run().assert_outcomes(passed=1, errors=1)
    assert "asked for cache" in plug.notes
