"""The environment of a child process that is to work with the stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_stagegbo.stage.secret import Hidden

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_stagegbo.stage.credentials import Credentials
    from pytest_stagegbo.stage.service import Service
    from pytest_stagegbo.stage.stage import Stage

__all__ = ["REGION", "variables"]

REGION = "us-east-1"
"""What S3 servers that know no regions answer to."""


def variables(stage: Stage, credentials: Credentials, vault_token: bool | None) -> dict[str, str]:
    """See `Stage.env`."""
    found = dict(_endpoints(stage))
    for service in stage.services.values():
        speaker = _SPEAKERS.get(service.protocol) if service.endpoints else None
        if speaker is not None:
            for name, value in speaker(service):
                found.setdefault(name, value)  # of two services of one kind, the first
        for endpoint in service.endpoints:
            if endpoint.protocol == "vault":  # which may be beside another service
                found.setdefault("VAULT_ADDR", endpoint.url)
    model = stage.services.get("llm")
    if model is not None and model.endpoints:
        found["OPENAI_BASE_URL"] = f"{model.url}/v1"
        found["OPENAI_API_KEY"] = model.credentials.token or "none"  # lest one of the person's own is sent there
    if "VAULT_ADDR" in found and (vault_token or (vault_token is None and not credentials.leads_to_production())):
        found["VAULT_TOKEN"] = credentials.token()
    return found


def _endpoints(stage: Stage) -> Iterator[tuple[str, str]]:
    """The names that `stagegbo endpoints --env` prints."""
    for service in stage.services.values():
        for number, endpoint in enumerate(service.endpoints, 1):
            prefix = (
                "STAGEGBO_ENDPOINT_" + service.name.upper().replace("-", "_") + (f"_{number}" if number > 1 else "")
            )
            yield f"{prefix}_HOST", endpoint.host
            yield f"{prefix}_PORT", str(endpoint.port)
            yield f"{prefix}_URL", endpoint.url


def _postgresql(service: Service) -> Iterator[tuple[str, str]]:
    if service.credentials.user:
        yield "DATABASE_URL", service.dsn


def _valkey(service: Service) -> Iterator[tuple[str, str]]:
    yield "REDIS_URL", service.dsn


def _s3(service: Service) -> Iterator[tuple[str, str]]:
    yield "AWS_ENDPOINT_URL", service.url
    yield "AWS_REGION", service.credentials.get("region", REGION)
    yield "AWS_DEFAULT_REGION", service.credentials.get("region", REGION)
    if service.credentials.access_key:
        yield "AWS_ACCESS_KEY_ID", Hidden(service.credentials.access_key)
        yield "AWS_SECRET_ACCESS_KEY", Hidden(service.credentials.secret_key)


_SPEAKERS = {"postgresql": _postgresql, "valkey": _valkey, "s3": _s3}
