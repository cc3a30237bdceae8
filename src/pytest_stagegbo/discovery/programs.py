"""What a program offers, by its command line and its configuration. Pure: files are given by a function.

Configuration holds passwords. What is read from it here is ports, folders and whether TLS is on, and nothing else is
kept.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from typing import TYPE_CHECKING

from msgspec import Struct

from pytest_stagegbo.discovery.records import Environment, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Command", "Files", "environment", "service_of", "unit_command"]


class Files(Struct, frozen=True):
    """A container's files."""

    text: Callable[[str], str | None]
    """A file's content; None: there is none that can be read."""
    names: Callable[[str], tuple[str, ...]]
    """What is in a folder."""
    has: Callable[[str], bool]
    """Whether something is there."""


class Command(Struct, frozen=True):
    """How a program was started, or would be."""

    program: str
    argv: tuple[str, ...]
    """May hold secrets: not to be shown or kept."""
    unit: str = ""
    folder: str = ""
    """Its working directory."""
    ports: tuple[int, ...] = ()
    """That it listens on; empty: it does not run."""
    home: str = ""
    """Its user's home folder."""
    configured: tuple[str, ...] = ()
    """The command line in its unit, where its process shows another."""
    logs: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    """Files with environment variables that its unit names."""

    @property
    def runs(self) -> bool:
        return bool(self.ports)

    def option(self, *names: str) -> str:
        """The value of an option, written `--name value` or `--name=value`; empty: it is not given."""
        for argv in (self.argv, self.configured):
            for at, word in enumerate(argv):
                name, equals, value = word.partition("=")
                if name in names and equals:
                    return value
                if word in names and at + 1 < len(argv):
                    return argv[at + 1]
        return ""

    def seen(self, what: str = "") -> str:
        """What says so, for people."""
        where = f" of {self.unit}" if self.unit else ""
        ports = ", ".join(map(str, self.ports))
        text = f"{self.program}{where} listens on {ports}" if self.runs else f"{self.unit} starts {self.program}"
        return f"{text}; {what}" if what else text


def service_of(command: Command, files: Files) -> Service | None:
    """What a program offers; None: nothing that is known, and it does not run."""
    for names, read in _PROGRAMS:
        if command.program in names or posixpath.basename(command.argv[0] if command.argv else "") in names:
            found = read(command, files)
            if found is not None:
                return found
    stem = command.unit.removesuffix(".service")
    if stem in _BY_UNIT:
        port, name = _BY_UNIT[stem]
        said = environment(command, files) if stem == "botserver" else None
        port = _choose(command, said.port if said is not None and said.port else port)
        why = command.seen(f"/health is what General Bots' {name} answers")
        is_named = command.runs and command.program == stem
        return _service(command, "http", port, why, path="/health", sure="seen" if is_named else "likely")
    if not command.runs:
        return None
    return _service(command, "tcp", command.ports[0], command.seen("its protocol is not known"), sure="unsure")


def unit_command(name: str, text: str, files: Files) -> Command | None:
    """What a unit file starts; None: it starts nothing."""
    values: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith(("#", ";")):
            values.setdefault(key.strip(), []).append(value.strip())
    start = next((line for line in reversed(values.get("ExecStart", [])) if line), "")
    argv = _split(start.lstrip("@-:+!"))
    if not argv:
        return None
    files_of_environment = tuple(value.lstrip("-") for value in values.get("EnvironmentFile", []))
    known = _variables(files_of_environment, files)
    argv = [word for each in argv for word in _expanded(each, known)]
    folder = values.get("WorkingDirectory", [""])[-1].lstrip("-")
    outputs = (*values.get("StandardOutput", []), *values.get("StandardError", []))
    logs = {posixpath.dirname(path) for kind, _, path in (each.partition(":") for each in outputs) if path}
    return Command(
        program=posixpath.basename(argv[0]),
        argv=tuple(argv),
        unit=name,
        folder=folder if folder.startswith("/") else "",
        home=_home(values.get("User", ["root"])[-1], files),
        logs=tuple(sorted(logs)),
        requires=tuple(
            unit
            for key in ("Requires", "Requisite", "BindsTo")
            for value in values.get(key, [])
            for unit in value.split()
            if unit.endswith((".service", ".socket")) and "%" not in unit
        ),
        environment=files_of_environment,
    )


