"""How a reset gets at a service's credentials: out of the clone itself, as root, and otherwise as tests do.

The service's own configuration always holds what it asks for, whether or not there is a Vault that is open.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.credentials.secret import Secret
from pytest_stagegbo.errors import StageGboError

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Reader
    from pytest_stagegbo.resets.target import ResetTarget

__all__ = ["find_secret", "s3_keys", "valkey_password"]

S3_NAMES = (
    ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"),
    ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY"),
    ("RCLONE_S3_ACCESS_KEY_ID", "RCLONE_S3_SECRET_ACCESS_KEY"),
)


def find_secret(target: ResetTarget, reader: Reader) -> Secret:
    """Credentials of the service in a clone; empty when it seems to want none.

    Raises:
        StageGboError: the clone can't be reached.
    """
    protocol = target.probe.protocol
    found = {}
    if protocol == "valkey":
        password = valkey_password(_text(target, _valkey_script(target)))
        found = {"password": password} if password else {}
    elif protocol == "s3":
        access, secret = s3_keys(_text(target, _environment_script(target)))
        found = {"access_key": access, "secret_key": secret} if access and secret else {}
    if found:
        return Secret(found, f"the configuration of {target.name}")
    from pytest_stagegbo.credentials.lookup import Credentials  # most services are found to say it themselves

    try:
        return Credentials(target.settings, reader)[target.name]
    except StageGboError:
        return Secret({})


def valkey_password(text: str) -> str:
    """The password of the default user in configuration files and command lines; the last one wins, as for Valkey."""
    found = ""
    for line in text.splitlines():
        match = re.match(r"\s*(?:--)?requirepass\s+(\S.*?)\s*$", line, re.IGNORECASE)
        if match:
            word = match[1]
            found = word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'" else word
    return found


def s3_keys(text: str) -> tuple[str, str]:
    """Access key and secret key in lines `NAME=value` of a server's environment."""
    variables = dict(line.partition("=")[::2] for line in text.splitlines())
    for access, secret in S3_NAMES:
        if variables.get(access) and variables.get(secret):
            return variables[access], variables[secret]
    first = variables.get("RCLONE_AUTH_KEY", "").strip().strip('"')  # a list of pairs, as CSV
    access, comma, secret = first.partition(",")
    return (access, secret.partition('"')[0]) if comma else ("", "")


def _text(target: ResetTarget, script: str) -> str:
    _, output = target.run(script)
    return output.decode("utf-8", "replace")


def _valkey_script(target: ResetTarget) -> str:
    """Prints the configuration file that the unit starts its server with, what that includes, and its options."""
    units = " ".join(map(shlex.quote, target.container.units))
    return f"""set -f
for word in $(systemctl show -p ExecStart --value {units} | sed -n 's/.*argv\\[\\]=\\([^;]*\\);.*/\\1/p'); do
    case $word in
    /*.conf)
        for file in $(sed -n 's/^ *include  *//p' "$word") "$word"; do cat "$file"; echo; done ;;
    esac
    case $word in --*) printf '\\n%s ' "$word" ;; *) printf '%s ' "$word" ;; esac
done 2>/dev/null
"""


def _environment_script(target: ResetTarget) -> str:
    units = " ".join(map(shlex.quote, target.container.units))
    return f"""for pid in $(systemctl show -p MainPID --value {units}); do
    [ "$pid" = 0 ] || tr '\\0' '\\n' </proc/$pid/environ
done 2>/dev/null
"""
