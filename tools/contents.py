"""What a wheel and an sdist have to contain, and what must not be in them."""

from __future__ import annotations

import email
import re
import tarfile
import zipfile
from typing import TYPE_CHECKING

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from tools.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from email.message import Message
    from pathlib import Path

__all__ = ["check_changelog", "check_sdist", "check_wheel", "difference", "metadata", "supported"]

PACKAGE = "pytest_stagegbo"
SOURCE = f"src/{PACKAGE}/"
WANTED = {
    "Name": "pytest-stagegbo",
    "Description-Content-Type": "text/markdown",
}
ENTRIES = (
    "[console_scripts]",
    "stagegbo = pytest_stagegbo.cli:main",
    "[pytest11]",
    "stagegbo = pytest_stagegbo.plugin",
)
UNWANTED = re.compile(r"(^|/)(__pycache__|\.git|\.venv|\.tox|\.\w+_cache|dist|build|node_modules)(/|$)|\.py[co]$")
"""In no package."""
SDIST_FILES = ("PKG-INFO", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md", "tests/conftest.py")


def metadata(wheel: Path) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return email.message_from_string(archive.read(name).decode())


def supported(found: Message) -> set[str]:
    """Versions of Python that the package says it supports: `3.10` and so on."""
    return {
        each.rpartition(" ")[2]
        for each in found.get_all("Classifier", [])
        if re.search(r":: Python :: \d+\.\d+$", each)
    }


def check_wheel(wheel: Path, sources: Iterable[str]) -> None:
    """Raise `Problem` unless the wheel has the package, its licence, its metadata, and nothing else.

    Args:
        sources: The files below `src` that git knows.
    """
    found = metadata(wheel)
    wrong = [f"{key} is {found[key]}, not {value}" for key, value in WANTED.items() if found[key] != value]
    wrong += _wrong_licence(found)
    if not _renders(str(found.get_payload())):
        wrong.append("PyPI would not show the long description")
    _refuse(wheel, wrong)
    own = f"{PACKAGE}-{found['Version']}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entries = archive.read(f"{own}/entry_points.txt").decode().splitlines()
    wanted = {name.removeprefix("src/") for name in sources if name.startswith(SOURCE)}
    wanted |= {f"{own}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    wanted |= {f"{own}/licenses/{name}" for name in found.get_all("License-File", [])}
    _refuse(
        wheel,
        [
            *(f"{name} is missing" for name in sorted(wanted - names)),
            *(f"{name} does not belong there" for name in sorted(names - wanted)),
            *(f"entry_points.txt lacks {line}" for line in ENTRIES if line not in entries),
            *([] if f"{PACKAGE}/py.typed" in names else ["py.typed is missing, so nobody's type checker looks at it"]),
        ],
    )


def _wrong_licence(found: Message) -> list[str]:
    """The package's own licence is MIT; an SPDX expression may add those of what others wrote in it."""
    expression = found["License-Expression"] or ""
    try:
        parts = canonicalize_license_expression(expression).split(" AND ")
    except InvalidLicenseExpression as error:
        return [str(error)]
    wrong = [] if "MIT" in parts else [f"License-Expression is {expression!r}, without MIT"]
    return wrong if "LICENSE" in found.get_all("License-File", []) else [*wrong, "no License-File is LICENSE"]


def _renders(text: str) -> bool:
    """Whether PyPI's renderer makes a page of a long description."""
    from readme_renderer import markdown

    page = markdown.render(text)
    return page is not None and "<h1" in page


def check_sdist(sdist: Path, sources: Iterable[str]) -> None:
    """Raise `Problem` unless the sdist has the sources, what builds them, and no caches."""
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    top = sdist.name.removesuffix(".tar.gz") + "/"
    names = {member.name.removeprefix(top) for member in members}
    wanted = {*(name for name in sources if name.startswith(SOURCE)), *SDIST_FILES}
    _refuse(
        sdist,
        [
            *(f"{name} is missing" for name in sorted(wanted - names)),
            *(f"{member.name} is outside of {top}" for member in members if not member.name.startswith(top)),
            *(f"{name} does not belong there" for name in sorted(names) if UNWANTED.search(name)),
        ],
    )


def check_changelog(text: str, version: str, tag: str = "") -> None:
    """Raise `Problem` unless the changelog begins with this version; for a release, with its date, too.

    Args:
        tag: That is released, if one is.
    """
    first = next((line for line in text.splitlines() if line.startswith("## ")), "")
    if tag and tag != f"v{version}":
        raise Problem(f"the tag {tag} is not that of version {version}", "see `version` in pyproject.toml")
    date = r"\d{4}-\d{2}-\d{2}"
    if not re.fullmatch(rf"## {re.escape(version)} \(({date}{'' if tag else '|unreleased'})\)", first):
        day = "the day of the release" if tag else "its day, or unreleased"
        raise Problem(f"CHANGELOG.md does not begin with {version} and {day}", first)


def difference(first: Path, second: Path) -> str:
    """Names of what differs between two packages."""
    one, two = _parts(first), _parts(second)
    differing = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
    return ", ".join(differing) or "only the order, times or modes of their files"


def _parts(path: Path) -> dict[str, bytes]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(path) as tar:
        files = ((member.name, tar.extractfile(member)) for member in tar.getmembers())
        return {name: file.read() for name, file in files if file is not None}


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        raise Problem(f"{path.name} is not as it has to be", "\n".join(problems))
