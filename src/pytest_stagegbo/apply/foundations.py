"""How the stage's project, access list, bridge and default profile are made what they should be."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

from pytest_stagegbo.desired import objects
from pytest_stagegbo.facts.former import changes_bridge
from pytest_stagegbo.plan.access_list import access_list

if TYPE_CHECKING:
    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Reader, Writer
    from pytest_stagegbo.plan import steps
    from pytest_stagegbo.settings import Settings

__all__ = ["Foundations"]

log = logging.getLogger("stagegbo.provision")


class Foundations:
    """Does the steps that come before clones. Every method may be repeated after a crash at any point.

    Args:
        parent: The stage that this one is a slot or the golden copy of.
    """

    def __init__(self, reader: Reader, writer: Writer, facts: Facts, settings: Settings, parent: str) -> None:
        self._reader = reader
        self._writer = writer
        self._facts = facts
        self._settings = settings
        self._parent = parent

    def set_project(self, step: steps.SetProject) -> None:
        existing = self._facts.projects.get(self._settings.project)
        if not step.create and existing is not None:
            own_networks = not objects.managed_nics(dict(existing.config))
            wanted = objects.project(self._settings, own_networks=own_networks, parent=self._parent)
            if changes_bridge(existing, self._settings):
                self._leave_former_bridge()
            self._writer.replace_project({**existing.config, **wanted}, existing.description)
            return
        wanted, otherwise = (
            objects.project(self._settings, own_networks=own, parent=self._parent) for own in (True, False)
        )
        own_networks = self._writer.create_project(wanted, otherwise, objects.DESCRIPTION)
        self.managed = objects.managed_nics(wanted if own_networks else otherwise)
        if not own_networks:
            log.debug(
                "this server refuses features.networks=true without OVN, so project %s gets features.networks=false "
                "and access to network %s only",
                self._settings.project,
                self._settings.network.name,
            )

    def set_acl(self, step: steps.SetAcl) -> None:
        wanted = access_list(self._facts, self._settings, parent=self._parent)
        if step.create:
            self._writer.create_acl(wanted)
        else:
            self._writer.replace_acl(wanted)

    def set_network(self, step: steps.SetNetwork) -> None:
        wanted = objects.network(self._settings, self._parent)
        if step.create:
            if self._settings.network.name in self._facts.networks:  # half made
                self._writer.delete_network()
            self._writer.create_network(wanted, objects.DESCRIPTION, [each.name for each in self._facts.members])
        else:
            existing = self._facts.networks[self._settings.network.name]
            if not self._facts.bridge_works:  # Incus sets an interface up when one of its keys changes, and only then
                other = {"ipv4.nat": "false" if wanted["ipv4.nat"] == "true" else "true"}
                self._writer.replace_network({**existing.config, **wanted, **other}, existing.description)
            self._writer.replace_network({**existing.config, **wanted}, existing.description)

    def remove_network(self, name: str) -> None:
        self._leave_former_bridge()
        self._writer.delete_network(name)

    def _leave_former_bridge(self) -> None:
        """Have the default profile name no other bridge than the stage's, as long as it exists: Incus keeps a bridge
        that a profile names, and the project's restriction to it."""
        profile = self._reader.profile(self._settings.project) or {}
        devices = profile.get("devices") or {}
        bridges = {"", self._settings.network.name}
        kept = {
            name: device
            for name, device in devices.items()
            if device.get("type") != "nic" or {device.get("network", ""), device.get("parent", "")} <= bridges
        }
        if kept != devices:
            self._writer.replace_default_profile(profile.get("config") or {}, kept, objects.DESCRIPTION)

    def set_profile(self, step: steps.SetProfile) -> None:
        devices = objects.profile_devices(self._settings, step.pool, managed=self.managed)
        self._writer.replace_default_profile(objects.profile_config(self._settings), devices, objects.DESCRIPTION)

    @functools.cached_property
    def managed(self) -> bool:
        """Whether NICs name the bridge as a network: known only once the project exists."""
        project = self._reader.projects()[self._settings.project]
        return objects.managed_nics(dict(project.config))
