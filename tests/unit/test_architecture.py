"""Who may do what, read off the sources: what can't be called can't go wrong."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pytest_stagegbo

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(pytest_stagegbo.__file__).parent
MODULES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
NODES = {module: tuple(ast.walk(tree)) for module, tree in MODULES.items()}

READING_ONLY = [
    "desired/allowlist.py",
    "discovery/document.py",
    "discovery/pools.py",
    "discovery/programs.py",
    "discovery/proposal.py",
    "discovery/records.py",
    "discovery/roles.py",
    "discovery/subnets.py",
    "discovery/survey.py",
    "plan/builds.py",
    "plan/capsules.py",
    "plan/destroy.py",
    "desired/exposure.py",
    "plan/exposure_request.py",
    "facts/facts.py",
    "plan/member_copy.py",
    "plan/objections.py",
    "plan/placement.py",
    "facts/inventory.py",
    "desired/marks.py",
    "plan/provision.py",
    "plan/secrets.py",
    "desired/objects.py",
    "engine/status.py",
    "plan/steps.py",
    "incus/events.py",
    "incus/guestview.py",
    "leases/protocol.py",
    "incus/reader.py",
    "slots/statuses.py",
    "slots/capacity.py",
    "slots/layout.py",
    "slots/placing.py",
    "slots/source_drift.py",
    "verify/event_monitor.py",
]
"""Modules that look at production or decide; none of them knows of a way to write."""


def imported(module: str) -> Iterator[str]:
    """Everything that a module imports, also for type checkers only: `a.b` for `from a import b` too."""
    for node in NODES[module]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def called(module: str) -> Iterator[str]:
    """The last names of what a module calls."""
    for node in NODES[module]:
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.func.attr
            elif isinstance(node.func, ast.Name):
                yield node.func.id


def test_only_the_connection_talks_through_pylxd() -> None:
    users = [module for module in MODULES if any(name.split(".")[0] == "pylxd" for name in imported(module))]
    assert users == ["incus/connection.py"]


def test_only_the_plugin_knows_pytest() -> None:
    """The rest is used by the command line too, where pytest need not be installed."""
    users = [
        module for module in MODULES if any(name.split(".")[0] in {"pytest", "_pytest"} for name in imported(module))
    ]
    assert users
    assert not [module for module in users if not module.startswith("plugin/")]


def test_only_the_stages_engine_makes_a_writer() -> None:
    assert [module for module in MODULES if "Writer" in called(module)] == ["engine/stage.py"]


def test_only_the_stages_engine_says_what_a_writer_may_write_to() -> None:
    assert [module for module in MODULES if "WriterScope" in called(module)] == ["engine/stage.py"]


def test_only_the_incus_package_sends_requests_to_the_daemon() -> None:
    """Others that call a `request` speak HTTP to services and know no connection to the daemon."""
    senders = [module for module in MODULES if "request" in called(module) and not module.startswith("incus/")]
    assert senders, "the sources are not where this test looks"
    for module in senders:
        assert not [name for name in imported(module) if name.startswith("pytest_stagegbo.incus")], module


def test_only_the_incus_package_knows_what_servers_do_differently() -> None:
    """Nobody else searches an answer for words, or looks at API extensions."""
    found = [
        f"{module}: {ast.unparse(node)}"
        for module, nodes in NODES.items()
        if not module.startswith("incus/")
        for node in nodes
        if (isinstance(node, ast.Attribute) and node.attr == "extensions")
        or (isinstance(node, ast.Compare) and any(ast.unparse(each).endswith(".seen") for each in node.comparators))
    ]
    assert found == []


def test_only_the_clocks_ask_what_time_it_is() -> None:
    """Tests freeze the functions of `time` and `datetime`. The lab and the command line run in no test's process."""
    asking = {"monotonic", "perf_counter", "sleep", "time", "time_ns", "now", "today", "utcnow"}
    found = [
        f"{module}: {ast.unparse(node)}"
        for module, nodes in NODES.items()
        if not module.startswith(("lab/", "cli/")) and module != "clocks.py"
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr in asking
        and ast.unparse(node.value) in {"time", "datetime", "datetime.datetime", "datetime.date", "date"}
    ]
    assert found == []


