"""Another host with a way to the lab's daemon and none to the stage: a network namespace with a cable to the lab's.

The daemon listens on the lab's end of it. Nothing leaves the two namespaces.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.certificates import Pair, make_pair
from tests.lab.support import run

from pytest_stagegbo.incus.hostnet import enter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.support import Ground

PROJECT = "STAGE-FAR"
NETWORK = "farbr0"
HERE, THERE = "10.0.9.2", "10.0.9.1"
"""Addresses of this host, and of the daemon's on the cable."""
CABLE, TRUSTED = "farcable", "far"
"""Name of the cable's end at the daemon's, and of certificates there."""
PATIENCE = 60.0
"""Seconds. What takes longer has got stuck."""
SETTINGS = """
project = "{project}"
network = {{ name = "{network}", address = "10.0.36.1/24", reach = "{reach}" }}
[incus]
endpoint = "https://{there}:8443"
client_cert = "{client.cert}"
client_key = "{client.key}"
server_cert = "{server.cert}"
[containers]
system = false
tables = false
vault = false
llm = false
"""


class Far:
    """A host with certificates for the daemon, and without a way to the stage."""

    def __init__(self, ground: Ground, folder: Path) -> None:
        self.ground = ground
        self.folder = folder
        self.netns = f"far-{ground.lab.paths.netns}"
        self.client, self.another = make_pair(folder, "client"), make_pair(folder, "another")
        self.server = Pair(folder / "server.crt", folder / "nobody else has its key")
        shutil.copy(ground.lab.paths.incus / "server.crt", self.server.cert)
        self.config = folder / "stagegbo.toml"
        self.write()

    def write(self, *, client: Pair | None = None, server: Pair | None = None, reach: str = "direct") -> None:
        """The settings; with other certificates than the right ones for a while."""
        values = {"reach": reach, "project": PROJECT, "network": NETWORK, "there": THERE}
        values_of_files = {"client": client or self.client, "server": server or self.server}
        self.config.write_text(SETTINGS.format(**values, **values_of_files))

    def run(
        self, *args: str, check: bool = True, module: str = "pytest_stagegbo", path: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """`run("status", "--json")`, on this host; `path` is looked through for commands before all others."""
        argv = self._argv("-m", module, *args)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("INCUS", "STAGEGBO"))}
        environment["PATH"] = f"{path}:{environment['PATH']}" if path else environment["PATH"]
        done = subprocess.run(
            argv,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert not check or done.returncode == 0, f"{done.stdout}{done.stderr}"
        return done

    def run_bare(self, *args: str, module: str) -> subprocess.CompletedProcess[str]:
        """The same on a host without /proc, whose Python has nothing that only Linux's has: macOS, as far as can be."""
        code = (
            "import os, runpy, selectors, socket, sys, sysconfig, urllib.request\n"
            "sysconfig.get_config_vars()\n"  # before: it is in a file whose name has the platform's
            "sys.platform = 'darwin'\n"
            "selectors.DefaultSelector = selectors.PollSelector\n"
            "of_linux = ((os, 'pidfd_open setns O_PATH sched_getaffinity'), "
            "(socket, 'AF_NETLINK AF_PACKET SO_PEERCRED'))\n"
            "for place, names in of_linux:\n"
            "    for name in names.split():\n"
            "        if hasattr(place, name): delattr(place, name)\n"
            f"sys.argv = {[module, *args]!r}\n"
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=False)\n"
        )
        script = self.folder / "bare.py"
        script.write_text(code)
        words = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
        argv = [*self._argv()[:-1], *words, sys.executable, str(script)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("INCUS", "STAGEGBO"))}
        return subprocess.run(
            argv, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def _argv(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--", sys.executable, *words]

    @contextlib.contextmanager
    def started(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        """A command on this host, which is killed if it still runs in the end."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("INCUS", "STAGEGBO"))}
        argv = self._argv("-m", "pytest_stagegbo", *args)
        with subprocess.Popen(argv, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def python(self, code: str, **environment: str) -> str:
        """What a program on this host prints."""
        return run(self._argv("-c", code), env={**os.environ, **environment}).stdout

    def relays(self, name: str) -> int:
        """How many programs in a clone carry connections."""
        script = "grep -al '[s]ub break_off' /proc/[0-9]*/cmdline 2>/dev/null || true"
        return len(self.ground.exec(name, "sh", "-c", script, project=PROJECT).split())

    def trust(self, pair: Pair, *more: str) -> None:
        self.ground.incus("config", "trust", "add-certificate", str(pair.cert), "--name", TRUSTED, *more)

    def ip(self, *args: str) -> None:
        """Run `ip` on this host."""
        _ip("-n", self.netns, *args)

    @contextlib.contextmanager
    def forwarded(self, *ends: tuple[str, int]) -> Iterator[None]:
        """Do as `ssh -L address:port:address:port` does, for each of `ends`: listen here, connect there."""
        with contextlib.ExitStack() as stack:
            here, there = (
                stack.enter_context(ThreadPoolExecutor(1, initializer=enter, initargs=(Path("/run/netns") / name,)))
                for name in (self.netns, self.ground.lab.paths.netns)
            )
            for address, port in ends:
                self.ip("address", "add", f"{address}/32", "dev", "lo")
                listener = stack.enter_context(here.submit(socket.create_server, (address, port)).result(10))
                threading.Thread(target=_serve, args=(listener, there, (address, port)), daemon=True).start()
                stack.callback(self.ip, "address", "del", f"{address}/32", "dev", "lo")
                stack.callback(listener.shutdown, socket.SHUT_RDWR)  # wakes up who accepts
            yield


def _serve(listener: socket.socket, there: ThreadPoolExecutor, end: tuple[str, int]) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # both are the end of it
        while True:
            near, _ = listener.accept()
            try:
                far = there.submit(socket.create_connection, end, 10).result(20)
            except OSError:
                near.close()  # as ssh does where the other end is refused
                continue
            threading.Thread(target=_relay, args=(near, far), daemon=True).start()


def _relay(near: socket.socket, far: socket.socket) -> None:
    """Carry bytes both ways until both sides have ended."""
    with near, far, selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
        selector.register(near, selectors.EVENT_READ, far)
        selector.register(far, selectors.EVENT_READ, near)
        while selector.get_map():
            for key, _ in selector.select():
                source, sink = key.fileobj, key.data
                assert isinstance(source, socket.socket)
                if data := source.recv(65536):
                    sink.sendall(data)
                else:
                    selector.unregister(source)
                    sink.shutdown(socket.SHUT_WR)


def _ip(*args: str) -> None:
    run(["ip", *args])


@contextlib.contextmanager
def far_host(ground: Ground, folder: Path) -> Iterator[Far]:
    """The host, while the lab's daemon listens on the cable."""
    far = Far(ground, folder)
    lab = ground.lab.paths.netns
    _remove(far, lab)
    _ip("netns", "add", far.netns)
    try:
        _ip("-n", lab, "link", "add", CABLE, "type", "veth", "peer", "name", "eth0", "netns", far.netns)
        for netns, device, address in ((lab, CABLE, THERE), (far.netns, "eth0", HERE)):
            _ip("-n", netns, "address", "add", f"{address}/24", "dev", device)
            _ip("-n", netns, "link", "set", device, "up")
        _ip("-n", far.netns, "link", "set", "lo", "up")
        ground.incus("config", "set", f"core.https_address={THERE}:8443")
        yield far
    finally:
        _remove(far, lab)


def _remove(far: Far, lab: str) -> None:
    """Also what a run that was killed has left: a daemon opens no new listener for an address that it has already."""
    far.ground.incus("config", "unset", "core.https_address", check=False)
    for found in far.ground.get("certificates", recursion="1"):
        if found["name"] == TRUSTED:
            far.ground.incus("config", "trust", "remove", found["fingerprint"])
    run(["ip", "-n", lab, "link", "delete", CABLE], check=False)
    run(["ip", "netns", "delete", far.netns], check=False)
