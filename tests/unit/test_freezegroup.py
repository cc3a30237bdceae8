"""Which file freezes a clone: nothing else of the host may be frozen."""

from __future__ import annotations

import pytest

from pytest_stagegbo.incus.freezegroup import file_of

OWN = "/lxc.payload.STAGE-GBO_system"
FIRST = f"""\
9:name=systemd:{OWN}-18/init.scope
6:freezer:{OWN}-18
5:devices:{OWN}-18/init.scope
0::{OWN}-18/init.scope
"""


@pytest.mark.parametrize(
    ("groups", "path"),
    [
        pytest.param(FIRST, f"/sys/fs/cgroup/freezer{OWN}-18/freezer.state", id="both versions"),
        pytest.param(f"6:freezer:{OWN}\n", f"/sys/fs/cgroup/freezer{OWN}/freezer.state", id="version 1"),
        pytest.param(f"0::{OWN}/init.scope\n", f"/sys/fs/cgroup{OWN}/cgroup.freeze", id="version 2"),
        pytest.param(f"0::{OWN}-18\n", f"/sys/fs/cgroup{OWN}-18/cgroup.freeze", id="version 2, without systemd"),
        pytest.param(f"6:freezer:/\n0::{OWN}-2/init.scope\n", f"/sys/fs/cgroup{OWN}-2/cgroup.freeze", id="2, beside 1"),
        pytest.param("", None, id="nothing"),
        pytest.param("freezer\n", None, id="no line"),
    ],
)
def test_the_file_is_that_of_the_version_that_the_daemon_uses(groups: str, path: str | None) -> None:
    assert file_of(groups, "STAGE-GBO", "system") == path


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/lxc.payload.system",  # production's
        "/lxc.payload.default_system",
        "/lxc.payload.STAGE-GBO-1_system",
        "/lxc.payload.STAGE-GBO_system2",
        "/lxc.payload.STAGE-GBO_system/../lxc.payload.system",
        "/lxc.payload.STAGE-GBOxsystem",
        "/below/lxc.payload.STAGE-GBO_system",
    ],
)
@pytest.mark.parametrize("line", ["6:freezer:", "0::"])
def test_nothing_but_the_clones_own_is_frozen(line: str, path: str) -> None:
    assert file_of(f"{line}{path}\n", "STAGE-GBO", "system") is None
