"""How the stage's project, access list, bridge and default profile are made what they should be."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_stagegbo.desired import marks, objects, ownership
from pytest_stagegbo.errors import ServerRefused
from pytest_stagegbo.facts.former import changes_bridge
from pytest_stagegbo.incus import dialect
from pytest_stagegbo.plan.access_list import access_list

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.incus import Network, Project, Reader, Writer
    from pytest_stagegbo.plan import steps
    from pytest_stagegbo.settings import Settings

__all__ = ["Foundations"]

log = logging.getLogger("stagegbo.provision")

T = TypeVar("T")


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
            self._replace_project(existing)
            return
        if (made := self._unless_made(self._create_project, self._own_project)) is not None:
            self._replace_project(made)

    def _replace_project(self, existing: Project) -> None:
        own_networks = not objects.managed_nics(dict(existing.config))
        wanted = objects.project(self._settings, own_networks=own_networks, parent=self._parent)
        if changes_bridge(existing, self._settings):
            self._leave_former_bridge()
        lifted = objects.lifted(existing.config)
        kept = {key: value for key, value in existing.config.items() if key not in lifted}
        self._writer.replace_project({**kept, **wanted}, existing.description)

    def _own_project(self) -> Project | None:
        found = self._reader.projects().get(self._settings.project)
        own = found and ownership.is_stage(found) and found.config.get(marks.FAMILY, "") == self._parent
        return found if own else None

    def _create_project(self) -> None:
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
        if not step.create or self._unless_made(lambda: self._writer.create_acl(wanted), self._own_acl) is not None:
            self._writer.replace_acl(wanted)

    def _own_acl(self) -> dict[str, Any] | None:
        found = self._reader.acl(self._writer.scope.acl)
        return found if found is not None and self._is_own(found.get("config") or {}) else None

    def _is_own(self, config: Mapping[str, str]) -> bool:
        return ownership.belongs(config, self._settings, self._parent, self._reader.projects())

    def _unless_made(self, create: Callable[[], None], find: Callable[[], T | None]) -> T | None:
        """Create an object, and return None. If it exists by now, return what exists: a run that was killed while its
        request was under way has made it since this run looked.

        Args:
            find: Returns the object if there is one that was made for this stage.

        Raises:
            ServerRefused: the server refuses for another reason, or somebody else has an object of that name.
        """
        try:
            create()
        except ServerRefused as error:
            if not dialect.exists_already(error) or (found := find()) is None:
                raise
            return found
        return None

    def set_network(self, step: steps.SetNetwork) -> None:
        wanted = objects.network(self._settings, self._parent)
        if step.create:
            if self._settings.network.name in self._facts.networks:  # half made
                self._writer.delete_network()
            members = [each.name for each in self._facts.members]

            def create() -> None:
                self._writer.create_network(wanted, objects.DESCRIPTION, members)

            if (made := self._unless_made(create, self._own_network)) is not None:
                self._writer.replace_network({**made.config, **wanted}, made.description)
        else:
            existing = self._facts.networks[self._settings.network.name]
            if not self._facts.bridge_works:  # Incus sets an interface up when one of its keys changes, and only then
                other = {"ipv4.nat": "false" if wanted["ipv4.nat"] == "true" else "true"}
                self._writer.replace_network({**existing.config, **wanted, **other}, existing.description)
            self._writer.replace_network({**existing.config, **wanted}, existing.description)

    def _own_network(self) -> Network | None:
        found = self._reader.network(self._settings.network.name)
        return found if found is not None and self._is_own(found.config) else None

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
