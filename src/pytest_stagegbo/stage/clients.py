"""Connected clients for the stage's services, each for a `with` block.

Each imports its library when it is called; `pip install 'pytest-stagegbo[clients]'` brings them all. None uses a
proxy of the environment: the stage is on a network of this host. TLS is spoken where a probe's `tls` says so, and
certificates are not checked, since their names are production's.

::

    with clients.postgres(stage) as connection:
        connection.execute("SELECT count(*) FROM users")
"""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_stagegbo.errors import MissingRequirement, NotReady
from pytest_stagegbo.realfiles import begun_in_real_files, real_files
from pytest_stagegbo.stage.environment import DATABASE, REGION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    import hvac
    import openai
    import psycopg
    import requests
    from mypy_boto3_s3 import S3Client
    from valkey import Valkey
    from valkey.asyncio import Valkey as AsyncValkey

    from pytest_stagegbo.stage.stage import Stage

__all__ = ["llm", "postgres", "postgres_async", "s3", "valkey", "valkey_async", "vault"]

CONNECT_SECONDS = 10
ANSWER_SECONDS = 60


@begun_in_real_files
def postgres(stage: Stage, service: str = "tables", **options: Any) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A psycopg connection to PostgreSQL, in a transaction: what is not committed in the block is rolled back.

    Args:
        service: The container.
        options: For `psycopg.connect`, over those made here: `autocommit=True`, `dbname="other"`.

    Raises:
        MissingRequirement: psycopg is not installed, or there are no credentials.
        NotReady: PostgreSQL refused; says what it said.
        StageGboError: The credentials can't be had; see `Credentials`.
    """
    try:
        import psycopg
    except ImportError as error:
        _missing("postgres", error)
    arguments = _postgres_arguments(stage, service, options)
    refused = ""
    try:
        connection = psycopg.connect(**arguments)
    except psycopg.OperationalError as error:
        refused = str(error)
    if refused:  # outside of the handler, whose traceback has frames with the password in them
        raise _refused(stage, service, refused)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.asynccontextmanager
async def postgres_async(
    stage: Stage, service: str = "tables", **options: Any
) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
    """The same for asyncio, for `async with`: a `psycopg.AsyncConnection`. Credentials are fetched without it."""
    try:
        import psycopg
    except ImportError as error:
        _missing("postgres", error)
    with real_files():
        arguments = _postgres_arguments(stage, service, options)
    refused = ""
    try:
        connection = await psycopg.AsyncConnection.connect(**arguments)
    except psycopg.OperationalError as error:
        refused = str(error)
    if refused:
        raise _refused(stage, service, refused)
    try:
        yield connection
    finally:
        await connection.close()


def _postgres_arguments(stage: Stage, service: str, options: Mapping[str, Any]) -> dict[str, Any]:
    tables = stage[service]
    found = tables.credential("user", "password")
    return {
        "host": tables.host,
        "port": tables.port,
        "user": found.user,
        "password": found.password,
        "dbname": found.database or DATABASE,
        "connect_timeout": CONNECT_SECONDS,
        "sslmode": "require" if tables.tls else "prefer",
        "application_name": "pytest-stagegbo",
        **options,
    }


def _refused(stage: Stage, service: str, said: str) -> NotReady:
    return NotReady(
        f"{stage[service].name} refused a connection",
        seen=stage.credentials.mask(said),
        remedy="check with `stagegbo status` that it answers, and its credentials",
    )


@begun_in_real_files
def valkey(stage: Stage, service: str = "cache", **options: Any) -> Iterator[Valkey]:
    """A valkey-py client. It connects with its first command.

    Args:
        service: The container.
        options: For `valkey.Valkey`: `decode_responses=True`, `db=1`.

    Raises:
        MissingRequirement: valkey-py is not installed.
        StageGboError: The credentials can't be had; see `Credentials`.
    """
    try:
        import valkey as library
    except ImportError as error:
        _missing("valkey", error)
    client = library.Valkey(**_valkey_arguments(stage, service, options))
    try:
        yield client
    finally:
        client.close()  # type: ignore[no-untyped-call]


@contextlib.asynccontextmanager
async def valkey_async(stage: Stage, service: str = "cache", **options: Any) -> AsyncIterator[AsyncValkey]:
    """The same for asyncio, for `async with`: a `valkey.asyncio.Valkey`. Credentials are fetched without it."""
    try:
        import valkey.asyncio as library
    except ImportError as error:
        _missing("valkey", error)
    with real_files():
        arguments = _valkey_arguments(stage, service, options)
    client = library.Valkey(**arguments)
    try:
        yield client
    finally:
        await client.aclose()


def _valkey_arguments(stage: Stage, service: str, options: Mapping[str, Any]) -> dict[str, Any]:
    cache = stage[service]
    return {
        "host": cache.host,
        "port": cache.port,
        "username": cache.credentials.user or None,
        "password": cache.credentials.password or None,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        **({"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False} if cache.tls else {}),
        **options,
    }


@begun_in_real_files
def s3(stage: Stage, service: str = "drive", **options: Any) -> Iterator[S3Client]:
    """The client for S3 of boto3: path style, signature version 4, no checksums that older servers don't know.

    Profiles and files of the person who runs the tests (`~/.aws`, `AWS_PROFILE`) are not used. With TLS, urllib3 warns
    that it does not check the certificate.

    Args:
        service: The container.
        options: For `botocore.config.Config`: `retries={"max_attempts": 1}`.

    Raises:
        MissingRequirement: boto3 is not installed, or there are no credentials.
        StageGboError: The credentials can't be had; see `Credentials`.
    """
    try:
        import boto3
        import botocore.config
        import botocore.session
    except ImportError as error:
        _missing("s3", error)
    drive = stage[service]
    found = drive.credential("access_key", "secret_key")
    arguments: dict[str, Any] = {
        "signature_version": "s3v4",
        "s3": {"addressing_style": "path"},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": ANSWER_SECONDS,
        "proxies": {},
        **options,
    }
    with _making:
        client = _session(boto3.Session, botocore.session.Session).client(
            "s3",
            endpoint_url=drive.url,
            region_name=found.get("region", REGION),
            aws_access_key_id=str(found.access_key),
            aws_secret_access_key=str(found.secret_key),
            verify=not drive.tls,
            config=botocore.config.Config(**arguments),
        )
    try:
        yield client
    finally:
        client.close()


@begun_in_real_files
def vault(stage: Stage, service: str = "vault", **options: Any) -> Iterator[hvac.Client]:
    """An hvac client with the stage's token: BotServer's own, unless the settings name another.

    What it reads are production's secrets, with production's addresses in them.

    Args:
        service: The container.
        options: For `hvac.Client`: `namespace="team"`.

    Raises:
        MissingRequirement: hvac is not installed, or there is no token.
        StageGboError: The token can't be had; see `Credentials`.
    """
    try:
        import hvac
        import requests
    except ImportError as error:
        _missing("vault", error)
    found = stage[service]
    token = found.credential("token").token
    session = requests.Session()
    session.trust_env = False
    url = next((each.url for each in found.endpoints if each.protocol == "vault"), found.url)
    tls = url.startswith("https:")
    if tls:
        session.verify = False
        _pin(session, found.name, url)
    arguments: dict[str, Any] = {
        "url": url,
        "token": str(token),
        "verify": not tls,
        "timeout": ANSWER_SECONDS,
        "session": session,
        **options,
    }
    client = hvac.Client(**arguments)
    try:
        yield client
    finally:
        client.adapter.close()
        session.close()


@begun_in_real_files
def llm(stage: Stage, service: str = "llm", **options: Any) -> Iterator[openai.OpenAI]:
    """An OpenAI client for the model's server.

    Args:
        service: The container.
        options: For `openai.OpenAI`: `timeout=300`, `max_retries=0`.

    Raises:
        MissingRequirement: openai is not installed.
        StageGboError: The credentials can't be had; see `Credentials`.
    """
    try:
        import openai
    except ImportError as error:
        _missing("llm", error)
    model = stage[service]
    arguments: dict[str, Any] = {
        "base_url": f"{model.url}/v1",
        "api_key": model.credentials.token or "none",
        # Not checking certificates also saves loading all authorities, which takes longer than most answers.
        "http_client": openai.DefaultHttpxClient(trust_env=False, verify=False),
        **options,
    }
    with openai.OpenAI(**arguments) as client:
        yield client


_making = threading.Lock()
"""Held while a client for S3 is made: botocore's session is not for several threads, its clients are."""