def environment(command: Command, files: Files) -> Environment | None:
    """The file from which BotServer reads where Vault is: one that has `VAULT_ADDR` or `VAULT_TOKEN`."""
    places = [*command.environment, "/opt/gbo/bin/.env"]
    places += [f"{folder}/.env" for folder in (command.folder, posixpath.dirname((command.argv or ("",))[0])) if folder]
    for path in dict.fromkeys(places):
        values = _assignments(files.text(path) or "")
        if {"VAULT_ADDR", "VAULT_TOKEN"} & values.keys():
            return Environment(
                path,
                vault=re.sub(r"//[^/@]*@", "//", values.get("VAULT_ADDR", "")),
                port=_port(values.get("PORT", ""), 0),
                work=values.get("WORK_DIR", ""),
            )
    return None


# Programs -------------------------------------------------------------------------------------------------------


def _postgres(command: Command, files: Files) -> Service | None:
    data = command.option("-D") or (command.folder if command.runs else "")
    texts = [files.text(f"{data}/{name}") or "" for name in ("postgresql.auto.conf", "postgresql.conf") if data]
    if not data:
        clusters = [f"/etc/postgresql/{version}/{name}" for version, name in _clusters(files)]
        texts = [files.text(f"{folder}/postgresql.conf") or "" for folder in clusters[:1]]
        data = _setting(texts, "data_directory")
        if not data and not command.runs:
            return None
    port = command.ports[0] if command.runs else _port(_setting(texts, "port"), _port(command.option("-p"), 5432))
    return _service(command, "postgresql", port, command.seen(f"data in {data}" if data else ""), data=data)


def _clusters(files: Files) -> Iterator[tuple[str, str]]:
    for version in files.names("/etc/postgresql"):
        yield from ((version, name) for name in files.names(f"/etc/postgresql/{version}"))


def _setting(texts: Sequence[str], name: str) -> str:
    """A setting of PostgreSQL's: the first file that has it wins, and in it the last line."""
    for text in texts:
        found = re.findall(rf"^\s*{name}(?:\s*=\s*|\s+)(?:'([^'\n]*)'|([^'\s#]+))", text, re.MULTILINE)
        if found:
            return "".join(found[-1])
    return ""


def _valkey(command: Command, files: Files) -> Service | None:
    words = (*command.argv[1:], *command.configured[1:])
    path = next((word for word in words if word.endswith(".conf")), "")
    text = files.text(path) if path else None
    lines = re.findall(r"""^\s*(port|tls-port|dir)\s+(?:"([^"\n]*)"|'([^'\n]*)'|(\S+))""", text or "", re.MULTILINE)
    values = {name: "".join(words) for name, *words in lines}
    secure = _port(values.get("tls-port", ""), _port(command.option("--tls-port"), 0))
    named = values.get("port") or command.option("--port")
    plain = 0 if named == "0" else _port(named, 6379)
    tls = bool(secure) and (secure in command.ports and plain not in command.ports if command.runs else not plain)
    port = secure if tls else _choose(command, plain)
    data = values.get("dir", "") or (command.folder if command.runs else "")
    data = data if data.startswith("/") and data != "/" else ""
    return _service(command, "valkey", port, command.seen(f"data in {data}" if data else ""), tls=tls, data=data)


def _vault(command: Command, files: Files) -> Service | None:
    place = command.option("-config", "--config")
    paths = [place] if place and not files.names(place) else [f"{place}/{name}" for name in files.names(place)]
    text = "\n".join(files.text(path) or "" for path in paths if path)
    blocks = {_listens_on(block): block for block in reversed(list(_listeners(text)))}
    port = next((port for port in blocks if port in command.ports), next(reversed(blocks), 8200))
    port = _choose(command, port)
    is_dev = any(word in {"-dev", "--dev"} for word in command.argv)
    block = blocks.get(port, "")
    tls = bool(block) and re.search(r'tls_disable"?\s*[:=]\s*"?(true|1)', block, re.IGNORECASE) is None and not is_dev
    if block or is_dev:
        return _service(command, "vault", port, command.seen(f"{place} has TLS {'on' if tls else 'off'}"), tls=tls)
    return _service(command, "vault", port, command.seen("its configuration could not be read"), sure="unsure")


