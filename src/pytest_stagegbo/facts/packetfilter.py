"""Whether the host's own packet filter drops what the stage needs: a reading of nftables' rules, as JSON. Pure.

iptables of today, Docker, firewalld and ufw all end in these rules. A packet is taken through each chain that would
see it. Incus's own tables are left out: they are the stage's isolation. What a rule asks that can't be known here (a
mark, a rate, an extension of iptables) makes the answer doubtful, not wrong: see `Drop.sure`.

Rules that iptables made name its extensions in JSON (`xt`), and not what they ask. nft's text says that for those that
it can translate, such as the state of a connection, on which ufw's and Docker's rules depend: see `with_states`.
"""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Drop", "find_drop", "has_extensions", "with_states"]

Expression = dict[str, Any]
_DEEPEST = 32
_TCP = 6
_PASSING = {"counter", "log", "mangle", "notrack", "comment", "set", "flow", "meter"}


class Drop(Struct, frozen=True):
    """A rule or a policy that stops packets of the stage."""

    what: str
    """Which packets."""
    chain: str
    """`ip filter FORWARD`: family (or `iptables-legacy`), table and chain."""
    rule: str
    """`policy drop`, or the rule's handle and verdict."""
    sure: bool
    """Whether no rule before it may let them through that can't be read from here."""
    command: str
    """What lets them through."""

    def __str__(self) -> str:
        return f"{self.what} are dropped by the host's packet filter: chain {self.chain}, {self.rule}"


class _Packet(Struct, frozen=True):
    """TCP over IPv4."""

    what: str
    hook: str
    families: frozenset[str]
    iif: str | None
    """Empty: there is none, as for what the host sends itself. None: unknown."""
    oif: str | None
    source: IPv4Address
    target: IPv4Address
    state: str
    """State of the connection: `new` or `established`."""
    bridge: str


class _Walk(Struct):
    """A packet on its way through one base chain."""

    packet: _Packet
    doubt: bool = False