@functools.cache
def _session(boto3_session: Callable[..., Any], botocore_session: Callable[..., Any]) -> Any:
    """Boto3's session, kept: reading the description of S3 takes it 80 ms."""
    # Of each variable: its name in a file, its variable of the environment, its default, its conversion.
    unset = (None, None, None, None)
    below = botocore_session({"profile": unset, "config_file": unset, "credentials_file": unset, "ca_bundle": unset})
    return boto3_session(botocore_session=below)


def _pin(session: requests.Session, name: str, url: str) -> None:
    """Accept the very certificate that the service has at this moment, so that nothing warns of an unchecked one."""
    import hashlib
    import ssl
    from urllib.parse import urlsplit

    from requests.adapters import HTTPAdapter

    class Pinned(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options, assert_fingerprint=fingerprint)

    parts = urlsplit(url)
    place = (parts.hostname or "", parts.port or 443)
    try:
        pem = ssl.get_server_certificate(place, timeout=CONNECT_SECONDS)
    except OSError as error:
        raise NotReady(
            f"{name} gave no certificate at {place[0]}:{place[1]}",
            seen=str(error),
            remedy="check with `stagegbo status` that it answers, and its probe's tls setting",
        ) from None
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    session.mount("https://", Pinned())


def _missing(extra: str, error: ImportError) -> NoReturn:
    raise MissingRequirement(
        f"the client for {extra} is not installed",
        seen=str(error),
        remedy=f"pip install 'pytest-stagegbo[{extra}]', or all clients: pip install 'pytest-stagegbo[clients]'",
    ) from None
