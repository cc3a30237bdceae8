"""What `./dev release-check` refuses. It builds and installs for real in `./dev test`."""

from __future__ import annotations

import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from tools import contents, environments
from tools.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SOURCES = ["src/pytest_stagegbo/__init__.py", "src/pytest_stagegbo/py.typed"]
METADATA = """Metadata-Version: 2.4
Name: pytest-stagegbo
Version: 1.2.3
License-Expression: MIT
License-File: LICENSE
Classifier: Programming Language :: Python :: 3.10
Classifier: Programming Language :: Python :: 3.13
Classifier: Topic :: Software Development :: Testing
Requires-Dist: pytest>=8
Requires-Dist: tomli>=2; python_version < '3.11'
Provides-Extra: s3
Requires-Dist: boto3>=1.36; extra == 's3'
Provides-Extra: clients
Requires-Dist: pytest-stagegbo[s3]; extra == 'clients'
Description-Content-Type: text/markdown

# A title
"""
ENTRIES = "[console_scripts]\nstagegbo = pytest_stagegbo.cli:main\n\n[pytest11]\nstagegbo = pytest_stagegbo.plugin\n"
INFO = "pytest_stagegbo-1.2.3.dist-info"
FILES = {
    "pytest_stagegbo/__init__.py": "",
    "pytest_stagegbo/py.typed": "",
    f"{INFO}/METADATA": METADATA,
    f"{INFO}/WHEEL": "",
    f"{INFO}/RECORD": "",
    f"{INFO}/entry_points.txt": ENTRIES,
    f"{INFO}/licenses/LICENSE": "MIT",
}


def make_wheel(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "pytest_stagegbo-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def make_sdist(folder: Path, names: Iterable[str]) -> Path:
    path = folder / "pytest_stagegbo-1.2.3.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"pytest_stagegbo-1.2.3/{name}"), io.BytesIO())
    return path


@pytest.fixture(autouse=True)
def _renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI's is not installed for unit tests."""
    monkeypatch.setattr(contents, "_renders", lambda text: "# " in text)


def test_a_whole_wheel_is_taken(tmp_path: Path) -> None:
    contents.check_wheel(make_wheel(tmp_path, FILES), SOURCES)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        pytest.param({"pytest_stagegbo/py.typed": None}, "py.typed is missing", id="py.typed"),
        pytest.param({"tests/test_x.py": ""}, "tests/test_x.py does not belong there", id="tests"),
        pytest.param({"pytest_stagegbo/__pycache__/a.pyc": ""}, "a.pyc does not belong there", id="caches"),
        pytest.param({f"{INFO}/licenses/LICENSE": None}, "licenses/LICENSE is missing", id="licence"),
        pytest.param({f"{INFO}/METADATA": METADATA.replace("MIT", "Apache-2.0")}, "without MIT", id="expression"),
        pytest.param({f"{INFO}/METADATA": METADATA.replace("MIT", "My own")}, "My own", id="no expression"),
        pytest.param({f"{INFO}/METADATA": METADATA.replace("# A title", "")}, "long description", id="description"),
        pytest.param({f"{INFO}/entry_points.txt": "[pytest11]\n"}, "lacks stagegbo = ", id="entry points"),
    ],
)
def test_a_wheel_is_refused(change: dict[str, str | None], seen: str, tmp_path: Path) -> None:
    files = {name: text for name, text in {**FILES, **change}.items() if text is not None}
    with pytest.raises(Problem) as caught:
        contents.check_wheel(make_wheel(tmp_path, files), SOURCES)
    assert seen in caught.value.seen


def test_an_sdist_needs_its_sources_and_no_caches(tmp_path: Path) -> None:
    whole = [*SOURCES, *contents.SDIST_FILES]
    contents.check_sdist(make_sdist(tmp_path, whole), SOURCES)
    for names, seen in ((whole[1:], "__init__.py is missing"), ([*whole, ".venv/x"], ".venv/x does not belong")):
        with pytest.raises(Problem) as caught:
            contents.check_sdist(make_sdist(tmp_path, names), SOURCES)
        assert seen in caught.value.seen


def test_the_difference_of_two_wheels_is_named(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = make_wheel(tmp_path, FILES)
    other = make_wheel(tmp_path / "other", {**FILES, "pytest_stagegbo/__init__.py": "x"})
    assert contents.difference(one, other) == "pytest_stagegbo/__init__.py"


@pytest.mark.parametrize(
    ("heading", "tag", "problem"),
    [
        ("## 1.2.3 (unreleased)", "", ""),
        ("## 1.2.3 (2026-12-01)", "v1.2.3", ""),
        ("## 1.2.3 (unreleased)", "v1.2.3", "the day of the release"),
        ("## 1.2.3 (2026-12-01)", "v1.2.4", "is not that of version"),
        ("## 1.2.2 (2026-12-01)", "", "does not begin with 1.2.3"),
    ],
)
def test_the_changelog_begins_with_what_is_released(heading: str, tag: str, problem: str) -> None:
    text = f"# Changelog\n\n{heading}\n\n- x\n\n## 1.0.0 (2026-01-01)\n"
    if not problem:
        contents.check_changelog(text, "1.2.3", tag)
        return
    with pytest.raises(Problem, match=problem):
        contents.check_changelog(text, "1.2.3", tag)


def test_what_is_supported_stands_in_the_classifiers(tmp_path: Path) -> None:
    assert contents.supported(contents.metadata(make_wheel(tmp_path, FILES))) == {"3.10", "3.13"}


@pytest.mark.parametrize(
    ("extra", "python", "names"),
    [
        ("", "3.10", ["pytest", "tomli"]),
        ("", "3.13", ["pytest"]),
        ("s3", "3.13", ["pytest", "boto3"]),
        ("clients", "3.13", ["pytest", "boto3"]),
    ],
)
def test_what_a_wheel_asks_for(extra: str, python: str, names: list[str], tmp_path: Path) -> None:
    asked = environments.requirements(make_wheel(tmp_path, FILES), extra, python)
    assert [each.name for each in asked] == names


def test_the_lowest_versions_that_are_allowed() -> None:
    asked = [Requirement("boto3>=1.36,<2"), Requirement("Rich>=13.7"), Requirement("a>=1.9,>=1.10")]
    assert environments.lowest(asked) == {"boto3": "1.36", "rich": "13.7", "a": "1.10"}
    with pytest.raises(Problem, match="no lower bound"):
        environments.lowest([Requirement("rich<15")])
