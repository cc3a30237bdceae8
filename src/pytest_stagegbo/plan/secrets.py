"""The step that replaces production's secrets in Vault's clone, or checks that they are replaced. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.desired import marks
from pytest_stagegbo.plan.steps import CheckSecrets, ReplaceSecrets, Step

if TYPE_CHECKING:
    from pytest_stagegbo.facts.facts import Facts
    from pytest_stagegbo.settings import Settings

__all__ = ["plan_secrets"]


def plan_secrets(facts: Facts, settings: Settings, *, new_vault: bool) -> Step | None:
    """Return the step for the setting `secrets`, or None if there are none. Pure.

    Args:
        new_vault: Whether Vault's clone is made by this plan.
    """
    vault = marks.vault_container(settings)
    if not settings.secrets or vault is None:
        return None
    clone = facts.clones.get(vault.name)
    done = not new_vault and clone is not None and clone.config.get(marks.SECRETS) == "replaced"
    # The token may have to be read from the clone of BotServer's container, which need not run for that.
    holder = settings.vault.env_container
    after = {f"await:{vault.name}", *(f"{verb}:{holder}" for verb in ("copy", "prepare", "hooks"))}
    kind = CheckSecrets if done else ReplaceSecrets
    return kind(subject=vault.name, fields=marks.replaced_fields(settings), after=frozenset(after))