def _listeners(text: str) -> Iterator[str]:
    """Blocks of Vault's configuration, in its own language or JSON, that say where it listens."""
    for found in re.finditer(r'"?listener"?[\s=:\[{]*"?tcp"?\s*[:=]?[\s\[]*\{', text):
        depth = 1
        for at in range(found.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                yield text[found.end() : at]
                break


def _listens_on(block: str) -> int:
    address = re.search(r'(?<!_)address"?\s*[:=]\s*"([^"]+)"', block)
    return _port_of(address[1], 8200) if address else 8200


def _minio(command: Command, files: Files) -> Service | None:
    known = _variables(command.environment, files)
    port = _port_of(command.option("--address") or known.get("MINIO_ADDRESS", ""), 9000)
    console = _port_of(command.option("--console-address"), 0)
    ports = tuple(each for each in command.ports if each != console)
    chosen = port if port in ports or not ports else ports[0]
    valued = [command.option(name) for name in ("--certs-dir", "-S", "--config-dir", "-C")]
    folders = [word for word in command.argv[1:] if word.startswith("/") and word not in valued]
    data = folders[0] if len(folders) == 1 and "{" not in folders[0] else ""
    certificates = next(filter(None, valued[:2]), f"{command.home}/.minio/certs")
    tls = files.has(f"{certificates}/public.crt")
    why = command.seen(f"{certificates}/public.crt is there" if tls else f"data in {data}" if data else "")
    return _service(command, "s3", chosen, why, tls=tls, data=data)


def _rclone(command: Command, _: Files) -> Service | None:
    if command.argv[1:3] != ("serve", "s3"):
        return None
    port = _choose(command, _port_of(command.option("--addr"), 8080))
    valued = [command.option(f"--{name}") for name in _RCLONE_PATHS]
    data = next((word for word in command.argv[3:] if word.startswith("/") and word not in valued), "")
    tls = bool(command.option("--cert"))
    return _service(command, "s3", port, command.seen(f"data in {data}" if data else ""), tls=tls, data=data)


_RCLONE_PATHS = (
    *("cert", "key", "client-ca", "ca-cert", "client-cert", "client-key", "config", "cache-dir", "temp-dir"),
    *("log-file", "htpasswd", "baseurl", "template", "filter-from", "include-from", "exclude-from", "files-from"),
)
"""Options whose values may be paths, and are no folder to serve."""


def _llama(command: Command, _: Files) -> Service | None:
    port = _choose(command, _port_of(command.option("--port"), 8080))
    why = command.seen("llama.cpp answers /health")
    return _service(command, "http", port, why, tls=bool(command.option("--ssl-cert-file")), path="/health")


def _ollama(command: Command, _: Files) -> Service | None:
    return _service(command, "http", _choose(command, 11434), command.seen("Ollama answers /"), path="/")


_PROGRAMS: tuple[tuple[frozenset[str], Callable[[Command, Files], Service | None]], ...] = (
    (frozenset({"postgres", "postmaster"}), _postgres),
    (frozenset({"valkey-server", "redis-server", "keydb-server"}), _valkey),
    (frozenset({"vault", "bao", "openbao"}), _vault),
    (frozenset({"minio"}), _minio),
    (frozenset({"rclone"}), _rclone),
    (frozenset({"llama-server"}), _llama),
    (frozenset({"ollama"}), _ollama),
)
_BY_UNIT = {"botserver": (5858, "BotServer"), "botui": (5859, "BotUI"), "llm": (8081, "model server")}
"""Units of General Bots, whatever program they run: the port that is theirs by default, and a name for people."""


# Parts ----------------------------------------------------------------------------------------------------------


def _service(command: Command, protocol: str, port: int, why: str, **more: object) -> Service:
    executable = next((word for word in (*command.configured[:1], *command.argv[:1]) if word.startswith("/")), "")
    sure = "seen" if command.runs else "likely"
    found: dict[str, object] = {
        "executable": executable,
        "logs": command.logs,
        "requires": command.requires,
        "sure": sure,
        **more,
    }
    return Service(protocol, port, command.program, command.unit, why, **found)  # type: ignore[arg-type]


def _choose(command: Command, port: int) -> int:
    """The port of several that is the service's own: the expected one if the program has it."""
    return port if port in command.ports or not command.ports else command.ports[0]


def _port_of(address: str, default: int) -> int:
    """The port at the end of an address."""
    return _port(address.rpartition(":")[2], default)


def _port(text: str, default: int) -> int:
    """A port that a configuration names; the default where it names none: files may hold anything."""
    return int(text) if re.fullmatch("[0-9]{1,5}", text) and 0 < int(text) < 2**16 else default


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _assignments(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            found[name.strip()] = value.strip().strip("\"'")
    return found


def _variables(paths: Sequence[str], files: Files) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in paths:
        found |= _assignments(files.text(path) or "")
    return found


def _expanded(word: str, known: dict[str, str]) -> list[str]:
    """A word of a unit's command line with its variables replaced, as systemd does."""
    whole = re.fullmatch(r"\$(\w+)", word)
    if whole and whole[1] in known:
        return _split(known[whole[1]])
    return [re.sub(r"\$\{(\w+)\}", lambda found: known.get(found[1], ""), word)]


def _home(user: str, files: Files) -> str:
    for line in (files.text("/etc/passwd") or "").splitlines():
        parts = line.split(":")
        if len(parts) > 5 and parts[0] == user:
            return parts[5]
    return "/root" if user == "root" else f"/home/{user}"
