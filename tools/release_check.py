#!/usr/bin/env python3
"""Whether this tree can be released: built twice alike, complete, and usable when it is installed alone.

    .venv/bin/python tools/release_check.py [--short] [--python PATH] [--extra NAME] [--tag vVERSION] [--keep FOLDER]

`./dev release-check` names all interpreters that the package supports. The packages are built from the files that git
knows, as they are now: twice, in folders with other names, other times and other modes of files.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import contents, environments
from tools.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[1]
TIMES = (1_000_000_000, 1_700_000_000)
"""Of the files that the two builds see, in seconds since 1970. What is built must not depend on them."""
MODES = ((0o644, 0o755), (0o600, 0o700))
"""Of files and programs, as git leaves them with two usual umasks."""


def git(*arguments: str) -> str:
    """What git printed.

    Raises:
        Problem: this is no clone, or it has no history.
    """
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"git {' '.join(arguments)}: {done.stderr.strip()}", "run this in a clone of the repository")
    return done.stdout


def commit_time() -> str:
    """For SOURCE_DATE_EPOCH: when the commit was made that is checked out."""
    return git("log", "-1", "--format=%ct").strip()


def copy_source(folder: Path, number: int) -> None:
    """Copy the files that git knows, with times and modes of one of the two builds."""
    for name in git("ls-files", "-z").split("\0"):
        source, copy = ROOT / name, folder / name
        if not name or not source.is_file():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        copy.chmod(MODES[number][1 if os.access(source, os.X_OK) else 0])
        os.utime(copy, (TIMES[number], TIMES[number]))


def build(source: Path, into: Path, *, directly: bool) -> list[Path]:
    """Build the sdist and the wheel.

    Args:
        directly: Build the wheel from the tree. Otherwise it is built from the sdist, as an installer would.
    """
    argv = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into)]
    argv += ["--sdist", "--wheel"] if directly else []
    zone = "Pacific/Kiritimati" if directly else "UTC"
    run([*argv, str(source)], env={"SOURCE_DATE_EPOCH": commit_time(), "TZ": zone})
    return sorted(into.iterdir())


def run(argv: Sequence[str], *, env: dict[str, str] | None = None) -> str:
    """What a command printed on standard output. Raises `Problem` with all that it printed, if it failed."""
    done = subprocess.run(
        argv, env={**os.environ, **(env or {})}, cwd="/", capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise Problem(f"{' '.join(argv)} ended with {done.returncode}", f"{done.stdout}{done.stderr}".strip())
    return done.stdout


def build_twice(folder: Path) -> tuple[Path, Path]:
    """The wheel and the sdist, once both builds are the same, byte for byte."""
    built: list[list[Path]] = []
    for number, name in enumerate(("first", "a-second-folder")):
        source, into = folder / name / "pytest-stagegbo", folder / name / "dist"
        copy_source(source, number)
        built.append(build(source, into, directly=bool(number)))
    names = [[path.name for path in each] for each in built]
    if names[0] != names[1]:
        raise Problem("the two builds have other names", f"{names[0]} and {names[1]}")
    for first, second in zip(*built, strict=True):
        if first.read_bytes() != second.read_bytes():
            raise Problem(f"{first.name} differs from build to build", contents.difference(first, second))
    (wheel,) = (path for path in built[0] if path.suffix == ".whl")
    (sdist,) = (path for path in built[0] if path.name.endswith(".tar.gz"))
    return wheel, sdist


def check_packages(wheel: Path, sdist: Path) -> None:
    """Check what is in both, and what PyPI would say of them."""
    sources = [name for name in git("ls-files", "-z", "--", "src").split("\0") if name]
    contents.check_wheel(wheel, sources)
    contents.check_sdist(sdist, sources)
    tools = Path(sys.executable).parent
    run([str(tools / "twine"), "check", "--strict", str(wheel), str(sdist)])
    # W002: a licence lies beside what it is for, and with all others.
    run([str(tools / "check-wheel-contents"), "--ignore", "W002", str(wheel)])


@contextlib.contextmanager
def workplace(keep: Path | None) -> Iterator[Path]:
    """A temporary folder. What is built is copied from it to `keep`."""
    with tempfile.TemporaryDirectory(prefix="stagegbo-release-") as name:
        folder = Path(name)
        yield folder
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for path in (folder / "first" / "dist").iterdir():
                shutil.copy(path, keep)


def check(arguments: argparse.Namespace) -> None:
    with workplace(arguments.keep) as folder:
        wheel, sdist = build_twice(folder)
        print(f"built twice alike: {wheel.name}, {sdist.name}", flush=True)
        check_packages(wheel, sdist)
        metadata = contents.metadata(wheel)
        contents.check_changelog((ROOT / "CHANGELOG.md").read_text(), metadata["Version"], arguments.tag)
        print("contents, metadata, long description and changelog are right", flush=True)
        installs = environments.Installs(wheel, folder / "environments", ROOT / "tools" / "smoke.py")
        pythons = {environments.version_of(path): path for path in arguments.python or [sys.executable]}
        if arguments.short:
            version, python = next(iter(pythons.items()))
            installs.try_out(version, python, "", "newest")
            return
        for version, python in pythons.items():
            for extra in ["", *(arguments.extra or metadata.get_all("Provides-Extra", []))]:
                for resolution in ("lowest", "newest"):
                    installs.try_out(version, python, extra, resolution)
        missing = contents.supported(metadata) - pythons.keys()
        if missing:
            raise Problem(
                f"nothing was installed on Python {', '.join(sorted(missing))}, which the package says it supports",
                "install these interpreters, or name them with --python",
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--short", action="store_true", help="install on one Python, without extras")
    parser.add_argument("--python", action="append", metavar="PATH", help="an interpreter; may be given again")
    parser.add_argument("--extra", action="append", metavar="NAME", help="only this extra; may be given again")
    parser.add_argument("--tag", default="", metavar="vVERSION", help="the tag to release; it must be of this version")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy wheel and sdist to this folder")
    arguments = parser.parse_args(argv)
    try:
        check(arguments)
    except Problem as problem:
        print(f"{problem}\n{problem.seen}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
