"""Sessions of pytest with a small stage of their own in the lab that everybody shares: only cache and drive.

What tests in such a session need is in the `conftest.py` that each of them gets.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from tests.lab import forkserver

from pytest_stagegbo.engine.stage import StageEngine
from pytest_stagegbo.incus.connection import Connection
from pytest_stagegbo.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pytest_stagegbo.lab import Lab

PROJECT = "STAGE-PLUG"
PATIENCE = 120.0
"""Seconds. What takes longer has got stuck."""
SETTINGS = """
project = "STAGE-PLUG"
incus.endpoint = "{socket}"
network = {{ name = "plugbr0", address = "10.0.5.1/24" }}
timeouts.lock = 60
[containers]
system = false
tables = false
vault = false
llm = false
[credentials]
cache = {{ password_env = "PLUG_CACHE" }}
drive = {{ access_key_env = "PLUG_ACCESS", secret_key_env = "PLUG_SECRET" }}
"""
CONFTEST = '''
import os, socket, sys
from pathlib import Path
import pytest

HERE = Path(__file__).parent
FILE = "/opt/gbo/data/minio/plug"


def note(text):
    """A line in the file `notes`; short ones of several processes do not mix."""
    with (HERE / "notes").open("a") as file:
        file.write(text + "\\n")


def block(name):
    """Say so in a file, and wait for ever."""
    (HERE / name).touch()
    while True:
        __import__("signal").pause()


class Keys:
    """Valkey, without a library."""

    def __init__(self, service):
        self._socket = socket.create_connection((service.host, service.port), 30)
        self._file = self._socket.makefile("rb")
        self("AUTH", os.environ["PLUG_CACHE"])

    def __call__(self, *words):
        parts = [f"${len(str(word).encode())}\\r\\n{word}\\r\\n" for word in words]
        self._socket.sendall(f"*{len(parts)}\\r\\n{''.join(parts)}".encode())
        return self._answer()

    def _answer(self):
        line = self._file.readline().decode().strip()
        kind, rest = line[:1], line[1:]
        if kind == "$":
            return None if rest == "-1" else self._file.read(int(rest) + 2)[:-2].decode()
        if kind == "*":
            return [self._answer() for _ in range(int(rest))]
        assert kind in "+:", line
        return int(rest) if kind == ":" else rest

    def close(self):
        self._file.close()
        self._socket.close()


@pytest.fixture
def keys(stage_cache):
    client = Keys(stage_cache)
    yield client
    client.close()


class Files:
    """A file below the folder that `drive` is wiped at."""

    def __init__(self, service):
        self._exec = service.exec

    def put(self, text):
        self._exec("sh", "-c", f"printf %s '{text}' >{FILE}")

    def get(self):
        return self._exec("cat", FILE, check=False).stdout


@pytest.fixture
def files(stage_drive):
    return Files(stage_drive)


if "PLUG_COUNT" in os.environ:
    from pytest_stagegbo.engine.stage import StageEngine
    original = StageEngine.provision

    def provision(self, *, recreate=False):
        note(f"provision {recreate}")
        return original(self, recreate=recreate)

    StageEngine.provision = provision
'''


class Plug:
    """Runs pytest in a folder of its own against the small stage."""

    def __init__(self, pytester: pytest.Pytester, engine: StageEngine) -> None:
        self.pytester = pytester
        self.engine = engine
        self.folder = pytester.path
        pytester.makeconftest(CONFTEST)

    def write(self, **modules: str) -> None:
        """`test_one="..."`: modules of tests, each with what they all import."""
        prefix = "import os, signal\nimport pytest\nfrom conftest import block, note\n"
        for name, code in modules.items():
            (self.folder / f"{name}.py").write_text(prefix + _plain(code))

    def settings(self, more: str) -> None:
        """Further tables of settings."""
        with (self.folder / "stagegbo.toml").open("a") as file:
            file.write(more)

    def run(self, *args: str, patience: float = PATIENCE) -> pytest.RunResult:
        """Run pytest to its end, which comes within seconds of `patience`."""
        basetemp = self.folder.parent / f"{self.folder.name}-basetemp"
        argv = [sys.executable, "-m", "pytest", f"--basetemp={basetemp}", "--stage-lab", "-p", "no:cacheprovider"]
        began = time.monotonic()
        done = forkserver.run([*argv, *args], cwd=self.folder, timeout=patience)
        assert "INTERNALERROR" not in done.stdout
        print(done.stdout, done.stderr, sep="\n")
        seconds = time.monotonic() - began
        return pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), seconds)

    @contextlib.contextmanager
    def start(self, *args: str) -> Iterator[Started]:
        """Start pytest in a process group of its own, which is killed in the end."""
        argv = [sys.executable, "-m", "pytest", "--stage-lab", "-p", "no:cacheprovider", *args]
        with (self.folder / "output").open("w") as output:
            process = subprocess.Popen(
                argv,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = Started(process, self.folder / "output")
        try:
            yield started
        finally:
            started.signal_all(signal.SIGKILL)
            process.wait(PATIENCE)

    def stagegbo(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run the command line against the small stage."""
        argv = [sys.executable, "-m", "pytest_stagegbo", "--lab", *args]
        return forkserver.run(argv, cwd=self.folder, timeout=PATIENCE)

    @property
    def notes(self) -> list[str]:
        file = self.folder / "notes"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def locks(self) -> Path:
        """The folder of the stage's locks."""
        return self.engine.lock().folder

    def created(self) -> Mapping[str, str]:
        """When each clone was made."""
        return {name: each.created_at for name, each in self.engine.reader.instances(PROJECT).items()}

    def is_whole(self, *before: str) -> None:
        """The stage is there, answers, and nobody holds it: the next session begins at once.

        Args:
            before: Modules that the session begins with, each with one test.
        """
        self.write(test_whole=WHOLE)
        options = ("--stage-lock-timeout=2", "--stage-provision=never", "-p", "no:xdist")
        self.run(*before, "test_whole.py", *options).assert_outcomes(passed=2 + len(before))
        assert not list(self.locks.glob("*.unfinished"))


