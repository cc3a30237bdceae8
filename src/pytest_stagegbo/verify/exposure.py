"""Checks for ways into the stage that somebody configured: devices, forwards, bridge ports, packet filter rules."""

from __future__ import annotations

import os
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pytest_stagegbo import clocks
from pytest_stagegbo.desired import marks, objects
from pytest_stagegbo.desired.exposure import read_forward
from pytest_stagegbo.plan.access_list import access_list
from pytest_stagegbo.verify.finding import Result, Skipped, Unseen, sight
from pytest_stagegbo.verify.reach import in_stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_stagegbo.verify.context import VerifyContext

__all__ = ["bridge", "devices", "host_rules", "locked", "networks"]

EXPOSE = "user.stagegbo.expose"
"""Prefix of the marks of what was exposed on purpose. A value has, among its words, `expires=` and a time: seconds
since the epoch, or ISO 8601."""


def excused(config: Mapping[str, str], now: float) -> str:
    """Return the mark of an exposure that has not expired, or an empty text. Pure."""
    for key, value in config.items():
        if key.startswith(EXPOSE) and _expiry(value) > now:
            return f"{key}={value}"
    return ""


def _expiry(value: str) -> float:
    for word in value.replace(",", " ").split():
        text = word.removeprefix("expires=")
        try:
            return float(text)
        except ValueError:
            try:
                return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
            except ValueError:
                continue
    return 0.0


def devices(context: VerifyContext) -> Result:
    """Check that no proxy device and no route of a network device, in any project, leads into the stage."""
    bad: list[str] = []
    known: list[str] = []
    looked: list[str] = []
    for each in context.reader.documents("instances", **{"all-projects": "true"}):
        where = f"{each.get('project', 'default')}/{each['name']}"
        looked.append(where)
        for name, device in (each.get("expanded_devices") or {}).items():
            led = device.get("type") == "proxy" and (
                in_stage(context, device.get("connect", "")) or each.get("project") == context.settings.project
            )
            routed = any(in_stage(context, device.get(key, "")) for key in ("ipv4.routes", "ipv4.routes.external"))
            if not led and not routed:
                continue
            what = f"device {name} of {where} leads to {device.get('connect') or 'the stage'}"
            mark = excused(each.get("config") or {}, clocks.now())
            (known if mark else bad).append(f"{what} ({mark})" if mark else what)
    expected = [f"{context.settings.project}/{name}" for name in context.names]
    expected += [f"{each.project}/{name}" for name, each in context.facts.production_instances.items()]
    seen = "; ".join([f"devices of {len(looked)} instances of all projects looked at", *known])
    return Result(tuple(bad), seen, sight(expected, looked), context.idle)


def networks(context: VerifyContext) -> Result:
    """Check that no forward, load balancer, peer, tunnel or DNS record of any network leads into the stage."""
    bad: list[str] = []
    known: list[str] = []
    listed = [name for name, each in context.reader.networks().items() if each.managed]
    for network in listed:
        for kind in ("forwards", "load-balancers", "peers"):
            for each in context.reader.documents("networks", network, kind, project="default"):
                if network != context.settings.network.name and not in_stage(context, _targets(each)):
                    continue
                what = f"{kind[:-1]} {each.get('listen_address') or each.get('name')} of network {network}"
                mark = excused(each.get("config") or {}, clocks.now())
                (known if mark and read_forward(each) else bad).append(f"{what} ({mark})" if mark else what)
    own = context.facts.networks.get(context.settings.network.name)
    for key in sorted(own.config if own else ()):
        if key.startswith(("tunnel.", "dns.zone.")) or key in {"bridge.external_interfaces", "ipv4.routes"}:
            bad.append(f"network {context.settings.network.name} has {key}")
    for zone in context.reader.documents("network-zones", **{"all-projects": "true"}):
        records = context.reader.documents("network-zones", zone["name"], "records", project=zone.get("project", ""))
        for record in records:
            if any(in_stage(context, str(entry.get("value", ""))) for entry in record.get("entries") or ()):
                bad.append(f"DNS record {record['name']} of zone {zone['name']}")
    seen = "; ".join([f"networks {', '.join(listed)} and all DNS zones looked at", *known])
    return Result(tuple(bad), seen, sight([context.settings.network.name], listed))


def _targets(forward: Mapping[str, Any]) -> str:
    ports = forward.get("ports") or forward.get("backends") or ()
    found = [str((forward.get("config") or {}).get("target_address", ""))]
    return ":".join([*found, *(str(port.get("target_address", "")) for port in ports)])


def bridge(context: VerifyContext) -> Result:
    """Check that the stage's bridge has only the clones' network devices: a machine on it reaches every port."""
    state = context.states.get(context.settings.network.name) or {}
    ports = set((state.get("bridge") or {}).get("upper_devices") or ())
    owners = {
        value: instance
        for instance in context.facts.clones.values()
        for key, value in instance.config.items()
        if key.startswith("volatile.") and key.endswith(".host_name")
    }
    own = {name for name, instance in owners.items() if marks.is_clone(instance, context.settings)}
    own.add(f"{context.settings.network.name}-mtu")  # Incus's own, to hold the bridge's MTU
    bad = [
        f"interface {name} is on bridge {context.settings.network.name}"
        + (f": {owners[name].name} of the stage's project, which is no clone" if name in owners else "")
        for name in sorted(ports - own)
    ]
    looked = [name for name in context.running if context.host_ends.get(name) in ports]
    why = context.idle or "its own network device is not among the bridge's"
    return Result(
        tuple(bad), f"{len(ports)} ports on {context.settings.network.name}", sight(context.names, looked), why
    )


