"""Secrets of the stage's Vault that are replaced before anything that reads Vault is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from pytest_stagegbo.credentials.kv import Failure
from pytest_stagegbo.credentials.lookup import HOW_TO_GIVE_A_TOKEN, Credentials
from pytest_stagegbo.desired import marks
from pytest_stagegbo.errors import MissingRequirement, NotReady, SettingsError, VaultSealed
from pytest_stagegbo.services.keys import HOW_TO_GIVE_KEYS

if TYPE_CHECKING:
    from pytest_stagegbo.credentials.replacements import Replacements
    from pytest_stagegbo.incus import Reader, Writer
    from pytest_stagegbo.plan.steps import CheckSecrets
    from pytest_stagegbo.settings import ContainerSettings, Settings

__all__ = ["replace_secrets"]


def replace_secrets(
    reader: Reader, writer: Writer, settings: Settings, step: CheckSecrets, replacements: Replacements
) -> tuple[str, ...]:
    """Do the step; what was written, for people.

    Raises:
        VaultSealed: Vault is sealed.
        MissingRequirement: there is no token, or it may not do this.
        SettingsError: there is no such secret or field, so production's value would stay under another name.
        NotReady: Vault gave no usable answer.
    """
    vault = settings.containers[step.subject]
    credentials = Credentials(settings, reader, environ=replacements.environ)
    said = []
    for path, _ in step.fields:
        store = credentials.store(path.strip("/").partition("/")[0])
        found = replacements.apply(store, path)
        if isinstance(found, (Failure, str)):
            _refuse(vault, path, found)
        if found.written or found.destroyed:
            said.append(f"{step.subject}: {path} replaced, {found.destroyed} older versions destroyed")
    if step.changes:
        writer.set_instance_config(step.subject, {marks.SECRETS: "replaced"})
    return tuple(said)


def _refuse(vault: ContainerSettings, path: str, failure: Failure | str) -> NoReturn:
    message = f"{path} in {vault.name} could not be replaced, so nothing that reads Vault is started"
    if isinstance(failure, str):
        raise SettingsError(message, seen=failure, remedy=f'correct the setting secrets."{path}"')
    if failure.status == 503:
        raise VaultSealed(message, seen=failure.text, remedy=f"{HOW_TO_GIVE_KEYS}; then run `stagegbo provision`")
    if failure.status in {401, 403}:
        raise MissingRequirement(
            message,
            seen=failure.text,
            remedy="the token needs `read` and `update` on the secret's data/ path, `read` on its metadata/ path and "
            f"`update` on its destroy/ path; BotServer's own may not have them: {HOW_TO_GIVE_A_TOKEN}",
        )
    raise NotReady(message, seen=failure.text, remedy="check with `stagegbo status` that it answers")
