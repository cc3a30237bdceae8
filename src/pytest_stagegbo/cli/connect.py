"""The command `connect`: it opens the usual client of a service, already connected: psql, valkey-cli or aws."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

from pytest_stagegbo.cli.context import open_context
from pytest_stagegbo.errors import MissingRequirement, NotReady, SettingsError
from pytest_stagegbo.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_stagegbo.cli.context import Context
    from pytest_stagegbo.engine.stage import StageEngine
    from pytest_stagegbo.stage import Service

__all__ = ["register"]

SECONDS = 30.0
"""For an answer of drive."""
VALKEY_CLIENTS = ("valkey-cli", "redis-cli")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    connect = commands.add_parser(
        "connect",
        help="open psql, valkey-cli or an S3 client, connected to a service",
        usage="%(prog)s [options] NAME [-- ARGUMENT ...]",
        description="Connect to a service of the stage: PostgreSQL with psql, Valkey with valkey-cli or redis-cli, S3 "
        "with aws; without arguments, the buckets of S3 are listed. psql and valkey-cli run in the container where "
        "this host has none.",
    )
    connect.add_argument("name", metavar="NAME")
    connect.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- ARGUMENT")
    connect.set_defaults(run=_connect)


def _connect(arguments: argparse.Namespace) -> int:
    argv = arguments.argv
    context = open_context(arguments)
    from pytest_stagegbo.stage import Stage

    engine = context.engine()
    service = Stage(engine)[arguments.name]
    ways = {"postgresql": _postgresql, "valkey": _valkey, "s3": _s3}
    protocol = service.protocol if service.ports else "no protocol that is known"
    if protocol not in ways:
        raise SettingsError(
            f"{service.name} speaks {protocol}, for which there is no client to connect with",
            remedy="`stagegbo endpoints` has its address; `stagegbo shell NAME` goes into the container",
        )
    engine.clone(service.name)
    engine.mark_dirty()
    return ways[protocol](arguments, context, engine, service, argv)


def _postgresql(
    arguments: argparse.Namespace, context: Context, engine: StageEngine, service: Service, argv: Sequence[str]
) -> int:
    from pytest_stagegbo.stage.environment import DATABASE

    found = service.credentials
    database = found.database or DATABASE
    if shutil.which("psql") is None:  # as the container's own superuser, who needs no password there
        from pytest_stagegbo.cli.execute import run_inside

        inside = ["runuser", "-u", "postgres", "--", "psql", "-d", database, *argv]
        return run_inside(arguments, context, engine, inside, terminal="" if argv else "connect")
    found = service.credential("user", "password")
    variables = {
        "PGHOST": service.host,
        "PGPORT": str(service.port),
        "PGUSER": found.user,
        "PGPASSWORD": str(found.password),
        "PGDATABASE": database,
        **({"PGSSLMODE": "require"} if service.tls else {}),
    }
    return _become(["psql", *argv], variables, service)


def _valkey(
    arguments: argparse.Namespace, context: Context, engine: StageEngine, service: Service, argv: Sequence[str]
) -> int:
    found = service.credentials
    user = ["--user", found.user] if found.user else []
    client = next((name for name in VALKEY_CLIENTS if shutil.which(name)), None)
    if client is not None:
        tls = ["--tls", "--insecure"] if service.tls else []
        words = [client, "-h", service.host, "-p", str(service.port), *tls, *user, *argv]
        return _become(words, {"REDISCLI_AUTH": str(found.password)} if found.password else {}, service)
    from pytest_stagegbo.cli.execute import run_inside

    script = "client=$(command -v valkey-cli || command -v redis-cli) || exit 127; "
    if found.password:
        file = _hand_in(engine, service.name, str(found.password))
        script += f"REDISCLI_AUTH=$(cat {file}); export REDISCLI_AUTH; rm -f {file}; "
    script += 'exec "$client" "$@"'
    inside = ["sh", "-c", script, "sh", "-p", str(service.port), *user, *argv]
    return run_inside(arguments, context, engine, inside, terminal="" if argv else "connect")


def _hand_in(engine: StageEngine, name: str, secret: str) -> str:
    """Put a secret into a file in a clone's memory, for root, to be removed by who reads it. It goes there on a shell's
    standard input: arguments of processes are seen by every user of the host."""
    file = f"/run/stagegbo-connect-{secrets.token_hex(8)}"
    channel = engine.clone_writer().channel(name)
    try:
        channel.run(f"umask 077; printf %s {shlex.quote(secret)} >{file}", SECONDS)
    finally:
        channel.close()
    return file


def _s3(
    _arguments: argparse.Namespace, _context: Context, _engine: StageEngine, service: Service, argv: Sequence[str]
) -> int:
    found = service.credential("access_key", "secret_key")
    if not argv:
        from pytest_stagegbo.services.answer import NoAnswer
        from pytest_stagegbo.services.buckets import Buckets

        keys = str(found.access_key), str(found.secret_key)
        try:
            with Buckets(service.host, service.port, SECONDS, *keys, tls=service.tls) as server:
                names = server.names()
        except (NoAnswer, OSError) as error:
            raise NotReady(
                f"{service.name} did not list its buckets", seen=str(error), remedy="`stagegbo status` shows its state"
            ) from None
        for name in names:
            print(printable(name))
        return 0
    if shutil.which("aws") is None:
        raise MissingRequirement(
            "connect: there is no aws command here",
            remedy=f"install it (Debian: apt-get install awscli); `stagegbo connect {service.name}` lists the buckets "
            "without it",
        )
    from pytest_stagegbo.stage.environment import variables_of

    endpoint = ["--endpoint-url", service.url]  # older ones don't know the variable
    return _become(["aws", *endpoint, *argv], dict(variables_of(service)), service)


def _become(argv: Sequence[str], variables: Mapping[str, str], service: Service) -> int:
    """Become a client of this host, or run it while this process carries its connections; its exit status then."""
    from pytest_stagegbo.services.dial import way_to
    from pytest_stagegbo.stage.environment import ELSEWHERE

    kept = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    sys.stdout.flush()
    if way_to(str(service.settings.address)) is None:
        os.execvpe(argv[0], list(argv), {**kept, **variables})
    from pytest_stagegbo.session.command import Child

    return Child(argv).run({**kept, **variables})
