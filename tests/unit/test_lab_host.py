"""What the lab changes on the machine itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.lab.host import raise_limits

if TYPE_CHECKING:
    from pathlib import Path


def test_limits_are_raised_and_never_lowered(tmp_path: Path) -> None:
    for folder in ("fs/inotify", "kernel/keys"):
        (tmp_path / folder).mkdir(parents=True)
    instances, keys = tmp_path / "fs/inotify/max_user_instances", tmp_path / "kernel/keys/maxkeys"
    instances.write_text("128\n")
    keys.write_text("100000\n")
    raise_limits(tmp_path)
    assert int(instances.read_text()) == 1024
    assert int(keys.read_text()) == 100000


def test_a_machine_without_a_limit_is_left_alone(tmp_path: Path) -> None:
    raise_limits(tmp_path)
    assert not list(tmp_path.iterdir())