def host_rules(context: VerifyContext) -> Result:
    """Check that no rule of the host's packet filter, but Incus's own, sends packets to the stage."""
    if context.reader.elsewhere:
        raise Skipped(f"the stage is on {context.reader.elsewhere}")
    if os.geteuid():
        raise Skipped("only root may read the rules of the host's packet filter")
    view = context.reader.host()
    listed, legacy = view.nft("list", "ruleset"), view.legacy_rules()
    if listed is None:
        raise Unseen("nft can't list the host's rules: install nftables, and see that `nft list ruleset` works")
    if legacy is None:
        raise Unseen("the kernel has rules of iptables-legacy, and `iptables-legacy-save` can't list them here")
    own = f'"{context.settings.network.name}"'
    lines = [*listed.splitlines(), *legacy.splitlines()]
    # Those that Incus made for the bridge: a list without them is not of this host's network, or not whole.
    control = ["Incus's own rules for the bridge"]
    looked = control if any(own in line for line in lines) else []
    found = foreign_rules(listed, context) + foreign_legacy_rules(legacy, context)
    return Result(tuple(found), f"{len(lines)} lines of rules read", sight(control, looked))


def foreign_rules(listed: str, context: VerifyContext) -> list[str]:
    """Return rules outside of Incus's tables that rewrite addresses to the stage's, or that name its bridge."""
    found, table, chain = [], "", ""
    within = _reached_from_bridge(listed, context.settings.network.name)
    for line in listed.splitlines():
        if line.startswith("table "):
            table = line
        if line.strip().startswith(("chain ", "type ")):
            chain = line
        words = line.replace(",", " ").split()
        if table.split()[2:3] == ["incus"]:
            continue
        led = "dnat" in words and any(in_stage(context, word) for word in words)
        named = words.count(f'"{context.settings.network.name}"') == 1 and "accept" in words  # twice: within the stage
        if led or (named and "hook output" not in chain and (table, chain) not in within):
            found.append(f"{table.strip(' {')}: {line.strip()}")
    return found


def foreign_legacy_rules(saved: str, context: VerifyContext) -> list[str]:
    """As `foreign_rules`, of what `iptables-legacy-save` prints."""
    found, table = [], ""
    bridge = context.settings.network.name
    for line in saved.splitlines():
        table = line[1:] if line.startswith("*") else table
        words = line.split()
        led = "DNAT" in words and any(in_stage(context, word) for word in words)
        named = words.count(bridge) == 1 and "ACCEPT" in words and words[1] != "OUTPUT"
        if led or named:
            found.append(f"iptables-legacy {table}: {line}")
    return found


def _reached_from_bridge(listed: str, bridge: str) -> set[tuple[str, str]]:
    """Return tables and chains, by their first lines, that only packets from the bridge get to, such as the chains of
    the firewalld zone that has the bridge."""
    callers: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    heads: dict[tuple[str, str], str] = {}
    table = chain = ""
    for line in listed.splitlines():
        words = line.split()
        if line.startswith("table "):
            table = line
        elif words[:1] == ["chain"]:
            chain = line
            heads[table, words[1]] = line
        for target in re.findall(r"\b(?:jump|goto) ([^\s,]+)", line):
            callers.setdefault((table, target), []).append((table, chain, line))
    found: set[tuple[str, str]] = set()
    for _ in heads:  # chains call each other some levels deep, and never in a circle
        more = {
            (place[0], head)
            for place, head in heads.items()
            if place in callers
            and all(f'iifname "{bridge}"' in line or (at, by) in found for at, by, line in callers[place])
        }
        if more <= found:
            break
        found |= more
    return found


def locked(context: VerifyContext) -> Result:
    """Check that project, bridge and access list are as provisioning makes them, with all restrictions."""
    settings, facts = context.settings, context.facts
    bad = []
    project = facts.projects[settings.project]
    wanted = objects.project(settings, own_networks=project.config.get("features.networks") == "true")
    wanted.pop(marks.REQUIRES)  # says nothing about isolation
    bad += [
        f"project: {k} is {project.config.get(k)!r}, not {v!r}" for k, v in wanted.items() if project.config.get(k) != v
    ]
    bad += [f"project: {k} is {v!r}, which lifts a restriction" for k, v in objects.lifted(project.config).items()]
    network = facts.networks.get(settings.network.name)
    found = network.config if network else {}
    bad += [
        f"bridge: {k} is {found.get(k)!r}, not {v!r}" for k, v in objects.network(settings).items() if found.get(k) != v
    ]
    acl, rules = facts.acl or {}, access_list(facts, settings)
    bad += [
        f"access list: {key} is not what it should be" for key in ("ingress", "egress") if acl.get(key) != rules[key]
    ]
    looked = ["project", *(["bridge"] if network else []), *(["access list"] if facts.acl else [])]
    seen = f"{len(wanted)} keys of the project, the bridge's, and the access list compared"
    return Result(tuple(bad), seen, sight(["project", "bridge", "access list"], looked))
