"""The clean state of a PostgreSQL cluster while a build is deployed: what the build has made of it at its first start.

It is a copy of the folder beside production's, which resets take before that (`database.py`).
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Literal

from pytest_stagegbo.guest.keeping import BUILD
from pytest_stagegbo.incus.channel import MARK
from pytest_stagegbo.resets.listing import NOTES

if TYPE_CHECKING:
    from pytest_stagegbo.resets.target import ResetTarget

__all__ = ["drop_build", "keep_build"]

STOPPING = 60
"""Seconds for a server to end by itself."""


def keep_build(target: ResetTarget) -> None:
    """Make the cluster as it is now the clean one. Nobody may use it meanwhile; the caller waits for its answer.

    The server is stopped, so that the copy is whole and needs no recovery. The clean state of the build before stays
    until `drop_build` is asked to drop it, or to bring it back.

    Raises:
        CommandFailed: it could not be done.
    """
    data = shlex.quote(target.container.data.rstrip("/"))
    units = " ".join(map(shlex.quote, target.container.units))
    target.forget()
    target.run_checked(f"""set -eu
data={data} build={data}{BUILD} before={data}{BUILD}-before
exec 9>/run/stagegbo-reset
if command -v flock >/dev/null; then flock 9; fi
# A server that its unit ends by SIGTERM waits for sessions: the one that waits for the next reset ends first.
if read -r session rest <{NOTES}/{target.name}.server.session; then
    ! grep -qsa '{MARK}=' "/proc/$session/environ" || kill "$session" || true
fi 2>/dev/null
systemctl stop {units}
left={STOPPING * 20}
while [ -e "$data/postmaster.pid" ]; do # of Debian's units one waits for the other to be asked only
    left=$((left - 1))
    [ $left -gt 0 ] || {{ echo "the server did not stop within {STOPPING} s"; systemctl start {units}; exit 1; }}
    sleep 0.05
done
rm -rf "$build.new"
if ! cp -a --reflink=always "$data" "$build.new"; then rm -rf "$build.new"; systemctl start {units}; exit 1; fi
if [ -e "$build" ]; then rm -rf "$before"; mv "$build" "$before"; fi
rm -f "$build.clean"
mv "$build.new" "$build"
rm -rf "$data.stagegbo-next" "$data.stagegbo-spare" {NOTES}/{target.name}.server.clean
systemctl start {units} 9>&-
""")


def drop_build(target: ResetTarget, *, to: Literal["production", "before", "build"]) -> None:
    """Change which copy of the cluster is the clean one. May be repeated.

    Args:
        to: `production`: what was cloned. `before`: that of the build before the last `keep_build`, if there was any.
            `build`: that of the last `keep_build`, for good.

    Raises:
        CommandFailed: it could not be done.
    """
    data = shlex.quote(target.container.data.rstrip("/"))
    change = {
        "production": 'rm -rf "$build" "$before" "$build.clean"',
        "before": 'if [ -e "$before" ]; then rm -rf "$build" "$build.clean"; mv "$before" "$build"; fi',
        "build": 'rm -rf "$before"',
    }[to]
    stale = "" if to == "build" else 'rm -rf "$build.new" "$data.stagegbo-next" "$data.stagegbo-spare"'
    target.run_checked(f"""set -eu
data={data} build={data}{BUILD} before={data}{BUILD}-before
exec 9>/run/stagegbo-reset
if command -v flock >/dev/null; then flock 9; fi
rm -f {NOTES}/{target.name}.server.clean
{change}
{stale}
""")
