"""Hooks: which files they are, and where they stand in a plan."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from fakes import bare_host
from msgspec import structs

from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import SettingsError
from pytest_stagegbo.guest.hooks import read_hooks
from pytest_stagegbo.plan.provision import make_plan
from pytest_stagegbo.plan.steps import RunHooks
from pytest_stagegbo.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE = '[containers.tables]\nhooks = ["mask.sql", "/opt/more.sh"]\n'


def hooks_of(folder: Path, environ: Mapping[str, str], text: str = FILE) -> tuple[str, ...]:
    settings = folder / "settings"
    settings.mkdir()
    (settings / "stagegbo.toml").write_text(text)
    return load(settings / "stagegbo.toml", folder, environ).settings.containers["tables"].hooks


def with_hooks(*paths: Path) -> Settings:
    settings = Settings()
    tables = structs.replace(settings.containers["tables"], hooks=tuple(map(str, paths)))
    return structs.replace(settings, containers=MappingProxyType({**settings.containers, "tables": tables}))


class TestPaths:
    def test_are_relative_to_the_settings_file(self, tmp_path: Path) -> None:
        assert hooks_of(tmp_path, {}) == (str(tmp_path / "settings/mask.sql"), "/opt/more.sh")

    @pytest.mark.parametrize("value", ["a.sql, b.sh", '["a.sql", "b.sh"]'], ids=["words", "JSON"])
    def test_from_the_environment_to_the_working_folder(self, tmp_path: Path, value: str) -> None:
        found = hooks_of(tmp_path, {"STAGEGBO_CONTAINERS__TABLES__HOOKS": value})
        assert found == (str(tmp_path / "a.sql"), str(tmp_path / "b.sh"))

    def test_what_is_no_list_is_an_error_as_anywhere(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="hooks: 5 is not a list of text"):
            hooks_of(tmp_path, {}, "[containers.tables]\nhooks = 5\n")


class TestFiles:
    def test_are_read_in_order_and_not_shown(self, tmp_path: Path) -> None:
        (tmp_path / "b.sql").write_text("SELECT 'a secret'")
        (tmp_path / "a.sh").write_text("true")
        found = read_hooks(with_hooks(tmp_path / "b.sql", tmp_path / "a.sh").containers["tables"])
        assert [(hook.name, hook.is_sql) for hook in found] == [("b.sql", True), ("a.sh", False)]
        assert "secret" not in repr(found)

    @pytest.mark.parametrize("content", [None, " \n"], ids=["missing", "empty"])
    def test_one_that_says_nothing_is_an_error(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "mask.sql").write_text(content)
        with pytest.raises(SettingsError, match=r"mask\.sql"):
            make_plan(bare_host(Settings()), with_hooks(tmp_path / "mask.sql"))


class TestPlan:
    def test_a_copy_of_a_golden_clone_has_what_they_changed_and_is_not_given_them_again(self, tmp_path: Path) -> None:
        (tmp_path / "mask.sql").write_text("SELECT 1")
        settings = with_hooks(tmp_path / "mask.sql")
        facts = structs.replace(bare_host(settings), golden="STAGE-GBO-GOLDEN")
        steps = {step.key: step for step in make_plan(facts, settings).steps}
        assert "hooks:tables" not in steps
        assert steps["prepare:tables"].container.hooks == ()  # type: ignore[attr-defined]
        assert steps["copy:tables"].container.hooks  # type: ignore[attr-defined]  # its fingerprint is of the settings

    def test_a_slots_copy_of_a_golden_clone_is_not_prepared_since_nothing_is_left_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "mask.sql").write_text("SELECT 1")
        settings = with_hooks(tmp_path / "mask.sql")
        facts = structs.replace(bare_host(settings), golden="STAGE-GBO-GOLDEN")
        steps = {step.key: step for step in make_plan(facts, settings, parent="STAGE-GBO").steps}
        assert not [key for key in steps if key.startswith(("prepare:", "hooks:"))]
        assert all(steps[f"copy:{name}"].unconfirmed for name in settings.containers)  # type: ignore[attr-defined]
        assert "copy:tables" in steps["start:tables"].after

    def test_between_preparing_and_starting(self, tmp_path: Path) -> None:
        (tmp_path / "mask.sql").write_text("SELECT 1")
        settings = with_hooks(tmp_path / "mask.sql")
        steps = {step.key: step for step in make_plan(bare_host(settings), settings).steps}
        assert isinstance(steps["hooks:tables"], RunHooks)
        assert steps["hooks:tables"].after == {"prepare:tables"}
        assert "hooks:tables" in steps["start:tables"].after
        assert [key for key in steps if key.startswith("hooks:")] == ["hooks:tables"]

    def test_another_content_or_database_makes_the_clone_stale(self, tmp_path: Path) -> None:
        file = tmp_path / "mask.sql"
        settings = with_hooks(file)
        tables = settings.containers["tables"]
        prints = {marks.fingerprint(Settings().containers["tables"], Settings())}
        for text in ("SELECT 1", "SELECT 2"):
            file.write_text(text)
            prints.add(marks.fingerprint(tables, settings))
        prints.add(marks.fingerprint(structs.replace(tables, database="other"), settings))
        assert len(prints) == 4
