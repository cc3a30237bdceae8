"""What `--json` prints has shapes with versions, and schemas that are made from them."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec import to_builtins

from pytest_stagegbo.cli import capsule_shapes
from pytest_stagegbo.cli.capsule import _fields
from pytest_stagegbo.cli.command import parsers_in
from pytest_stagegbo.cli.expose import _tell
from pytest_stagegbo.cli.parser import new_parser
from pytest_stagegbo.cli.shapes import shaped
from pytest_stagegbo.cli.sight import Sight, shape_of
from pytest_stagegbo.desired.exposure import Exposure
from pytest_stagegbo.engine.capsule_diff import Difference
from pytest_stagegbo.engine.status import ContainerStatus, StageStatus
from pytest_stagegbo.plan.builds import Artefact
from pytest_stagegbo.plan.capsules import About, Capsule
from pytest_stagegbo.slots.statuses import SlotStatus

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "schemas"
TABLE = re.findall(
    r"^\| \[stagegbo\.([\w-]+)/(\d+)\]\(schemas/([\w-]+)\.json\) \| (.*) \|$",
    (ROOT / "docs/json.md").read_text(),
    re.MULTILINE,
)


def made() -> dict[str, dict[str, Any]]:
    spec = importlib.util.spec_from_file_location("schemas", ROOT / "docs" / "schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, dict[str, Any]] = module.schemas()
    return found


def test_the_schemas_are_those_of_the_code() -> None:
    """After a change that is meant: `python docs/schemas.py`."""
    assert {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")} == made()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_schema_is_one(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


def test_every_shape_is_documented() -> None:
    tags = {schema["title"] for schema in made().values()}
    assert {f"stagegbo.{name}/{number}" for name, number, file, _ in TABLE if name == file} == tags


def test_every_command_with_json_has_a_shape() -> None:
    def with_json(parser: argparse.ArgumentParser, prefix: str) -> list[str]:
        own = [prefix] if "--json" in parser._option_string_actions else []
        return own + [each for name, _, inner in parsers_in(parser) for each in with_json(inner, f"{prefix} {name}")]

    documented = " ".join(printed for _, _, _, printed in TABLE)
    found = [name for command, _, parser in parsers_in(new_parser("")) for name in with_json(parser, command)]
    assert {"status", "lab status"} <= set(found)
    assert [name for name in found if f"`{name} " not in documented] == []


def test_only_shapes_are_printed() -> None:
    """Whoever prints JSON by itself has a shape that nobody has promised."""
    users = []
    for path in sorted((ROOT / "src/pytest_stagegbo/cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"json.dumps", "json.encode"}:
                users.append(path.name)
    assert sorted(set(users)) == [
        "env.py",
        "incus_client.py",
        "output.py",
    ]  # a file of variables, the client's settings


def test_a_status_with_everything_in_it_holds_its_schema() -> None:
    file = Artefact("botserver", "/opt/gbo/bin/botserver", "/opt/gbo/bin/botserver", "0" * 64, 5, "", "a@b", "/x")
    container = ContainerStatus(
        "cache", "10.0.3.13", "ready", ("6379: ready",), "default/cache", "", None, "10GB", (file,)
    )
    exposed = Exposure("cache", "10.0.3.13", 6379, "198.51.100.7", 6379, 0)
    status = StageStatus("STAGE-GBO", True, "stagebr0", "Incus 6.0.4", (container,), (exposed,), warnings=("w",))
    slot = SlotStatus(-1, "STAGE-GBO-golden", "", "stopped", "", False, "")
    found = to_builtins(shape_of(Sight(status, (slot,), {"cache": "its files"})))
    jsonschema.validate(found, made()["status"])
    assert found["schema"] == "stagegbo.status/1"
    assert found["exposed"][0]["state"] == "expired"
    assert found["containers"][0]["deployed"][0]["name"] == "botserver"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**found, "ready": "yes"}, made()["status"])


def test_an_exposed_port_holds_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    exposed = Exposure("cache", "10.0.3.13", 6379, "198.51.100.7", 6379, 0)
    _tell(argparse.Namespace(json=True), "would expose", [exposed])
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, made()["expose"])
    assert (found["action"], found["ports"][0]["listen"]) == ("would expose", "198.51.100.7")


def test_capsules_hold_their_schemas() -> None:
    about = About("12ab0000", "test_x.py::test_it", "2026-07-01T00:00:00+00:00", "a@b", ("cache",), {}, {"cache": 7})
    fields = _fields(Capsule(about, {}, ()))
    difference = shaped(capsule_shapes.Difference, Difference("cache", "key", "+", "db0", "balance"))
    for found in (
        capsule_shapes.Capsules(capsules=[capsule_shapes.KeptCapsule(**fields)]),
        capsule_shapes.Capsule(**fields, report="it failed", logs=""),
        capsule_shapes.CapsuleDiff(id=about.key, differences=[difference]),
    ):
        value = to_builtins(found)
        jsonschema.validate(value, made()[value["schema"].removeprefix("stagegbo.").partition("/")[0]])
    assert (fields["bytes"], fields["lost"]) == (7, ["cache"])
