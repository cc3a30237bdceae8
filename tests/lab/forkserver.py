"""Programs of Python that begin at once: children of a process that has imported what they need.

Tests run this package some hundreds of times, and most of each short run would be imports. A child has descriptors,
environment, folder, arguments, exit status and end of its own, as every process has.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
CLIENTS = "filelock msgspec netrc pylxd pylxd.models requests rich.console rich.progress rich._emoji_codes tomli"
ROOMS = sorted(path.parent.name for path in (ROOT / "src" / "pytest_stagegbo").glob("*/__init__.py"))
ROOMS.remove("plugin")  # pytest itself has to import it
IMPORTED = {
    "pytest_stagegbo": f"{CLIENTS} {' '.join(f'pytest_stagegbo.{name}.*' for name in ROOMS)}",
    "pytest": f"{CLIENTS} pytest _pytest.* pygments.lexers.python pygments.formatters.terminal",
}
"""By module that is run. What pytest is to rewrite or to watch it has to import itself."""


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Do as `subprocess.run` does with `python -m MODULE ...` or `python -c CODE ...`: no input, output captured.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    assert argv[0] == sys.executable, argv
    assert argv[1] in {"-m", "-c"}, argv
    server = _server(argv[2] if argv[2] in IMPORTED else "pytest_stagegbo")
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        connection.connect(server)
        request = {"argv": argv[1:], "env": dict(env or os.environ), "cwd": str(cwd or Path.cwd())}
        socket.send_fds(connection, [json.dumps(request).encode()], [output.fileno() for output in outputs])
        child = int(connection.recv(100))
        connection.settimeout(timeout)
        try:
            status = int(connection.recv(100))
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            assert timeout is not None
            raise subprocess.TimeoutExpired(argv, timeout, *(_text(output) for output in outputs)) from None
        return subprocess.CompletedProcess(list(argv), status, *(_text(output) for output in outputs))


def _text(output: Any) -> str:
    output.seek(0)
    return str(output.read().decode(errors="replace")).replace("\r\n", "\n")


@functools.cache
def _server(kind: str) -> str:
    """Start a server; the name that it listens at. It ends with this process, whose end of a pipe it reads from."""
    name = f"\0stagegbo-{os.getpid()}-{kind}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(name)
    listener.listen(64)
    reading, writing = os.pipe()
    argv = [sys.executable, "-m", "tests.lab.forkserver", str(listener.fileno()), str(reading), *IMPORTED[kind].split()]
    process = subprocess.Popen(argv, cwd=ROOT, pass_fds=[listener.fileno(), reading], stdin=subprocess.DEVNULL)
    listener.close()
    os.close(reading)
    atexit.register(_end, process, writing)
    return name


def _end(process: subprocess.Popen[bytes], writing: int) -> None:
    os.close(writing)
    process.wait(10)


# In the server ----------------------------------------------------------------------------------------------------


def serve(listener: socket.socket, parent: int) -> dict[str, Any]:
    """Fork for each request, twice: who runs the program, and who tells of its end. Returns in the former."""
    import select

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who tell leave nothing behind
    while True:
        ready, _, _ = select.select([listener.fileno(), parent], [], [])
        if parent in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        os.close(parent)
        text, outputs, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        child = os.fork()
        if child:
            connection.send(str(child).encode())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with contextlib.suppress(OSError):  # nobody waits any more
                connection.send(str(status).encode())
            os._exit(0)
        connection.close()
        for number, output in enumerate(outputs, 1):
            os.dup2(output, number)
            os.close(output)
        request: dict[str, Any] = json.loads(text)
        return request


def become(request: Mapping[str, Any]) -> None:
    """Run what is asked for, as the interpreter would."""
    import runpy

    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    how, what, *rest = request["argv"]
    sys.path[0] = request["cwd"] if how == "-m" else ""
    if how == "-m":
        sys.argv = [what, *rest]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *rest]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def import_all(names: Sequence[str]) -> None:
    """`package.*` is with every module in it; what is not installed is nobody's."""
    import importlib
    import pkgutil

    for name in names:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name.removesuffix(".*"))
            if name.endswith(".*"):
                for found in pkgutil.iter_modules(module.__path__, f"{module.__name__}."):
                    with contextlib.suppress(ImportError):
                        importlib.import_module(found.name)


if __name__ == "__main__":
    import_all(sys.argv[3:])
    gc.freeze()  # no child looks for garbage among what was imported
    become(serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])))