def test_no_thread_keeps_a_process_from_ending() -> None:
    """The interpreter waits at its end for those of `ThreadPoolExecutor`, and for all that are no daemons."""
    executors = {"ThreadPoolExecutor", "ProcessPoolExecutor"}
    users = [each for each in MODULES if executors & {name.rpartition(".")[2] for name in imported(each)}]
    attributes = {node.attr for nodes in NODES.values() for node in nodes if isinstance(node, ast.Attribute)}
    assert (users, executors & attributes) == ([], set())
    waited_for = [
        f"{module}: {ast.unparse(node)}"
        for module, nodes in NODES.items()
        for node in nodes
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] == "Thread"
        and ("daemon", "True") not in [(each.arg, ast.unparse(each.value)) for each in node.keywords]
    ]
    assert waited_for == []


def needed(module: str) -> set[str]:
    """The modules of this package that a module needs to work; not those that only type checkers look at. What these
    see in a package is what it imports once it is asked for."""
    typing = {
        id(inner)
        for node in NODES[module]
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == "TYPE_CHECKING"
        and "__getattr__" not in ast.unparse(node)
        for inner in ast.walk(node)
    }
    found = set()
    for node in NODES[module]:
        if isinstance(node, ast.ImportFrom) and id(node) not in typing:
            for alias in node.names:
                path = str(node.module).removeprefix("pytest_stagegbo").lstrip(".").replace(".", "/")
                inside = f"{path}/{alias.name}".lstrip("/")
                files = (f"{inside}.py", f"{inside}/__init__.py", f"{path}.py", f"{path}/__init__.py")
                found |= {next((file for file in files if file in MODULES), module)}
    return found - {module}


def circle(needs: dict[str, set[str]]) -> set[str]:
    """What is left when everything is taken away that needs nothing that is left: circles, and what leads to them."""
    left = dict(needs)
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    return set(left)


def test_no_module_needs_itself_through_others() -> None:
    needs = {module: needed(module) for module in MODULES}
    assert "plan/provision.py" in needs["engine/provisioning.py"], "the sources are not where this test looks"
    assert circle(needs) == set()


def test_no_package_needs_itself_through_others() -> None:
    """What only type checkers look at counts, too."""
    needs: dict[str, set[str]] = {}
    for module in MODULES:
        package = module.partition("/")[0]
        if "/" in module:
            names = [name.split(".") for name in imported(module) if name.startswith("pytest_stagegbo.")]
            others = {name[1] for name in names if f"{name[1]}/__init__.py" in MODULES}
            needs.setdefault(package, set()).update(others - {package})
    assert circle(needs) == set()


@pytest.mark.parametrize("module", READING_ONLY)
def test_what_only_reads_knows_no_writer(module: str) -> None:
    assert not [name for name in imported(module) if name.rpartition(".")[2] in {"Writer", "writer"}]


def test_nobody_reaches_into_a_reader_or_a_writer() -> None:
    """Behind the underscore is a connection that could write anywhere."""
    found = [
        f"{module}: {ast.unparse(node)}"
        for module, nodes in NODES.items()
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and ast.unparse(node.value).rpartition(".")[2].lstrip("_") in {"reader", "writer"}
    ]
    assert found == []


def test_a_reader_uses_only_what_cannot_write() -> None:
    used = {
        node.attr
        for node in NODES["incus/reader.py"]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._connection"
    }
    assert used == {"get", "read_bytes", "read_pieces", "server", "events", "endpoint", "is_local"}


def test_every_write_goes_through_the_gate() -> None:
    """Of the gate and the writers, one method sends, and it asks first what may be written to."""
    senders = [
        method
        for module in ("incus/gate.py", "incus/instance_writer.py", "incus/writer.py")
        for method in NODES[module]
        if isinstance(method, ast.FunctionDef) and "self._connection.request(" in ast.unparse(method)
    ]
    assert [method.name for method in senders] == ["_send"]
    assert ast.unparse(senders[0].body[0]) == "project = self._project_of(method, path, body)"
