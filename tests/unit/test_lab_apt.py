"""Which mirror the lab takes from a machine's own apt sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_stagegbo.lab.apt import debian_mirror, parse_deb822, parse_list

if TYPE_CHECKING:
    from pathlib import Path

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.invalid/debian/
# another one
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def test_a_deb822_stanza_yields_one_source_for_each_suite() -> None:
    assert parse_deb822(DEB822) == [
        ("http://mirror.invalid/debian/", "bookworm", ["main", "contrib"]),
        ("http://mirror.invalid/debian/", "bookworm-updates", ["main", "contrib"]),
    ]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(DEB822 + "Enabled: no\n", id="disabled"),
        pytest.param(DEB822.replace("deb deb-src", "deb-src"), id="source packages only"),
        pytest.param("", id="empty"),
    ],
)
def test_a_stanza_without_binary_packages_yields_nothing(text: str) -> None:
    assert parse_deb822(text) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(
            "deb http://m.invalid/debian trixie main", [("http://m.invalid/debian", "trixie", ["main"])], id="plain"
        ),
        pytest.param(
            "deb [arch=amd64 signed-by=/k.gpg] http://m.invalid/debian trixie main # mine",
            [("http://m.invalid/debian", "trixie", ["main"])],
            id="options and comment",
        ),
        pytest.param("deb-src http://m.invalid/debian trixie main", [], id="source packages"),
        pytest.param("# deb http://m.invalid/debian trixie main", [], id="commented out"),
        pytest.param("deb", [], id="cut off"),
    ],
)
def test_a_line_of_a_list_file(line: str, expected: list[tuple[str, str, list[str]]]) -> None:
    assert parse_list(line) == expected


def test_the_mirror_of_a_debian_machine_is_taken(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    assert debian_mirror(tmp_path, distribution="debian") == "http://mirror.invalid/debian"


def test_security_and_third_party_archives_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(
        "deb http://m.invalid/debian-security bookworm-security main\n"
        "deb https://tool.invalid/apt stable main\n"
        "deb http://m.invalid/debian bookworm main\n"
    )
    assert debian_mirror(tmp_path, distribution="debian") == "http://m.invalid/debian"


def test_another_distribution_s_mirror_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://m.invalid/debian bookworm main\n")
    assert debian_mirror(tmp_path, distribution="ubuntu") == ""


def test_a_machine_without_sources_has_no_mirror(tmp_path: Path) -> None:
    assert debian_mirror(tmp_path, distribution="debian") == ""
