"""PostgreSQL, back to the cluster that was cloned: a copy of its folder takes the folder's place.

All of it comes back: databases, roles, sequences, extensions, tablespaces, `ALTER SYSTEM`. The first boot keeps the
copy, before the server's first start, where the file system shares blocks between copies (btrfs, XFS, newer ZFS). It is
as a power cut would leave it, so the first reset lets the server's own program recover it, without network. After that
a reset is a kill, two renames and a start; the copy for the next one is made meanwhile.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.guest.keeping import GOLDEN
from pytest_stagegbo.resets.target import NeedsRestart

if TYPE_CHECKING:
    from pytest_stagegbo.resets.target import ResetTarget

__all__ = ["reset_database"]


def reset_database(target: ResetTarget) -> None:
    """Bring the cluster back; the caller waits for the answer.

    Raises:
        NeedsRestart: there is no copy, or the cluster has parts elsewhere. A restore is the way then.
        StageGboError: the container can't be reached.
    """
    target.forget()
    try:
        status, output = target.run(_script(target))
    except StageGboError as error:
        raise NeedsRestart(str(error)) from None
    if status:
        raise NeedsRestart(output.decode("utf-8", "replace").strip()[-500:] or f"status {status}")


def _script(target: ResetTarget) -> str:
    data = shlex.quote(target.container.data.rstrip("/"))
    units = " ".join(map(shlex.quote, target.container.units))
    # How the running server was started is read off it, so that its own program, with its own options, can
    # recover the copy: in single-user mode it does so and ends, with a clean shutdown. What makes the copy for the
    # next reset holds the lock until it is done.
    return f"""set -eu
data={data} golden={data}{GOLDEN} next={data}.stagegbo-next old={data}.stagegbo-old
fail() {{ echo "$1"; exit 1; }}
exec 9>/run/stagegbo-reset
if command -v flock >/dev/null; then flock 9; fi
[ -n "$data" ] && [ -d "$golden" ] || fail "no copy of $data is kept"
[ -d "$data" ] && [ ! -L "$data" ] || fail "$data is not a folder of its own"
[ -z "$(find "$golden" -type l -print -quit)" ] || fail "the cluster has parts outside of $data"
if [ ! -e "$golden.clean" ]; then
    pid=$(systemctl show -p MainPID --value {units} | grep -m1 -v '^0$') || fail "the server does not run"
    program=$(readlink /proc/$pid/exe)
    owner=$(stat -c %U "$golden")
    rm -f "$golden/postmaster.pid" "$golden/postmaster.opts"
    set --
    skip=
    for word in $(tr '\\0' ' ' </proc/$pid/cmdline | cut -d ' ' -f 2-); do
        if [ -n "$skip" ]; then skip=; continue; fi
        case $word in -D) skip=1 ;; -D*) ;; *) set -- "$@" "$word" ;; esac
    done
    runuser -u "$owner" -- "$program" --single -D "$golden" "$@" -c data_directory="$golden" -c fsync=off \\
        -c archive_mode=off template1 </dev/null || fail "the copy of $data could not be recovered"
    : >"$golden.clean"
fi
rm -rf "$old"
if [ ! -e "$next" ]; then
    rm -rf "$next.new"
    cp -a --reflink=always "$golden" "$next.new"
    mv "$next.new" "$next"
fi
wanted=$(stat -c %i "$next")
systemctl kill -s KILL {units} 2>/dev/null || true
systemctl stop {units}
# The cluster's own part of tablespaces that were made since: the server would refuse to make them there again.
version=$(cat "$golden/PG_VERSION")
for link in "$data"/pg_tblspc/*; do
    [ -L "$link" ] || continue
    rm -rf "$(readlink "$link")"/PG_"$version"_[0-9]* || fail "a tablespace can't be removed"
done
mv "$data" "$old"
mv "$next" "$data"
systemctl reset-failed {units} || true
systemctl start {units}
pid=
if ! read -r pid <"$data/postmaster.pid"; then # one that is started without waiting for it writes that later
    pid=$(systemctl show -p MainPID --value {units} | grep -m1 -v '^0$') || fail "the server did not start"
fi 2>/dev/null
[ "$(stat -L -c %i "/proc/$pid/cwd")" = "$wanted" ] || fail "the server works elsewhere"
(
    rm -rf "$old" "$next.new"
    cp -a --reflink=always "$golden" "$next.new" && mv "$next.new" "$next"
) >/dev/null 2>&1 &
"""
