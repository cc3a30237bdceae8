"""Which Debian mirror this machine uses, read from its own apt sources."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["debian_mirror", "parse_deb822", "parse_list"]

_ETC_APT = Path("/etc/apt")


def debian_mirror(etc_apt: Path = _ETC_APT, *, distribution: str | None = None) -> str:
    """Base address of the Debian archive that this machine's apt uses; empty if it uses none.

    Only a Debian machine's own mirror is taken: another distribution's does not have Debian's suites.
    """
    if (distribution or _distribution()) != "debian":
        return ""
    entries: list[tuple[str, str, list[str]]] = []
    for file in sorted(etc_apt.glob("sources.list.d/*.sources")):
        entries += parse_deb822(file.read_text(errors="replace"))
    for file in [etc_apt / "sources.list", *sorted(etc_apt.glob("sources.list.d/*.list"))]:
        if file.exists():
            entries += parse_list(file.read_text(errors="replace"))
    for uri, suite, components in entries:
        # The archive itself, and no third party's: Debian's main suite by its plain name, component main.
        plain = "-" not in suite and "/" not in suite
        if plain and "main" in components and uri.rstrip("/").endswith("debian") and "://" in uri:
            return uri.rstrip("/")
    return ""


def parse_deb822(text: str) -> list[tuple[str, str, list[str]]]:
    """(address, suite, components) of every enabled binary source in a `.sources` file."""
    found = []
    for stanza in _stanzas(text):
        if "deb" not in stanza.get("types", "").split() or stanza.get("enabled", "yes").lower() in ("no", "false"):
            continue
        components = stanza.get("components", "").split()
        for uri in stanza.get("uris", "").split():
            found += [(uri, suite, components) for suite in stanza.get("suites", "").split()]
    return found


def parse_list(text: str) -> list[tuple[str, str, list[str]]]:
    """(address, suite, components) of every binary source in a one-line-style `.list` file."""
    found = []
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if not words or words[0] != "deb":
            continue
        words = words[1:]
        if words and words[0].startswith("["):
            while words and not words[0].endswith("]"):
                words = words[1:]
            words = words[1:]
        if len(words) >= 2:
            found.append((words[0], words[1], words[2:]))
    return found


def _stanzas(text: str) -> list[dict[str, str]]:
    stanzas: list[dict[str, str]] = [{}]
    field = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if not line.strip():
            stanzas.append({})
        elif line[0].isspace():
            stanzas[-1][field] = f"{stanzas[-1].get(field, '')} {line.strip()}"
        elif ":" in line:
            field, value = (part.strip() for part in line.split(":", 1))
            field = field.lower()
            stanzas[-1][field] = value
    return [stanza for stanza in stanzas if stanza]


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("ID", "")
    except OSError:
        return ""
