"""The table of all checks, with what a red line means and what to do. A test compares docs/isolation.md with it."""

from __future__ import annotations

from pytest_stagegbo.verify import boot, contents, event_monitor, exposure, reach, unchanged
from pytest_stagegbo.verify.finding import Check
from pytest_stagegbo.verify.limits import limits

__all__ = ["CHECKS"]

_AGAIN = "`stagegbo provision` puts the stage's project, bridge and access list back"
_REPLACE = "`stagegbo provision --recreate` replaces the clones"

CHECKS = (
    Check(
        "reach.production",
        "no container of the stage reaches production",
        "Tests may read and change production.",
        f"{_AGAIN}; where rules of the host's packet filter were flushed, restart Incus or change the network once",
        reach.production,
    ),
    Check(
        "reach.twins",
        "production's addresses lead to the clones",
        "A clone works with another container than the one that its configuration means.",
        _REPLACE,
        reach.twins,
    ),
    Check(
        "reach.host",
        "no port of the host is open to the stage",
        "The stage may talk to Incus, ssh or a resolver of the host, and through them to everything else.",
        f"{_AGAIN}; port 53 is open to every bridge by Incus's own rules: bind the resolver to other addresses",
        reach.host,
    ),
    Check(
        "reach.internet",
        "the stage sends nothing to the internet",
        "Cloned services may send mail and call others in production's name.",
        _AGAIN,
        reach.internet,
    ),
    Check(
        "reach.stage",
        "the host reaches each clone",
        "Tests can't use the stage, or talk to somebody else in its place.",
        "`stagegbo status` may say why; check also whether a firewall of the host blocks the stage's subnet, or "
        "another network has it",
        reach.host_to_stage,
    ),
    Check(
        "exposure.devices",
        "no device leads into the stage",
        "Others reach the stage's services, which hold production's data.",
        "remove the device named: `incus config device remove`",
        exposure.devices,
    ),
    Check(
        "exposure.networks",
        "no forward, load balancer, peer, tunnel or DNS record leads into the stage",
        "Others reach the stage's services, which hold production's data.",
        "remove what is named: `incus network forward delete`, `incus network zone record delete`, ...",
        exposure.networks,
    ),
    Check(
        "exposure.bridge",
        "nothing else hangs on the stage's bridge",
        "A machine on the bridge reaches every port of every clone.",
        "take the interface off the bridge, or remove the instance that it belongs to",
        exposure.bridge,
    ),
    Check(
        "exposure.host-rules",
        "no rule of the host's packet filter leads into the stage",
        "Others reach the stage's services, which hold production's data.",
        "delete the rule named, where it was made (nft, iptables, firewalld, Docker)",
        exposure.host_rules,
    ),
    Check(
        "locked.project",
        "project, bridge and access list are as they were made",
        "What the server would refuse in a locked project, somebody can now add.",
        _AGAIN,
        exposure.locked,
    ),
    Check(
        "locked.instances",
        "no instance of the project has a foreign device or a privilege",
        "A container with a host's folder, a proxy or privileges reaches out of the stage.",
        f"remove the instance, or the device or key named; {_REPLACE}",
        contents.instances,
    ),
    Check(
        "locked.boot",
        "each clone has started only what the settings name",
        "Cron jobs, timers, mail queues and agents of production's run in the stage, in production's name.",
        f"add the unit named to containers.NAME.units if the service needs it; otherwise {_REPLACE}",
        boot.confined,
    ),
    Check(
        "locked.filters",
        "each clone sends from its own MAC and address only",
        "A clone may take another's address, or production's, on the bridge.",
        _REPLACE,
        contents.filters,
    ),
    Check(
        "locked.addresses",
        "each clone has its own address and its twin's, and no other",
        "Left-over addresses of production lead to the wrong container.",
        f"restart the container; if that is not enough, {_REPLACE}",
        contents.addresses,
    ),
    Check(
        "data.wiped",
        "nothing of production is left in the folders that are wiped",
        "Tests see data that the staging guide says is wiped.",
        f"`stagegbo reset NAME` empties the folders; {_REPLACE}",
        contents.wiped,
    ),
    Check(
        "data.logs",
        "no log of production is left in the log folders and in /var/log",
        "Logs hold people's data.",
        _REPLACE,
        contents.logs,
    ),
    Check(
        "data.kept",
        "data that is kept is there",
        "Tests run on a stage that is not like production.",
        _REPLACE,
        contents.kept,
    ),
    Check(
        "data.identity",
        "each clone has a machine id and a name of its own",
        "Two machines with one identity are taken for one, by DHCP, journals and licences.",
        _REPLACE,
        contents.identity,
    ),
    Check(
        "limits.disk",
        "each clone's disk limit holds",
        "A clone may fill the pool that production lives on.",
        "`stagegbo provision` sets the limits and, as root on the daemon's host, has btrfs count again; "
        "`stagegbo doctor` names the command to run there",
        limits,
    ),
    Check(
        "production.unchanged",
        "provisioning left production as it was",
        "Production changed while the stage was made from it.",
        "compare what is named with your own changes of that time; if they are not yours, please report it",
        unchanged.unchanged,
    ),
    Check(
        "production.events",
        "nothing was done to production from here meanwhile",
        "This process did something to production, or lost the news of what happened to it.",
        "look at what is named: if others did it under the same name at the same moment, verify again; else report it",
        event_monitor.no_production_events,
    ),
)
