"""What tests may leave behind in cache, drive and work folders, made up by chance from a seed; and who looks for it.

Shares no code with the resets: files are made and looked at in the pool, services are spoken to in the words of the
lab's stand-in for BotServer.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_stagegbo.lab.standin.botserver import Cache, Drive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

VALKEY, MINIO, WORK = "opt/gbo/data/valkey", "opt/gbo/data/minio", "opt/gbo/work"
BOTSERVER = "gbo"
ODD = (
    ".hidden", "..", "-rf", "--", "a b", "a\nb", "tab\there", "ünï", "日本", "*", "?", "$(reboot)", "`id`", "'", '"',
    "\\", ";", "&", "|", "<x>", "%2f", "+", "#", "~", "CON", "x" * 200, "é" * 60, "\x01", "\x7f", "\udcff\udcfe",
)  # fmt: skip
KEYS = ("plain", "a b", "ünï/日本", "dot/.hidden", "x&<y>'\"", "100%+1", "-n", "a/b/c/d/e/f/g/h/i/j/k", "-/-")


@dataclass
class ResetTarget:
    """The stage that is polluted.

    Attributes:
        rootfs: Of cache, drive and system, in the pool.
        secrets: Of production, which its clones share.
    """

    hosts: Mapping[str, str]
    rootfs: Mapping[str, Path]
    secrets: Mapping[str, Mapping[str, Any]]
    execute: Callable[..., Any]
    """`execute("cache", ["true"])`"""
    open: list[Any] = field(default_factory=list)
    """Connections that a round leaves open."""

    def cache(self) -> Cache:
        return Cache({**self.secrets["cache"], "host": self.hosts["cache"]})

    def drive(self) -> Drive:
        return Drive({**self.secrets["drive"], "host": self.hosts["drive"]})

    def close(self) -> None:
        for each in self.open:
            with contextlib.suppress(OSError):
                each.close()
        self.open.clear()


class Polluter:
    """Rounds of pollution.

    Args:
        seed: Of everything; a round of the same seed and number is the same again.
        rare: How likely a container gets something that only a restart clears, which takes longer.
    """

    def __init__(self, place: ResetTarget, seed: int, rare: float = 0.01) -> None:
        self._place = place
        self._seed = seed
        self._rare = rare

    def round(self, number: int) -> list[str]:
        """Pollute; what was done, for whoever has to find out what was not cleared."""
        chance = random.Random(f"{self._seed} {number}")
        done: list[str] = []
        containers = chance.sample(["cache", "drive", "system"], chance.choice((1, 1, 1, 2, 2, 3)))
        if "cache" in containers:
            done += self._cache(chance)
        if "drive" in containers:
            done += self._drive(chance)
        if "system" in containers:
            done += [f"work {what}" for what in self._files(chance, "system", WORK, chance.randint(1, 6))]
            if chance.random() < self._rare:
                done.append("work of BotServer's own")
                script = "mkdir -p /opt/gbo/work/own.gbai; echo 1 >/opt/gbo/work/own.gbai/a.ast"
                self._place.execute("system", ["runuser", "-u", BOTSERVER, "--", "sh", "-c", script])
        return done

    # -- Valkey

    def _cache(self, chance: random.Random) -> list[str]:
        cache = self._place.cache()
        done = []
        try:
            for _ in range(chance.randint(1, 8)):
                database, key = chance.choice((0, 0, 0, chance.randrange(16))), f"key:{chance.randrange(1000)}"
                commands = chance.choice(_TYPES)(chance, key)
                cache.call("SELECT", database)
                for command in commands:
                    cache.call(*command)
                done.append(f"db{database} {commands[0][0]}")
                if chance.random() < 0.1:
                    cache.call("PEXPIRE", key, chance.choice((1, 50, 100000)))
            if chance.random() < 0.3:
                done.append(self._client(chance))
            if chance.random() < 0.1:
                done += [f"valkey {what}" for what in self._files(chance, "cache", VALKEY, 1)]
            if chance.random() < 0.05:
                done.append("dump.rdb")
                (self._place.rootfs["cache"] / VALKEY / "dump.rdb").write_bytes(b"REDIS0011\xfe\x00\xff" + bytes(8))
            if chance.random() < 0.05:
                done.append("temp-rewriteaof")
                (self._place.rootfs["cache"] / VALKEY / "appendonlydir").joinpath("temp-rewriteaof-1.aof").write_text(
                    "x"
                )
            if chance.random() < self._rare * 3:
                command = chance.choice(_SPECIAL)
                done.append(" ".join(map(str, command)))
                cache.call(*command)
        finally:
            cache.close()
        return done

    def _client(self, chance: random.Random) -> str:
        """A client that stays: subscribed, waiting, in the middle of a transaction, or idle."""
        client = self._place.cache()
        self._place.open.append(client)
        words = chance.choice(_CLIENTS)
        for each in words[:-1]:
            client.call(*each)
        parts = [str(word).encode() for word in words[-1]]
        client.sock.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
        return f"client {words[-1][0]}"

    # -- S3

    def _drive(self, chance: random.Random) -> list[str]:
        drive, done = self._place.drive(), []
        if chance.random() < 0.8:
            for _ in range(chance.choice((1, 1, 2))):
                bucket = (
                    f"{chance.choice(('bot', 'my-bot', 'data-1'))}{chance.randrange(100)}{chance.choice(('', '.gbx'))}"
                )
                with contextlib.suppress(OSError):  # it may be there
                    drive.call("PUT", f"/{bucket}")
                for _ in range(chance.randint(0, 6)):
                    key = f"{chance.choice(KEYS)}{chance.randrange(100)}"
                    drive.call("PUT", f"/{bucket}/{key}", body=bytes(chance.choice((0, 1, 100, 5000))))
                done.append(f"bucket {bucket}")
                if chance.random() < 0.25:
                    answer = drive.call("POST", f"/{bucket}/large", {"uploads": ""})
                    upload = re.findall(rb"<UploadId>(.*?)</UploadId>", answer)[0].decode()
                    drive.call("PUT", f"/{bucket}/large", {"uploadId": upload, "partNumber": "1"}, bytes(1000))
                    done.append("upload")
                if chance.random() < 0.1:
                    done.append(self._half(bucket))
        if chance.random() < 0.5 or not done:
            done += [f"minio {what}" for what in self._files(chance, "drive", MINIO, chance.randint(1, 4))]
        if chance.random() < 0.2:
            idle = socket.create_connection((drive.host, drive.port), 5)
            self._place.open.append(idle)
            done.append("idle connection")
        return done

    def _half(self, bucket: str) -> str:
        """A request whose body never ends."""
        drive = self._place.drive()
        sock = socket.create_connection((drive.host, drive.port), 5)
        self._place.open.append(sock)
        head = f"PUT /{bucket}/half HTTP/1.1\r\nHost: {drive.host}\r\nContent-Length: 100000\r\n\r\n"
        sock.sendall(head.encode() + bytes(2000))
        return "half a request"

    # -- files

    def _files(self, chance: random.Random, container: str, folder: str, count: int) -> list[str]:
        """Files of all kinds, straight into a folder."""
        root = self._place.rootfs[container] / folder
        done = []
        for _ in range(count):
            parent = root
            for _ in range(chance.choice((0, 0, 1, 2, 12))):
                parent = parent / f"{chance.choice(ODD).replace('..', '..d')}{chance.randrange(10)}"
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                parent.mkdir(parents=True, exist_ok=True)
                path = parent / f"{chance.choice(ODD)}{chance.randrange(1000)}"
                kind = chance.choice(sorted(_KINDS))
                _KINDS[kind](path)
                done.append(f"{kind} {os.fsencode(path.relative_to(root))!r}")
        return done


def _folder_without_rights(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("x")
    path.chmod(0)


def _read_only(path: Path) -> None:
    path.write_text("x")
    path.chmod(0o400)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


def _old(path: Path) -> None:
    path.write_text("x")
    os.utime(path, (0, 0))


def _hard_link(path: Path) -> None:
    path.write_text("x")
    path.with_name(f"{path.name[:100]}.link").hardlink_to(path)


def _sock(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


_KINDS: Mapping[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"x" * 100),
    "empty": lambda path: path.touch(),
    "folder": lambda path: path.mkdir(),
    "folder without rights": _folder_without_rights,
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "link to a folder": lambda path: path.symlink_to("/etc"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "fifo": os.mkfifo,
    "socket": _sock,
    "read only": _read_only,
    "sparse": _sparse,
    "old": _old,
    "hard link": _hard_link,
}

Commands = "list[tuple[Any, ...]]"
_TYPES: tuple[Callable[[random.Random, str], list[tuple[Any, ...]]], ...] = (
    lambda chance, key: [("SET", key, "x" * chance.choice((0, 1, 100, 20000)))],
    lambda chance, key: [("SETEX", f"{key}:e", 100, chance.random())],
    lambda _, key: [("RPUSH", f"{key}:l", *range(20))],
    lambda _, key: [("SADD", f"{key}:s", "a", "b", 3)],
    lambda _, key: [("ZADD", f"{key}:z", 1, "a", 2.5, "b")],
    lambda _, key: [("HSET", f"{key}:h", "name", "value", "other", 1)],
    lambda _, key: [("XADD", f"{key}:x", "*", "f", "v"), ("XGROUP", "CREATE", f"{key}:x", "g", "$")],
    lambda _, key: [("PFADD", f"{key}:p", "a", "b", "c")],
    lambda _, key: [("SETBIT", f"{key}:b", 1000, 1)],
    lambda _, key: [("GEOADD", f"{key}:g", 13.4, 52.5, "Berlin")],
    lambda chance, _: [("EVAL", f"redis.call('SET', KEYS[1], {chance.random()})", 1, "script")],
    lambda chance, _: [("SCRIPT", "LOAD", f"return {chance.random()}")],
    lambda _, __: [("FUNCTION", "LOAD", "REPLACE", "#!lua name=left\nredis.register_function('f', function() end)")],
    lambda _, key: [("INCRBY", f"{key}:n", 5), ("APPEND", f"{key}:n", "6")],
)
_SPECIAL: tuple[tuple[Any, ...], ...] = (
    ("BGREWRITEAOF",),
    ("BGSAVE", "SCHEDULE"),
    ("SAVE",),
    ("CONFIG", "SET", "appendonly", "no"),
    ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),
    ("CONFIG", "SET", "save", ""),
    ("CONFIG", "RESETSTAT"),
    ("ACL", "SETUSER", "left", "on", "nopass", "+@all", "~*"),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("CLIENT", "PAUSE", "300", "WRITE"),
    ("FLUSHALL",),
)
_CLIENTS: tuple[tuple[tuple[Any, ...], ...], ...] = (
    (("SUBSCRIBE", "news"),),
    (("PSUBSCRIBE", "*"),),
    (("MONITOR",),),
    (("BLPOP", "never", 0),),
    (("XREAD", "BLOCK", 0, "STREAMS", "never", "$"),),
    (("MULTI",), ("SET", "queued", 1)),
    (("WATCH", "some"),),
    (("CLIENT", "TRACKING", "ON", "REDIRECT", "0", "BCAST"),),
    (("PING",),),
)


# Who looks ------------------------------------------------------------------------------------------------------


def residues(place: ResetTarget, *, restarted: bool = False) -> list[str]:
    """Everything that a clean cache, drive and system do not have; empty when they are clean.

    Args:
        restarted: Valkey was, and has saved what it had, which must be nothing.
    """
    found = _left_files(place, restarted=restarted)
    return [*_keys(place), *_clients_and_settings(place), *_objects(place), *found]


def _keys(place: ResetTarget) -> Iterator[str]:
    cache = place.cache()
    try:
        for line in cache.call("INFO", "keyspace").decode().splitlines():
            if line.startswith("db"):
                number = line[2:].partition(":")[0]
                cache.call("SELECT", number)
                yield f"keys in db{number}: {cache.call('KEYS', '*')[:5]}"
        for number in range(16):
            cache.call("SELECT", number)
            if cache.call("DBSIZE") != b"0":
                yield f"keys in db{number}"
        if cache.call("FUNCTION", "LIST"):
            yield "a function"
        info = dict(line.partition(":")[::2] for line in cache.call("INFO", "everything").decode().splitlines())
        if info["number_of_cached_scripts"] != "0":
            yield "a cached script"
        if info["role"] != "master" or info["aof_enabled"] != "1":
            yield f"role {info['role']}, aof_enabled {info['aof_enabled']}"
        cache.call("SET", "writable", 1)  # no pause, no replica
        cache.call("DEL", "writable")
    finally:
        cache.close()


def _clients_and_settings(place: ResetTarget) -> Iterator[str]:
    cache = place.cache()
    try:
        clients = cache.call("CLIENT", "LIST").decode().splitlines()
        if len(clients) > 1:
            yield f"clients of Valkey: {clients}"
        if len(cache.call("ACL", "LIST")) != 1:
            yield "another user of Valkey"
        policy = cache.call("CONFIG", "GET", "maxmemory-policy")[1]
        if policy != b"noeviction":
            yield f"maxmemory-policy {policy}"
        if cache.call("CONFIG", "GET", "save")[1] != b"60 1":
            yield "other save points"
    finally:
        cache.close()


def _objects(place: ResetTarget) -> Iterator[str]:
    for bucket in place.drive().buckets():
        yield f"bucket {bucket}"


def forgotten_uploads(place: ResetTarget) -> list[str]:
    """Uploads that the server still knows of in buckets that the pollution used. Makes and removes the buckets."""
    drive, found = place.drive(), []
    for bucket in ("bot1", "data-12"):
        drive.call("PUT", f"/{bucket}")
        with contextlib.suppress(OSError):  # 404 when there are none
            found += re.findall(r"<UploadId>.*?</UploadId>", drive.call("GET", f"/{bucket}", {"uploads": ""}).decode())
        drive.call("DELETE", f"/{bucket}")
    return found


def _left_files(place: ResetTarget, *, restarted: bool) -> Iterator[str]:
    for container, folder in (("drive", MINIO), ("system", WORK)):
        yield from (f"{container}: {path.name!r}" for path in sorted((place.rootfs[container] / folder).iterdir()))
    root = place.rootfs["cache"] / VALKEY
    for parent, _, files in os.walk(root):
        for name in files:
            path = Path(parent) / name
            shown = str(path.relative_to(root))
            if re.fullmatch(r"appendonlydir/appendonly\.aof\.\d+\.incr\.aof", shown):
                # Whoever looked wrote a key and deleted it.
                if b"$8\r\nwritable" not in path.read_bytes() and path.stat().st_size:
                    yield f"cache: {shown} has {path.stat().st_size} bytes"
                if re.search(rb"key:|queued|script", path.read_bytes()):
                    yield f"cache: {shown} has keys"
            elif re.fullmatch(r"appendonlydir/appendonly\.aof\.\d+\.base\.rdb", shown) or (
                restarted and shown == "dump.rdb"
            ):
                if path.read_bytes()[_behind_facts(path.read_bytes())] != 0xFF:  # the end of an empty one
                    yield f"cache: {shown} has keys"
            elif shown != "appendonlydir/appendonly.aof.manifest":
                yield f"cache: {shown!r}"
        for path in Path(parent).iterdir():
            if not stat.S_ISREG(path.lstat().st_mode) and path != root / "appendonlydir":
                yield f"cache: {str(path.relative_to(root))!r}"


def _behind_facts(rdb: bytes) -> int:
    """Where the facts about the server end that an RDB file begins with: its time is one, and may hold any byte."""
    position = 9  # behind REDIS0011 or VALKEY080
    while rdb[position] == 0xFA:
        position += 1
        for _ in ("name", "value"):
            first = rdb[position]
            if first >> 6 == 3:  # a number of 1, 2 or 4 bytes
                position += 1 + (1, 2, 4)[first & 0x3F]
            elif first >> 6 == 0:
                position += 1 + first
            else:
                position += 2 + ((first & 0x3F) << 8 | rdb[position + 1])
    return position
