"""Whether the host's packet filter drops what the stage needs, read from rules as nft prints them."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from pytest_stagegbo.facts.legacy_filter import parse_rules
from pytest_stagegbo.facts.packetfilter import Drop, find_drop, has_extensions, with_states

OWN, CLONES = IPv4Address("10.0.3.1"), [IPv4Address("10.0.3.10"), IPv4Address("10.0.3.11")]
ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}


def chain(name: str, hook: str = "", policy: str = "accept", table: str = "ip filter") -> dict[str, Any]:
    family, its = table.split()
    base = {"type": "filter", "hook": hook, "prio": 0, "policy": policy} if hook else {}
    return {"chain": {"family": family, "table": its, "name": name, "handle": 1, **base}}


def rule(where: str, *expressions: dict[str, Any], table: str = "ip filter") -> dict[str, Any]:
    family, its = table.split()
    return {"rule": {"family": family, "table": its, "chain": where, "handle": 7, "expr": list(expressions)}}


def match(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def field(name: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"payload": {"protocol": "ip", "field": name}}, "right": right}}


def states(*right: str) -> dict[str, Any]:
    return {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": list(right)}}


def jump(target: str) -> dict[str, Any]:
    return {"jump": {"target": target}}


def found(*listed: dict[str, Any], called: bool = True) -> Drop | None:
    return find_drop(listed, "stagebr0", OWN, CLONES, called=called)


DOCKER = [
    chain("DOCKER-USER"),
    chain("DOCKER-FORWARD"),
    chain("FORWARD", "forward", "drop"),
    rule("FORWARD", {"counter": {}}, jump("DOCKER-USER")),
    rule("FORWARD", {"counter": {}}, jump("DOCKER-FORWARD")),
    rule("DOCKER-FORWARD", match("oifname", "docker0"), {"xt": {"type": "match", "name": "conntrack"}}, ACCEPT),
    rule("DOCKER-FORWARD", match("iifname", "docker0"), match("oifname", "docker0", "!="), ACCEPT),
]
FIREWALLD = "inet firewalld"
FORWARD = [
    chain("filter_FORWARD", "forward", table=FIREWALLD),
    chain("zones", table=FIREWALLD),
    rule("filter_FORWARD", states("established", "related"), ACCEPT, table=FIREWALLD),
    rule(
        "filter_FORWARD",
        {"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}},
        ACCEPT,
        table=FIREWALLD,
    ),
    rule("filter_FORWARD", match("iifname", "lo"), ACCEPT, table=FIREWALLD),
    rule("filter_FORWARD", jump("zones"), table=FIREWALLD),
    rule("filter_FORWARD", {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}, table=FIREWALLD),
]


def test_docker_drops_between_the_clones_where_bridges_call_the_filter() -> None:
    drop = found(*DOCKER)
    assert drop is not None
    assert str(drop) == "packets between the clones are dropped by the host's packet filter: " + (
        "chain ip filter FORWARD, policy drop"
    )
    assert drop.sure
    assert drop.command == "iptables -I DOCKER-USER -i stagebr0 -o stagebr0 -j ACCEPT"
    assert found(*DOCKER, called=False) is None
    through = rule("DOCKER-USER", match("iifname", "stagebr0"), match("oifname", "stagebr0"), ACCEPT)
    assert found(*DOCKER, through) is None


def test_firewalld_rejects_what_no_zone_lets_through() -> None:
    drop = found(*FORWARD)
    assert drop is not None
    assert drop.sure
    assert drop.rule == "rule with handle 7: reject"
    assert drop.command.startswith("firewall-cmd --permanent --zone=trusted --add-interface=stagebr0")
    zone = [chain("trusted", table=FIREWALLD), rule("trusted", ACCEPT, table=FIREWALLD)]
    pairs = [["eth0", {"goto": {"target": "public"}}], ["stagebr0", {"goto": {"target": "trusted"}}]]
    vmap = {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": pairs}}}
    assert found(*FORWARD, *zone, rule("zones", vmap, table=FIREWALLD)) is None


XT = {"xt": {"type": "match", "name": "conntrack"}}
"""All that nft says in JSON of `-m conntrack --ctstate ...`."""


def numbered(handle: int, name: str, *expressions: dict[str, Any]) -> dict[str, Any]:
    made = rule(name, *expressions)
    made["rule"]["handle"] = handle
    return made


@pytest.mark.parametrize(
    ("states", "sure"),
    [
        pytest.param("ct state related,established", True, id="ufw's-first-rule"),
        pytest.param("ct state new,related,established", None, id="new-ones-pass"),
        pytest.param('xt match "conntrack"', False, id="an-nft-that-can-not-translate-it"),
        pytest.param("ct state related,established ct status dnat", False, id="more-than-a-state"),
    ],
)
def test_states_that_iptables_asks_for_are_read_from_nft_s_text(states: str, sure: bool | None) -> None:
    listed = [
        chain("FORWARD", "forward", "drop"),
        chain("ufw-user-forward"),
        numbered(55, "FORWARD", XT, {"counter": {"packets": 80, "bytes": 6198}}, ACCEPT),
    ]
    assert has_extensions(listed)
    text = "table ip6 filter {\n\t\tct state new accept # handle 55\n}\ntable ip filter { # handle 1\n"
    text += f"\tchain FORWARD {{ # handle 2\n\t\t{states} counter packets 80 bytes 6198 accept # handle 55\n\t}}\n}}\n"
    drop = find_drop(with_states(listed, text), "stagebr0", OWN, CLONES, called=True)
    assert (drop.sure if drop is not None else None) is sure


@pytest.mark.parametrize(("target", "dropped"), [("REJECT", True), ("LOG", False)])
def test_targets_of_iptables_are_verdicts_or_none(target: str, dropped: bool) -> None:
    drop = found(chain("FORWARD", "forward"), rule("FORWARD", {"xt": {"type": "target", "name": target}}))
    assert (drop is not None) is dropped


@pytest.mark.parametrize(
    ("rules", "what", "command"),
    [
        pytest.param(
            [chain("OUTPUT", "output", "drop")],
            "packets of the host to the clones",
            "iptables -I OUTPUT -o stagebr0 -j ACCEPT",
            id="output",
        ),
        pytest.param(
            [chain("OUTPUT", "output"), rule("OUTPUT", match("l4proto", 6), DROP)],
            "packets of the host to the clones",
            "iptables -I OUTPUT -o stagebr0 -j ACCEPT",
            id="a protocol's number",
        ),
        pytest.param(
            [chain("OUTPUT", "output", "drop"), chain("ufw-user-output")],
            "packets of the host to the clones",
            "ufw allow out on stagebr0",
            id="ufw",
        ),
        pytest.param(
            [chain("FORWARD", "forward", "drop"), chain("ufw-user-forward")],
            "packets between the clones",
            "ufw route allow in on stagebr0 out on stagebr0",
            id="ufw forward",
        ),
        pytest.param(
            [chain("in", "input", "drop", "inet fw"), rule("in", states("new"), ACCEPT, table="inet fw")],
            "answers of the clones to the host",
            "nft insert rule inet fw in iifname stagebr0 ct state established,related accept",
            id="replies",
        ),
        pytest.param(
            [chain("f", "forward", "drop", "bridge fence")],
            "packets between the clones",
            "nft insert rule bridge fence f meta ibrname stagebr0 meta obrname stagebr0 accept",
            id="within bridges",
        ),
        pytest.param(
            [
                chain("f", "forward", table="inet fw"),
                rule("f", field("daddr", {"prefix": {"addr": "10.0.0.0", "len": 8}}), DROP, table="inet fw"),
            ],
            "packets between the clones",
            "nft insert rule inet fw f iifname stagebr0 oifname stagebr0 accept",
            id="a rule by addresses",
        ),
    ],
)
def test_other_ways_to_stop_the_stage(rules: list[dict[str, Any]], what: str, command: str) -> None:
    drop = found(*rules)
    assert drop is not None
    assert (drop.what, drop.command, drop.sure) == (what, command, True)


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param([], id="nothing"),
        pytest.param([chain("FORWARD", "forward")], id="accepted"),
        pytest.param([chain("c", "forward", "drop", "inet incus")], id="Incus's own"),
        pytest.param(
            [chain("INPUT", "input", "drop"), rule("INPUT", states("established"), ACCEPT)], id="replies pass"
        ),
        pytest.param([chain("c", "forward"), rule("c", match("iifname", "eth*"), DROP)], id="others' interfaces"),
        pytest.param([chain("c", "forward"), rule("c", match("mark", 1), DROP)], id="a rule that can't be read"),
        pytest.param(
            [chain("c", "forward"), rule("c", field("saddr", {"set": ["192.168.0.1", "192.168.0.2"]}), DROP)],
            id="a set",
        ),
        pytest.param([chain("c", "forward"), rule("c", match("l4proto", "udp"), DROP)], id="another protocol"),
        pytest.param([chain("c", "forward"), rule("c", match("l4proto", 17), DROP)], id="another protocol's number"),
        pytest.param([chain("c", "forward", table="ip6 filter", policy="drop")], id="IPv6"),
        pytest.param([chain("c", "forward"), rule("c", jump("c"))], id="a loop"),
    ],
)
def test_what_stops_nothing_of_the_stage(rules: list[dict[str, Any]]) -> None:
    assert found(*rules) is None


def test_a_rule_before_it_that_cannot_be_read_makes_a_drop_doubtful() -> None:
    drop = found(chain("FORWARD", "forward", "drop"), rule("FORWARD", match("mark", 1), ACCEPT))
    assert drop is not None
    assert not drop.sure


def test_what_is_sure_comes_before_what_is_doubtful() -> None:
    doubtful = [chain("OUTPUT", "output", "drop"), rule("OUTPUT", match("mark", 1), ACCEPT)]
    drop = found(*doubtful, *DOCKER)
    assert drop is not None
    assert drop.sure


BEFORE = ":FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n"


@pytest.mark.parametrize(
    ("rules", "sure"),
    [
        pytest.param("-A FORWARD -j DOCKER-USER", True, id="nothing lets it through"),
        pytest.param("-A FORWARD -i stagebr0 -o stagebr0 -j ACCEPT", None, id="let through"),
        pytest.param("-A FORWARD -i stage+ -j ACCEPT", None, id="by the beginning of its name"),
        pytest.param("-A FORWARD ! -i docker0 -j ACCEPT", None, id="from everywhere else"),
        pytest.param("-A FORWARD ! -i stagebr0 -j ACCEPT", True, id="not from the stage"),
        pytest.param("-A FORWARD -s 10.0.3.0/24 -p tcp -j ACCEPT", None, id="by its subnet"),
        pytest.param("-A FORWARD -s 10.0.3.0/24 -p 6 -j ACCEPT", None, id="a protocol by its number"),
        pytest.param("-A FORWARD -s 10.0.3.0/24 -p udp -j ACCEPT", True, id="another protocol"),
        pytest.param("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", True, id="answers alone"),
        pytest.param(
            "-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -m comment --comment 'a -j DROP b' -j ACCEPT",
            None,
            id="a comment is no rule",
        ),
        pytest.param(
            "-A FORWARD -g DOCKER-USER\n-A DOCKER-USER -i stagebr0 -j LOG --log-prefix x\n-A DOCKER-USER -j ACCEPT",
            None,
            id="in a chain of somebody's",
        ),
        pytest.param("-A FORWARD -m mark --mark 0x7 -j ACCEPT", False, id="a mark can't be known"),
        pytest.param("-A FORWARD -m tcp ! --tcp-flags SYN,RST SYN -j ACCEPT", False, id="an option with two values"),
        pytest.param("-A FORWARD -s 10.0.3.0/255.0.255.0 -j ACCEPT", False, id="a mask that is no prefix"),
    ],
)
def test_rules_of_the_old_iptables_are_read(rules: str, sure: bool | None) -> None:
    listed = parse_rules(f"# Generated\n*filter\n{BEFORE}{rules}\nCOMMIT\n*nat\n:OUTPUT DROP [0:0]\nCOMMIT\n")
    drop = find_drop(listed, "stagebr0", OWN, CLONES, called=True, tool="iptables-legacy")
    assert (None if drop is None else drop.sure) is sure
    if drop is not None:
        assert (drop.chain, drop.rule) == ("iptables-legacy filter FORWARD", "policy drop")
        assert drop.command == "iptables-legacy -I DOCKER-USER -i stagebr0 -o stagebr0 -j ACCEPT"


def test_a_rule_of_the_old_iptables_is_named_by_its_number() -> None:
    listed = parse_rules(
        "*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -o lo -j ACCEPT\n-A OUTPUT -j REJECT --reject-with x\n"
    )
    drop = find_drop(listed, "stagebr0", OWN, CLONES, called=False, tool="iptables-legacy")
    assert drop is not None
    assert str(drop).endswith("chain iptables-legacy filter OUTPUT, rule 2: reject")