def has_extensions(listed: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rules ask something that JSON does not tell."""
    return any("xt" in expression for each in listed for expression in each.get("rule", {}).get("expr") or ())


def with_states(listed: Sequence[Mapping[str, Any]], text: str) -> Sequence[Mapping[str, Any]]:
    """The rules, with the states of connections that iptables' `conntrack` asks for.

    Args:
        text: What `nft -a list ruleset` prints.
    """
    states = dict(_states(text))
    return [_with_state(each, states) if "rule" in each else each for each in listed]


def _states(text: str) -> Iterator[tuple[tuple[str, str, int], list[str]]]:
    """By family, table and handle, the states in rules that ask for them once."""
    family = table = ""
    for line in text.splitlines():
        words = line.split()
        if line.startswith("table "):
            family, table = words[1:3]
        elif words.count("ct") == 1 and words[-3:-1] == ["#", "handle"]:
            place = words.index("ct")
            if words[place + 1] == "state" and words[place + 2].replace(",", "").isalpha():
                yield (family, table, int(words[-1])), words[place + 2].split(",")


def _with_state(each: Mapping[str, Any], states: Mapping[tuple[str, str, int], list[str]]) -> Mapping[str, Any]:
    rule = each["rule"]
    expressions = rule.get("expr") or ()
    right = states.get((rule["family"], rule["table"], rule.get("handle", 0)))
    conntrack = {"type": "match", "name": "conntrack"}
    if right is None or [expression["xt"] for expression in expressions if "xt" in expression].count(conntrack) != 1:
        return each
    match = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": right}}
    told = [match if expression.get("xt") == conntrack else expression for expression in expressions]
    return {**each, "rule": {**rule, "expr": told}}


def find_drop(
    listed: Sequence[Mapping[str, Any]],
    bridge: str,
    own: IPv4Address,
    clones: Sequence[IPv4Address],
    *,
    called: bool,
    tool: str = "nft",
) -> Drop | None:
    """The first drop of what the stage needs: a sure one if there is any.

    Args:
        listed: What `nft -j list ruleset` prints, below `nftables`.
        bridge: The stage's.
        own: The host's address on it.
        clones: Addresses of two clones at least, or of one.
        called: Whether packets within a bridge pass the IP filter (`net.bridge.bridge-nf-call-iptables`).
        tool: Who keeps the rules: `nft`, or `iptables-legacy`, whose rules have numbers instead of handles.
    """
    filters = _Filters(listed, tool)
    found = [drop for packet in _packets(bridge, own, clones, called) for drop in filters.drops(packet)]
    return next((drop for drop in found if drop.sure), found[0] if found else None)


def _packets(bridge: str, own: IPv4Address, clones: Sequence[IPv4Address], called: bool) -> Iterator[_Packet]:
    ip, link = frozenset({"ip", "inet"}), frozenset({"bridge"})
    first, other = clones[0], clones[-1]
    out = _Packet("packets of the host to the clones", "output", ip, "", bridge, own, first, "new", bridge)
    yield out
    back = _Packet("answers of the clones to the host", "input", ip, bridge, "", first, own, "established", bridge)
    yield from (replace(back, hook="prerouting"), back)
    if first != other:
        within = _Packet("packets between the clones", "forward", ip, bridge, bridge, first, other, "new", bridge)
        if called:
            yield from (replace(within, hook="prerouting", oif=""), within)
            yield replace(within, state="established", source=other, target=first)
        yield replace(within, families=link, iif=None, oif=None)


class _Filters:
    """Chains, rules and sets by their names."""

    def __init__(self, listed: Sequence[Mapping[str, Any]], tool: str) -> None:
        self._legacy = "" if tool == "nft" else tool
        self._kind = "" if self._legacy else "with handle "
        self.chains: dict[tuple[str, str, str], Mapping[str, Any]] = {}
        self.rules: defaultdict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
        self.sets: dict[tuple[str, str, str], Any] = {}
        for each in listed:
            for kind, value in each.items():
                if kind in {"chain", "rule", "set", "map"} and value.get("table") != "incus":
                    name = value["chain"] if kind == "rule" else value["name"]
                    key = (value["family"], value["table"], name)
                    if kind == "chain":
                        self.chains[key] = value
                    elif kind == "rule":
                        self.rules[key].append(value)
                    else:
                        self.sets[key] = value.get("elem") or []

    def drops(self, packet: _Packet) -> Iterator[Drop]:
        for key, chain in self.chains.items():
            if chain.get("hook") != packet.hook or key[0] not in packet.families or chain.get("type") == "nat":
                continue
            walk = _Walk(packet)
            verdict, where, rule = self._through(walk, key, 0)
            if verdict is None:
                verdict, where, rule = chain.get("policy", "accept"), key, f"policy {chain.get('policy')}"
            if verdict in {"drop", "reject"}:
                place = [self._legacy, *where[1:]] if self._legacy else where
                yield Drop(packet.what, " ".join(place), rule, not walk.doubt, self._command(packet, key))

    def _through(
        self, walk: _Walk, key: tuple[str, str, str], depth: int
    ) -> tuple[str | None, tuple[str, str, str], str]:
        """The verdict on the packet, and where it fell; None: the chain has none."""
        for rule in self.rules[key] if depth < _DEEPEST else ():
            matches: bool | None = True
            for expression in rule.get("expr") or ():
                (name, value), *_ = expression.items()
                if name == "xt" and isinstance(value, dict) and value.get("type") == "target":
                    name = "reject" if value.get("name") == "REJECT" else "log"
                if name == "match":
                    matches = _both(matches, self._matches(walk.packet, value, key))
                elif name in {"accept", "drop", "reject", "return", "jump", "goto", "vmap", "queue"}:
                    verdict, target = name, ""
                    if name == "vmap":
                        found = self._mapped(walk.packet, value, key)
                        matches = _both(matches, found if isinstance(found, bool) or found is None else True)
                        verdict, target = found if isinstance(found, tuple) else ("jump", "")
                    elif name in {"jump", "goto"}:
                        target = value["target"]
                    if matches is False:
                        break
                    if matches is None:
                        walk.doubt |= verdict not in {"drop", "reject", "return"}
                        break
                    if verdict == "queue":
                        return "accept", key, ""
                    if verdict == "return":
                        return None, key, ""
                    if verdict in {"accept", "drop", "reject"}:
                        return verdict, key, f"rule {self._kind}{rule.get('handle')}: {verdict}"
                    below = self._through(walk, (key[0], key[1], target), depth + 1)
                    if below[0] is not None or verdict == "goto":
                        return below
                    break
                elif name not in _PASSING:
                    matches = _both(matches, None)
                if matches is False:
                    break
        return None, key, ""

    def _matches(self, packet: _Packet, match: Expression, key: tuple[str, str, str]) -> bool | None:
        value = _value(packet, match.get("left"))
        if value is None or isinstance(value, bool):
            return value
        equal = self._among(value, match.get("right"), key)
        return equal if equal is None or match.get("op") != "!=" else not equal

    def _mapped(self, packet: _Packet, vmap: Expression, key: tuple[str, str, str]) -> tuple[str, str] | bool | None:
        value = _value(packet, vmap.get("key"))
        if value is None or isinstance(value, bool):
            return value
        data = vmap.get("data")
        pairs = data.get("set", []) if isinstance(data, dict) else self.sets.get((*key[:2], str(data).lstrip("@")), [])
        for element, verdict in pairs:
            if self._among(value, element, key):
                (name, target), *_ = verdict.items()
                return name, (target or {}).get("target", "")
        return False

    def _among(self, value: str | IPv4Address, right: Any, key: tuple[str, str, str]) -> bool | None:
        """Whether a value is one of what a rule names; None: that can't be read."""
        if isinstance(right, dict) and "set" in right:
            right = right["set"]
        if isinstance(right, str) and right.startswith("@"):
            right = self.sets.get((*key[:2], right[1:]))
        if isinstance(right, list):
            found = [self._among(value, each, key) for each in right]
            return True if True in found else None if None in found else False
        if isinstance(right, dict) and "elem" in right:
            return self._among(value, right["elem"].get("val"), key)
        if isinstance(value, IPv4Address):
            return _holds(right, value)
        if isinstance(right, int) and value == "tcp":  # a host without /etc/protocols has numbers
            return right == _TCP
        if not isinstance(right, str):
            return None
        return value.startswith(right[:-1]) if right.endswith("*") else value == right

    def _command(self, packet: _Packet, base: tuple[str, str, str]) -> str:
        """What lets the stage's packets through, in the words of whoever made the chain."""
        family, table, chain = base
        name, names = packet.bridge, {found for *where, found in self.chains if where == [family, table]}
        if table == "firewalld":
            return f"firewall-cmd --permanent --zone=trusted --add-interface={name} && firewall-cmd --reload"
        if family == "bridge":
            return f"nft insert rule bridge {table} {chain} meta ibrname {name} meta obrname {name} accept"
        ways = {
            "forward": (f"-i {name} -o {name}", f"iifname {name} oifname {name}"),
            "output": (f"-o {name}", f"oifname {name}"),
        }
        answers = (
            f"-i {name} -m conntrack --ctstate ESTABLISHED,RELATED",
            f"iifname {name} ct state established,related",
        )
        iptables, nft = ways.get(packet.hook, answers)
        if "ufw-user-forward" in names and packet.hook == "forward":
            return f"ufw route allow in on {name} out on {name}"
        if "ufw-user-output" in names and packet.hook == "output":
            return f"ufw allow out on {name}"
        if family == "ip" and table in {"filter", "raw", "mangle"} and chain.isupper():
            place = "DOCKER-USER" if "DOCKER-USER" in names and packet.hook == "forward" else chain
            program = self._legacy or "iptables"
            return f"{program} -t {table} -I {place} {iptables} -j ACCEPT".replace("-t filter ", "")
        return f"nft insert rule {family} {table} {chain} {nft} accept"


def _both(one: bool | None, other: bool | None) -> bool | None:
    """And, of what may be unknown."""
    return False if one is False or other is False else None if one is None or other is None else True


def _value(packet: _Packet, left: Any) -> str | IPv4Address | bool | None:
    """What the packet has of what a rule asks for; None: nobody knows; False: it has no such thing."""
    if not isinstance(left, dict):
        return None
    if "meta" in left:
        known: dict[str, str | None] = {
            "iifname": packet.iif,
            "iif": packet.iif,
            "oifname": packet.oif,
            "oif": packet.oif,
            "ibrname": packet.bridge,
            "obrname": packet.bridge,
            "l4proto": "tcp",
            "protocol": "ip",
            "nfproto": "ipv4",
        }
        found = known.get(left["meta"].get("key"))
        return False if found == "" else found
    if "ct" in left:
        key = left["ct"].get("key")
        return packet.state if key == "state" else False if key == "status" else None  # no address is rewritten
    if "payload" in left:
        kind, field = left["payload"].get("protocol"), left["payload"].get("field")
        if kind == "ip" and field in {"saddr", "daddr"}:
            return packet.source if field == "saddr" else packet.target
        if kind == "ip" and field == "protocol":
            return "tcp"
        if kind == "ether" and field == "type":
            return "ip"
        return False if kind in {"udp", "icmp", "icmpv6", "ip6", "arp", "sctp", "dccp", "vlan"} else None
    return None


def _holds(right: Any, value: IPv4Address) -> bool | None:
    """Whether an address is the one, or in the network or range, that a rule names."""
    try:
        if isinstance(right, str):
            return value == ip_address(right)
        if "prefix" in right:
            return value in ip_network(f"{right['prefix']['addr']}/{right['prefix']['len']}", strict=False)
        if "range" in right:
            low, high = map(IPv4Address, right["range"])
            return low <= value <= high
    except (TypeError, ValueError, KeyError):
        return None
    return None
