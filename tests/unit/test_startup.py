"""What commands import: every module costs each call of a command half a millisecond, and more than that in others."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pytest_stagegbo
from pytest_stagegbo.cli.parser import MODULES, parse
from pytest_stagegbo.lazy import imported_when_used

ROOT = Path(pytest_stagegbo.__file__).parent
LAZY = [
    path.parent.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob("*/__init__.py"))
    if "names_of(" in path.read_text()
]
"""Packages that import a module when one of its names is asked for."""


def loaded(code: str) -> set[str]:
    """The modules that a process of its own has after it has run this."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, end='')"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.rpartition("\n")[2].split())


def test_every_command_is_registered_by_its_module(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = capsys.readouterr().out
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == list(MODULES)


@pytest.mark.parametrize("command", MODULES)
def test_a_command_imports_no_other_commands(command: str) -> None:
    words = ["--config", "lab", "-q", command, "--help"]
    found = loaded(f"from pytest_stagegbo.cli.parser import parse\ntry: parse({words})\nexcept SystemExit: pass")
    of_commands = {f"pytest_stagegbo.cli.{module}" for module in MODULES.values()}
    assert found & of_commands == {f"pytest_stagegbo.cli.{MODULES[command]}"}


@pytest.mark.parametrize("line", [[], ["--lab"], ["nothing"], ["--config"], ["-qh"], ["--help", "status"]], ids=str)
def test_a_line_without_a_command_is_told_of_all(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(line)
    told = "".join(capsys.readouterr())
    if "choose from" in told or "clones" in told:
        assert all(name in told for name in MODULES)
    else:
        assert "COMMAND" in told or "`stagegbo --help`" in told


def test_there_are_lazy_packages() -> None:
    assert {"incus", "services", "stage"} <= set(LAZY)


@pytest.mark.parametrize("package", LAZY)
def test_a_lazy_package_offers_what_type_checkers_see(package: str) -> None:
    """Both lists are of the same names, each of the same module."""
    (branch,) = (
        node for node in ast.parse((ROOT / package / "__init__.py").read_text()).body if isinstance(node, ast.If)
    )
    seen = {
        alias.name: f"{node.module}" for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    module = import_module(f"pytest_stagegbo.{package}")
    assert sorted(module.__all__) == sorted(seen)
    for name, home in seen.items():
        assert getattr(module, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", LAZY)
def test_a_lazy_package_imports_nothing_by_itself(package: str) -> None:
    found = loaded(f"import pytest_stagegbo.{package}")
    assert {name for name in found if name.startswith(f"pytest_stagegbo.{package}.")} == set()


def test_a_command_that_starts_up_imports_nothing_for_others(tmp_path: Path) -> None:
    """Up to its first request: what makes a lab, what only a terminal or other commands need."""
    (tmp_path / "stagegbo.toml").touch()
    words = [
        "--config",
        str(tmp_path / "stagegbo.toml"),
        "--endpoint",
        str(tmp_path / "none"),
        "exec",
        "cache",
        "--",
        "true",
    ]
    found = loaded(f"from pytest_stagegbo.cli import main\nassert main({words})")
    assert "pytest_stagegbo.engine.stage" in found
    of_this = {name.removeprefix("pytest_stagegbo.") for name in found if name.startswith("pytest_stagegbo.")}
    unwanted = (
        *("apply", "changes", "cli.provision", "cli.status", "discovery", "engine.deploy", "engine.status"),
        *("facts.facts", "lab", "plan", "plugin", "resets", "session", "slots", "stage.clients", "verify"),
    )
    assert [name for name in sorted(of_this) if name.startswith(unwanted)] == []
    assert found & {"rich.progress", "psycopg", "boto3", "hvac", "pytest", "netrc", "asyncio"} == set()
    assert found & {"cryptography.x509", "cryptography.hazmat.primitives.hashes"} == set()


@pytest.mark.parametrize(
    ("arguments", "spared"), [("", "True"), ('["explain", "SG101"]', "False")], ids=["own", "other"]
)
def test_a_command_looks_for_no_garbage_in_what_it_imports_unless_the_process_is_another_s(
    arguments: str, spared: str
) -> None:
    code = f"""import gc, sys
from pytest_stagegbo.cli import main
sys.argv = ["stagegbo", "explain", "SG101"]
before = gc.get_threshold()
assert main({arguments}) == 0
print((gc.get_freeze_count() > 1000) is (gc.get_threshold() > before) is {spared}, end="")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.endswith("True")


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        pytest.param(
            "engine.provisioning",
            ("apply.copying", "apply.hooks", "apply.outlook", "changes", "engine.capsules", "engine.deploy", "resets"),
            id="a-stage-that-is-as-it-should-be",
        ),
        pytest.param(
            "resets.resetter",
            ("credentials.lookup", "resets.cache", "resets.database", "resets.drive", "resets.work"),
            id="a-reset-before-it-knows-what-of",
        ),
    ],
)
def test_what_only_some_need_is_imported_with_them(module: str, unwanted: tuple[str, ...]) -> None:
    found = loaded(f"import pytest_stagegbo.{module}, pytest_stagegbo.apply.step_runner")
    assert f"pytest_stagegbo.{module}" in found
    names = tuple(f"pytest_stagegbo.{name}" for name in unwanted)
    assert [name for name in sorted(found) if name.startswith(names)] == []


def test_pylxd_has_its_modules_for_certificates_when_it_uses_them() -> None:
    """And whoever imports them has the modules themselves."""
    loaded(
        """
import pytest_stagegbo.incus.connection, pylxd.client
assert "cryptography.x509" not in sys.modules
read = pylxd.client.x509.load_pem_x509_certificate
from cryptography import x509
from cryptography.hazmat.primitives import hashes
import cryptography.x509.oid
assert x509 is sys.modules["cryptography.x509"] is cryptography.x509 and type(x509) is type(sys)
assert read is x509.load_pem_x509_certificate
assert pylxd.client.hashes.SHA256 is hashes.SHA256
"""
    )


def test_what_stands_for_a_module_gives_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_one").mkdir()
    (tmp_path / "slow_one" / "__init__.py").write_text("answer = 42")
    (tmp_path / "slow_one" / "part.py").write_text("other = 43")
    (tmp_path / "user.py").write_text("import slow_one\ndef ask():\n    return slow_one.answer")
    (tmp_path / "hasty.py").write_text("from slow_one import answer\nfrom slow_one.part import other")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["slow_one", "slow_one.part", "user", "hasty"]
    try:
        with imported_when_used("slow_one"):
            user = import_module("user")
        assert "slow_one" not in sys.modules
        assert user.ask() == 42
        assert import_module("slow_one").__file__ == str(tmp_path / "slow_one" / "__init__.py")
        for name in names:
            sys.modules.pop(name, None)
        with imported_when_used("slow_one"):  # one that needs it at once
            hasty = import_module("hasty")
        assert (hasty.answer, hasty.other) == (42, 43)
        with imported_when_used("slow_one"):  # which is there already
            assert import_module("slow_one") is sys.modules["slow_one"]
        assert import_module("slow_one").part.other == 43
        with pytest.raises(AttributeError):
            _ = user.slow_one.nothing
    finally:
        for name in names:
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("session.proof", "pytest_stagegbo.verify"), ("settings.load", "tomllib"), ("settings.load", "tomli")],
)
def test_what_a_session_may_not_need_is_imported_when_it_does(module: str, unwanted: str) -> None:
    found = loaded(f"import pytest_stagegbo.{module}")
    assert f"pytest_stagegbo.{module}" in found
    assert unwanted not in found
