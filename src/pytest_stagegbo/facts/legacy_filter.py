"""The rules of `iptables-legacy` in the words of nftables, so that one reading serves both. Pure.

The kernel keeps them beside those of nftables and asks both, while `nft list ruleset` does not show them.
"""

from __future__ import annotations

import contextlib
import shlex
from typing import Any

__all__ = ["parse_rules"]

HOOKS = {"PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward", "OUTPUT": "output"}
TABLES = frozenset({"raw", "mangle", "filter"})
"""Those that can drop. `nat` can't, and `security` is for what SELinux labels."""
INTERFACES = {"-i": "iifname", "-o": "oifname"}
ADDRESSES = {"-s": "saddr", "-d": "daddr"}
STATES = frozenset({"--ctstate", "--state"})
TARGETS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return", "QUEUE": "queue"}
PASSING = frozenset({"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TRACE", "TCPMSS", "TOS", "DSCP"})
"""Targets after which the packet goes on to the next rule."""
UNKNOWN: dict[str, Any] = {"xt": None}
"""What can't be told from here."""


def parse_rules(text: str) -> list[dict[str, Any]]:
    """Return chains and rules as `nft -j list ruleset` prints them.

    Args:
        text: What `iptables-legacy-save` prints.
    """
    found: list[dict[str, Any]] = []
    table, numbers = "", dict[str, int]()
    for line in text.splitlines():
        kind, rest = line[:1], line[1:]
        if kind == "*":
            table, numbers = rest.strip(), {}
        elif kind == ":" and table in TABLES:
            name, policy, *_ = rest.split()
            chain: dict[str, Any] = {"family": "ip", "table": table, "name": name}
            if policy != "-":
                chain |= {"type": "filter", "hook": HOOKS.get(name, ""), "policy": policy.lower()}
            found.append({"chain": chain})
        elif line.startswith("-A ") and table in TABLES:
            _, name, *words = shlex.split(line)
            numbers[name] = numbers.get(name, 0) + 1
            rule = {"family": "ip", "table": table, "chain": name, "handle": numbers[name]}
            found.append({"rule": {**rule, "expr": _expressions(words)}})
    return found


def _expressions(words: list[str]) -> list[dict[str, Any]]:
    """What a rule asks, and its verdict."""
    found: list[dict[str, Any]] = []
    verdict: dict[str, Any] | None = None
    rest, op = list(words), "=="
    while rest:
        word = rest.pop(0)
        if word == "!":
            op = "!="
            continue
        value = rest.pop(0) if rest and not rest[0].startswith("-") and rest[0] != "!" else ""
        if word in {"-j", "-g"}:
            verdict = _verdict(value, "jump" if word == "-j" else "goto")
            break  # what follows says how the target does it
        if word in {"-m", "--comment"}:
            pass
        elif word in INTERFACES:
            name = f"{value[:-1]}*" if value.endswith("+") else value
            found.append(_match(op, {"meta": {"key": INTERFACES[word]}}, name))
        elif word in ADDRESSES:
            found.append(_match(op, {"payload": {"protocol": "ip", "field": ADDRESSES[word]}}, _network(value)))
        elif word == "-p":
            found.append(_match(op, {"meta": {"key": "l4proto"}}, int(value) if value.isdigit() else value))
        elif word in STATES:
            found.append(_match(op, {"ct": {"key": "state"}}, value.lower().split(",")))
        else:
            found.append(UNKNOWN)
        op = "=="
    return found if verdict is None else [*found, verdict]


def _match(op: str, left: dict[str, Any], right: Any) -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def _verdict(target: str, way: str) -> dict[str, Any]:
    if target in PASSING:
        return {"log": None}
    return {TARGETS[target]: None} if target in TARGETS else {way: {"target": target}}


def _network(text: str) -> Any:
    address, _, length = text.partition("/")
    with contextlib.suppress(ValueError):
        return {"prefix": {"addr": address, "len": int(length)}} if length else address
    return None  # a mask that is no prefix