WHOLE = """
    def test_used(keys, files):
        assert keys("PING") == "PONG"
        files.put("used")
        assert files.get() == "used"
    @pytest.mark.stage_reset("cache", "drive")
    def test_reset(keys, files):
        assert keys("DBSIZE") == 0
        assert files.get() == ""
"""


class Started:
    """A session of pytest that goes on."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    def signal_all(self, number: int) -> None:
        """To pytest and its workers, as a terminal does on Ctrl-C."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something; fail with the session's output when it ends before that."""
        wait_until(lambda: condition() or self.process.poll() is not None, self.text)
        assert condition(), self.text()

    def end(self) -> int:
        """Wait for the end; pytest's exit status."""
        return self.process.wait(PATIENCE)

    def text(self) -> str:
        return self._output.read_text()


def wait_until(condition: Callable[[], object], explain: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.005)


def open_plug(pytester: pytest.Pytester, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Plug:
    """The small stage's folder, with the passwords of production's copies in the environment."""
    credentials = lab.credentials()
    monkeypatch.setenv("PLUG_CACHE", credentials["cache"]["password"])
    monkeypatch.setenv("PLUG_ACCESS", credentials["drive"]["access_key"])
    monkeypatch.setenv("PLUG_SECRET", credentials["drive"]["secret_key"])
    # Where the last two are set, pytest's short summary repeats errors in full.
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    file = pytester.path / "stagegbo.toml"
    file.write_text(SETTINGS.format(socket=lab.socket))
    settings = load(file, pytester.path, {}).settings
    return Plug(pytester, StageEngine(settings, Connection(settings.incus)))


def _plain(code: str) -> str:
    lines = code.splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[indent:] for line in lines)
