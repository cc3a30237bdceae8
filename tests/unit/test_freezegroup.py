"""Which control group is a clone's: nothing else of the host may be frozen."""

from __future__ import annotations

import pytest

from pytest_stagegbo.incus.freezegroup import is_of_clone, path_of

FIRST = """\
9:name=systemd:/lxc.payload.STAGE-GBO_system-18/init.scope
6:freezer:/lxc.payload.STAGE-GBO_system-18
5:devices:/lxc.payload.STAGE-GBO_system-18/init.scope
0::/lxc.payload.STAGE-GBO_system-18/init.scope
"""


@pytest.mark.parametrize(
    ("groups", "path"),
    [
        (FIRST, "/lxc.payload.STAGE-GBO_system-18"),
        ("0::/lxc.payload.STAGE-GBO_system/init.scope\n", None),
        ("6:freezer:/with:colon\n", "/with:colon"),
        ("", None),
        ("freezer\n", None),
    ],
)
def test_the_group_is_that_of_version_1(groups: str, path: str | None) -> None:
    assert path_of(groups) == path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/lxc.payload.STAGE-GBO_system", True),
        ("/lxc.payload.STAGE-GBO_system-18", True),
        ("/", False),
        ("/lxc.payload.system", False),  # production's
        ("/lxc.payload.default_system", False),
        ("/lxc.payload.STAGE-GBO-1_system", False),
        ("/lxc.payload.STAGE-GBO_system2", False),
        ("/lxc.payload.STAGE-GBO_system-18/below", False),
        ("/lxc.payload.STAGE-GBO_system/../lxc.payload.system", False),
        ("/lxc.payload.STAGE-GBOxsystem", False),
    ],
)
def test_it_is_the_clones_own(path: str, expected: bool) -> None:
    assert is_of_clone(path, "STAGE-GBO", "system") is expected
