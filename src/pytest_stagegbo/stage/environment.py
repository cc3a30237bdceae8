"""The environment of a child process that is to work with the stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.credentials.secret import Hidden
from pytest_stagegbo.settings.addresses import endpoint_variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_stagegbo.credentials.lookup import Credentials
    from pytest_stagegbo.stage.service import Service
    from pytest_stagegbo.stage.stage import Stage

__all__ = ["DATABASE", "NAMES", "REGION", "Variable", "by_container", "child_environment", "variables", "variables_of"]

REGION = "us-east-1"
"""What S3 servers that know no regions answer to."""
DATABASE = "botserver"
"""The database of BotServer, when neither the settings nor Vault name another."""
NAMES = (
    "BOTSERVER_URL",
    "BOTUI_URL",
    "DATABASE_URL",
    "DB_HOST",
    "DB_PORT",
    "DB_USER",
    "DB_PASSWORD",
    "DB_NAME",
    "REDIS_URL",
    "AWS_ENDPOINT_URL",
    "S3_ENDPOINT",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_API_KEY",
    "VAULT_ADDR",
    "VAULT_TOKEN",
)
"""Every variable that leads to a service of the stage, besides those that begin with `STAGEGBO_ENDPOINT_`."""

ELSEWHERE = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "PGDATABASE",
    "PGHOST",
    "PGHOSTADDR",
    "PGPASSWORD",
    "PGPORT",
    "PGSERVICE",
    "PGUSER",
)
"""Variables that clients heed beside these, and that would lead a command of the stage's somewhere else."""

Variable = tuple[str, str, str]
"""The container that it is about, its name, its value."""


def variables(stage: Stage, credentials: Credentials, vault_token: bool | None) -> dict[str, str]:
    """See `Stage.env`."""
    return {name: value for _, name, value in by_container(stage, credentials, vault_token)}


def child_environment(stage: Stage, environ: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a command: `environ`, with the stage's variables. What the stage has no value for is
    left out, since it could lead the command to another server, production's for example.

    Raises like `Stage.env`.
    """
    others = {*NAMES, *ELSEWHERE}
    kept = {
        name: value
        for name, value in environ.items()
        if name not in others and not name.startswith("STAGEGBO_ENDPOINT_")
    }
    return {**kept, **stage.env()}


def by_container(stage: Stage, credentials: Credentials, vault_token: bool | None) -> list[Variable]:
    """The same, with the container that each is about. Of two services of one kind the first gives the variables."""
    places = [endpoint for service in stage.services.values() for endpoint in service.endpoints]
    found = {name: (container, name, value) for container, name, value in endpoint_variables(places)}
    for service in stage.services.values():
        for name, value in variables_of(service):
            found.setdefault(name, (service.name, name, value))
    if "VAULT_ADDR" in found and (vault_token or (vault_token is None and not credentials.leads_to_production())):
        found["VAULT_TOKEN"] = (found["VAULT_ADDR"][0], "VAULT_TOKEN", Hidden(credentials.token()))
    return list(found.values())


def variables_of(service: Service) -> Iterator[tuple[str, str]]:
    """Names and values about one service, without its endpoints."""
    if not service.endpoints:
        return
    if service.name == "system":
        pages = [each.url for each in service.endpoints if each.protocol == "http"]
        yield from zip(("BOTSERVER_URL", "BOTUI_URL"), pages, strict=False)
    if speaker := _SPEAKERS.get(service.protocol):
        yield from speaker(service)
    for endpoint in service.endpoints:
        if endpoint.protocol == "vault":  # which may be beside another service
            yield "VAULT_ADDR", endpoint.url
    if service.name == "llm":
        yield "OPENAI_BASE_URL", f"{service.url}/v1"
        # `none`, lest a key of the person's own is sent there
        yield "OPENAI_API_KEY", service.credentials.token or "none"


def _postgresql(service: Service) -> Iterator[tuple[str, str]]:
    yield "DB_HOST", service.host
    yield "DB_PORT", str(service.port)
    found = service.credentials
    if found.user:
        yield "DATABASE_URL", service.dsn
        yield "DB_USER", found.user
        yield "DB_PASSWORD", Hidden(found.password)
        yield "DB_NAME", found.database or DATABASE


def _valkey(service: Service) -> Iterator[tuple[str, str]]:
    yield "REDIS_URL", service.dsn


def _s3(service: Service) -> Iterator[tuple[str, str]]:
    yield "AWS_ENDPOINT_URL", service.url
    yield "S3_ENDPOINT", service.url
    yield "AWS_REGION", service.credentials.get("region", REGION)
    yield "AWS_DEFAULT_REGION", service.credentials.get("region", REGION)
    if service.credentials.access_key:
        yield "AWS_ACCESS_KEY_ID", Hidden(service.credentials.access_key)
        yield "AWS_SECRET_ACCESS_KEY", Hidden(service.credentials.secret_key)


_SPEAKERS = {"postgresql": _postgresql, "valkey": _valkey, "s3": _s3}
