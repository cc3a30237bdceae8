"""Empty environments, and what is installed into them: a wheel alone, with what it asks for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tools import contents
from tools.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Environment", "Installs", "lowest", "requirements", "version_of"]

UV = str(Path(sys.executable).parent / "uv")
"""Makes an environment in a tenth of a second, and keeps what it has downloaded."""


def version_of(python: str) -> str:
    """`3.10` and so on."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"{python} does not run", done.stderr.strip())
    return done.stdout.strip()


def requirements(wheel: Path, extra: str, python: str) -> list[Requirement]:
    """What the wheel asks for with this extra on this version of Python. An extra may name others of the package."""
    found = contents.metadata(wheel)
    own = canonicalize_name(found["Name"])
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    asked: dict[str, Requirement] = {}
    extras = [extra]
    for each in extras:  # grows
        for text in found.get_all("Requires-Dist", []):
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({**environment, "extra": each}):
                continue
            if canonicalize_name(requirement.name) == own:
                extras.extend(sorted(requirement.extras - set(extras)))
            else:
                asked[canonicalize_name(requirement.name)] = requirement
    return list(asked.values())


def lowest(asked: Iterable[Requirement]) -> dict[str, str]:
    """By name, the lowest version that is allowed.

    Raises:
        Problem: one has no lower bound.
    """
    found: dict[str, str] = {}
    for requirement in asked:
        bounds = [each.version for each in requirement.specifier if each.operator in {">=", "==", "~="}]
        if not bounds:
            raise Problem(f"{requirement} has no lower bound, so nobody knows whether the lowest works")
        found[canonicalize_name(requirement.name)] = max(bounds, key=Version)
    return found


class Environment:
    """A virtual environment that begins empty.

    Args:
        interpreter: That it is made with.
    """

    def __init__(self, folder: Path, interpreter: str) -> None:
        self.folder = folder
        self.python = str(folder / "bin" / "python")
        shutil.rmtree(folder, ignore_errors=True)
        self._uv("venv", "--quiet", "--no-project", "--python", interpreter, str(folder))

    def install(self, *arguments: str) -> None:
        self._uv("pip", "install", "--quiet", "--python", self.python, *arguments)

    def installed(self) -> dict[str, str]:
        """By name, the versions of all that is installed."""
        lines = self._uv("pip", "freeze", "--quiet", "--python", self.python).splitlines()
        pinned = (re.match(r"([\w.-]+)(?:==(\S+)| @)", line) for line in lines)
        return {canonicalize_name(each[1]): each[2] or "" for each in pinned if each}

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """What the environment's Python printed. Raises `Problem` if it failed."""
        ours = ("PYTHON", "PYTEST", "STAGEGBO")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        done = subprocess.run(
            [self.python, *arguments],
            env={**clean, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", **(env or {})},
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise Problem(f"{' '.join(arguments)} ended with {done.returncode}", f"{done.stdout}{done.stderr}".strip())
        return done.stdout

    def _uv(self, *arguments: str) -> str:
        done = subprocess.run([UV, *arguments], cwd=self.folder.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Problem(f"uv {' '.join(arguments)} ended with {done.returncode}", done.stderr.strip())
        return done.stdout


class Installs:
    """Tries a wheel in environments of its own.

    Args:
        folder: For the environments.
        smoke: The tests that are run in each.
    """

    def __init__(self, wheel: Path, folder: Path, smoke: Path) -> None:
        self._wheel = wheel
        self._folder = folder
        self._smoke = smoke
        folder.mkdir(parents=True, exist_ok=True)

    def try_out(self, version: str, python: str, extra: str, resolution: str) -> None:
        """Install the wheel alone, and run the tests of `smoke`.

        Args:
            version: Of the interpreter: `3.10`.
            extra: Empty: without any.
            resolution: `lowest`: each dependency as old as is allowed, and what they need as new as can be; `newest`.

        Raises:
            Problem: it can't be installed, or does not work.
        """
        what = f"Python {version}, {extra or 'no extra'}, {resolution} dependencies"
        began = time.monotonic()
        asked = requirements(self._wheel, extra, version)
        pinned = lowest(asked) if resolution == "lowest" else {}
        environment = Environment(self._folder / "one", python)
        constraints = self._folder / "constraints.txt"
        constraints.write_text("".join(f"{name}=={bound}\n" for name, bound in pinned.items()))
        wheel = f"pytest-stagegbo{f'[{extra}]' if extra else ''} @ {self._wheel.as_uri()}"
        try:
            environment.install("--constraint", str(constraints), wheel)
            installed = environment.installed()
            other = {name for name, bound in pinned.items() if Version(installed[name]) != Version(bound)}
            if other:
                raise Problem(f"not the lowest versions of {', '.join(sorted(other))} were installed")
            place = self._folder / "smoke"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            shutil.copyfile(self._smoke, place / "test_smoke.py")
            names = " ".join(requirement.name for requirement in asked)
            env = {"SMOKE_DISTRIBUTIONS": names, "SMOKE_VERSION": contents.metadata(self._wheel)["Version"]}
            chosen = ["-k", "not every_module"] if extra else []  # no module imports what an extra brings
            words = ("-I", "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, str(place))
            environment.run(*words, env=env, cwd=place)
        except Problem as problem:
            raise Problem(f"{what}: {problem}", problem.seen) from problem
        print(f"{what}: works ({time.monotonic() - began:.1f} s)", flush=True)
