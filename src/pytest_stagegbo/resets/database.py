"""PostgreSQL, back to the cluster that was cloned: a copy of its folder takes the folder's place.

All of it comes back: databases, roles, sequences, extensions, tablespaces, `ALTER SYSTEM`. The first boot keeps the
copy, before the server's first start, where the file system shares blocks between copies (btrfs, XFS, newer ZFS). It is
as a power cut would leave it, so the first reset lets the server's own program recover it, without network. The
copy for the next reset is made behind the one before.

A start of the server takes most of the time: 60 ms. So the server that this way has started once is kept: when one of
its processes crashes, PostgreSQL ends the others, makes new shared memory and recovers, all in the same process.
What is in its folder is exchanged in between, while the last process to end is held. Whatever is not as it should be
leads to a kill, two renames of the whole folder and a start. So does `restart_after_crash = off`.

Each reset notes from where on the write-ahead log is of what comes after it: `at`, or where the copy's own log ends.
What a test has changed is read from there (`changes/database.py`).

While a build is deployed, what it has made of the cluster is clean: another copy (`database_build.py`).
"""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING

from pytest_stagegbo import clocks
from pytest_stagegbo.errors import StageGboError
from pytest_stagegbo.guest.baselines import NEW
from pytest_stagegbo.guest.keeping import BASELINES, BUILD, GOLDEN
from pytest_stagegbo.incus.channel import MARK
from pytest_stagegbo.resets.database_in_place import IN_PLACE
from pytest_stagegbo.resets.database_spare import FLIP, MOST, RECORD, STEP
from pytest_stagegbo.resets.database_untouched import SETTLE, new_mark
from pytest_stagegbo.resets.listing import NOTES
from pytest_stagegbo.resets.target import NeedsRestart
from pytest_stagegbo.services import ask
from pytest_stagegbo.services.masking import mask

if TYPE_CHECKING:
    from pytest_stagegbo.incus import Writer
    from pytest_stagegbo.resets.target import ResetTarget
    from pytest_stagegbo.settings import ContainerSettings

__all__ = [
    "SPARE",
    "UNTOUCHED",
    "WHOLE",
    "prepare_baseline",
    "prepare_database",
    "reset_database",
    "untouched_script",
]

log = logging.getLogger("stagegbo.reset")

UNTOUCHED, SPARE, WHOLE = "untouched", "spare", "database"
"""Ways: nothing; spare databases took the place of the used ones; what the whole folder holds was exchanged."""
_SAID = "stagegbo: "
_ALONE = b"alone\n"
"""Said by the script before that: sessions have ended, and the server may be asked whether it answers others."""
_DOUBT = {"production": "another state than the clean one was asked for"}
SHORT = 1.0
"""Seconds in which a server answers again, unless it has ended."""
PAUSE = 0.003
TRIES = 2
"""Should the server have ended instead of starting again by itself, the second try starts it."""


def reset_database(target: ResetTarget, base: str = "clean") -> tuple[str, str, bool]:
    """Bring the cluster back.

    Args:
        base: `production`: to what was cloned, although a build is deployed. Else a key of a baseline.

    Returns:
        The way, why it was not the fastest one, and whether the server answered; else the caller waits for it.

    Raises:
        NeedsRestart: there is no copy, or the cluster has parts elsewhere. A restore is the way then.
        StageGboError: the container can't be reached.
    """
    known = target.mark[1] if isinstance(target.mark, tuple) and target.mark[0] == base else ""
    mark = new_mark()
    target.forget()
    said: tuple[str, str] | None = None
    asked: list[bool] = []

    def ask_meanwhile(output: bytes) -> None:
        if output.startswith(_ALONE) and not asked:
            asked.append(_is_ready(target))

    for _ in range(TRIES):
        asked.clear()
        try:
            status, output = target.run(
                _steps(target.container, base, known, mark),
                behind=True,
                library=_functions(target.container),
                meanwhile=ask_meanwhile,
            )
        except StageGboError as error:
            raise NeedsRestart(error.text) from None
        if status:
            raise NeedsRestart(output.decode("utf-8", "replace").strip()[-500:] or f"status {status}")
        way = _way(output)
        said = said or way
        # A server that goes on through all of this, and has given its session the exchange, need not be asked again.
        if way[0] == UNTOUCHED or (way[0] == SPARE and asked == [True]) or _answers(target):
            target.mark = {UNTOUCHED: (base, known), SPARE: (base, mark)}.get(said[0])
            return *said, True
    return *(said or (WHOLE, "")), False


def untouched_script(target: ResetTarget) -> tuple[str, str]:
    """Functions, and POSIX shell that calls them. If nothing can have happened in the cluster since its last reset, it
    prints that and when that was, and exits; a reset after it finds the cluster untouched still. Both are empty if this
    process has not reset it."""
    if not isinstance(target.mark, tuple):
        return "", ""
    mark = target.mark[1]
    script = f"""data={shlex.quote(target.container.data.rstrip("/"))} note={NOTES}/{target.name}.server
if is_untouched {mark}; then
    echo "{UNTOUCHED} $(exec stat -c %.3Y "$note.clean")"
    echo "{mark} $((inner + 2))" >"$note.last" # that of stat
    exit 0
fi
"""
    return _functions(target.container), script


def _way(output: bytes) -> tuple[str, str]:
    """What the script said of the way that it took, and why not the fastest one."""
    for line in reversed(output.decode("utf-8", "replace").splitlines()):
        if line.startswith(_SAID):
            way, _, doubt = line[len(_SAID) :].partition(" ")
            return way, mask(doubt)
    return WHOLE, ""


def _answers(target: ResetTarget) -> bool:
    """Whether the server answers soon: none but one that has started on the copy does."""
    ends = clocks.monotonic() + SHORT
    while not _is_ready(target):
        if clocks.monotonic() > ends:
            return False
        clocks.sleep(PAUSE)
    return True


def _is_ready(target: ResetTarget) -> bool:
    return all(ask(probe, target.host, SHORT).ready for probe in target.container.probes)


def prepare_database(writer: Writer, container: ContainerSettings) -> None:
    """Have everything made that resets of a database need, at the lowest priority, while nobody waits for it.

    Its server has just been started on the cluster that is clean, by the container's boot or by this tool.

    Raises:
        StageGboError: the container can't be reached.
    """
    result = writer.execute(container.name, ["env", f"{MARK}=1", "sh", "-c", _prepare_script(container)])
    log.debug("%s: prepared for resets: %s", container.name, result.stdout.strip() or "it goes on behind")


def _prepare_script(container: ContainerSettings) -> str:
    return f"""{_functions(container)}{_begin(container, "clean")}
pid=$(systemctl show -p MainPID --value {_units(container)} | grep -m1 -v '^0$') || fail "the server does not run"
look_at "$pid" && [ "/proc/$pid/cwd" -ef "$data" ] || fail "the server works elsewhere"
since=$started
(
    lower
    recover
    read_recorded
    first=$start
    take_note "$since"
    behind
) >/dev/null 2>&1 &
"""


def prepare_baseline(target: ResetTarget, key: str) -> None:
    """Make what a reset to a baseline needs of what was kept for it. Raises `StageGboError`: it can't be had."""
    target.run_checked(f"""{_functions(target.container)}{_begin(target.container, key)}
recover
[ -e "$next" ] || copy_next
""")


def _units(container: ContainerSettings) -> str:
    return " ".join(map(shlex.quote, container.units))


def _begin(container: ContainerSettings, base: str, unlocked: str = "") -> str:
    """What every script begins with: the folders, the functions, what is done without the lock, the lock."""
    data = shlex.quote(container.data.rstrip("/"))
    part = f"$data{BASELINES}/{base}"
    chosen = {
        "clean": 'if [ -d "$build" ]; then golden=$build; fi',
        "production": 'if [ -d "$build" ]; then rm -rf "$next" "$spare"; fi',
    }.get(
        base,
        f"""part={part}
[ -d "$part" ] || part=$part{NEW} # its save was killed once all parts were there
golden=$part/0 next=$part/next spare=$part/spare
[ -d "$golden" ] || fail "$golden is gone\"""",
    )
    return f"""set -eu
data={data} golden={data}{GOLDEN} next={data}.stagegbo-next old={data}.stagegbo-old taken={data}.stagegbo-taken
note={NOTES}/{container.name}.server build={data}{BUILD} program= listed= more= mark= oids= bound= used=
spare=$data.stagegbo-spare step={STEP}
{unlocked}exec 9>/run/stagegbo-reset
if command -v flock >/dev/null; then
    hasten || flock 9
fi
[ -n "$data" ] && [ -d "$golden" ] || fail "no copy of $data is kept"
[ -d "$data" ] && [ ! -L "$data" ] || fail "$data is not a folder of its own"
{chosen}
"""


def _functions(container: ContainerSettings) -> str:
    """What every script calls: functions, and nothing else."""
    # How the running server was started is read off it, so that its own program, with its own options, can
    # recover the copy: in single-user mode it does so and ends, with a clean shutdown. What makes the copy for the
    # next reset holds the lock until it is done.
    return f"""
fail() {{ echo "$1"; exit 1; }}
{IN_PLACE}{RECORD}{FLIP}{SETTLE}
lower() {{ # the priority of what runs behind a test
    read -r inner rest </proc/self/stat
    renice -n 19 -p "$inner" || true
    ionice -c 3 -p "$inner" || true
}}

behind() {{ # all that is there for the next reset, once the server runs
    may_end
    listed=1
    prepare "$first" || true
    forget_used || true
    [ -e "$next" ] || copy_next
    [ -z "$more" ] || prepare $((first + step)) || true
    remove_old
}}

copy_next() {{
    rm -rf "$next.new"
    cp -a --reflink=always "$golden" "$next.new" && mv "$next.new" "$next"
}}

copy_of() {{ # COPY: what tells it from others
    stat -c %i.%W "$1"
}}

take_note() {{ # START: this server has been started on the copy, and may be kept
    [ -d {NOTES} ] || mkdir {NOTES}
    program=$(readlink "/proc/$pid/exe") && look_at "$pid" && [ "$started" = "$1" ] &&
        echo "$pid $1 $first $((first + {STEP * MOST})) $(copy_of "$golden") $program" >"$note"
}}

recover() {{
    [ ! -s "$golden.clean" ] || return 0
    [ -z "$(find "$golden" -type l -print -quit)" ] || fail "the cluster has parts outside of $data"
    main=$(systemctl show -p MainPID --value {_units(container)} | grep -m1 -v '^0$') || fail "the server does not run"
    program=$(readlink /proc/$main/exe)
    owner=$(stat -c %U "$golden")
    rm -f "$golden/postmaster.pid" "$golden/postmaster.opts"
    set --
    skip=
    for word in $(tr '\\0' ' ' </proc/$main/cmdline | cut -d ' ' -f 2-); do
        if [ -n "$skip" ]; then skip=; continue; fi
        case $word in -D) skip=1 ;; -D*) ;; *) set -- "$@" "$word" ;; esac
    done
    read -r version <"$golden/PG_VERSION"
    record "$version" | runuser -u "$owner" -- "$program" --single -D "$golden" "$@" -c data_directory="$golden" \\
        -c fsync=off -c archive_mode=off -c timezone=UTC template1 >"$golden.said" 2>&1 ||
        fail "the copy of $data could not be recovered: $(tail -n 3 "$golden.said")"
    recorded <"$golden.said" >"$golden.clean.new"
    rm -f "$golden.said"
    mv "$golden.clean.new" "$golden.clean"
}}
"""


def _script(target: ResetTarget, base: str = "clean", known: str = "", mark: str = "") -> str:
    """All of it, for a shell that has no functions."""
    return f"{_functions(target.container)}{_steps(target.container, base, known, mark)}"


def _steps(container: ContainerSettings, base: str = "clean", known: str = "", mark: str = "") -> str:
    units = _units(container)
    untouched = f'if is_untouched {known}; then echo "{_SAID}{UNTOUCHED}"; exit 0; fi\n' if known else ""
    return f"""{_begin(container, base, untouched)}
recover
read_recorded
[ ! -e "$old" ] || rm -rf "$old"
[ ! -e "$note.clean" ] || : >"$note.clean"
at= mark={mark} doubt={shlex.quote(_DOUBT.get(base, ""))}
{":" if base == "production" else "flip || true"}
exec 5>&- 7>&-
[ -n "$used" ] || exec 8<&-
if [ -n "$used" ]; then
    :
elif in_place; then
    started=$since
else
    rm -rf "$note" "$old" "$taken"
    [ -e "$next" ] || copy_next
    wanted=$(stat -c %i "$next")
    systemctl kill -s KILL {units} 2>/dev/null || true
    systemctl stop {units}
    empty_tablespaces || fail "a tablespace can't be removed"
    mv "$data" "$old"
    mv "$next" "$data"
    systemctl reset-failed {units} || true
    systemctl start {units}
    pid=
    if ! read -r pid <"$data/postmaster.pid"; then # one that is started without waiting for it writes that later
        pid=$(systemctl show -p MainPID --value {units} | grep -m1 -v '^0$') || fail "the server did not start"
    fi 2>/dev/null
    [ "$(stat -L -c %i "/proc/$pid/cwd")" = "$wanted" ] || fail "the server works elsewhere"
    look_at "$pid" || fail "the server has ended again"
fi
if [ -n "$used" ]; then
    echo "{_SAID}{SPARE}"
    first=$((first + {STEP}))
    echo "$pid $since $first $last $base $program" >"$note"
    echo "$used" >>"$note.used"
    echo "$at $golden" >"$note.clean"
else
    echo "{_SAID}{WHOLE} $doubt"
    rm -f "$note.used" "$note.weak" "$note.left"
    [ -d {NOTES} ] || mkdir {NOTES}
    echo "- - $golden" >"$note.clean"
fi
answer
if [ -z "$used" ]; then
    held= first=$start since=$started
    if find_group && wait_until goes_on "$since"; then take_note "$since" || true; fi
fi
keep_session "$first" || true
lower
[ -n "$used" ] || rm -rf "$old" "$taken"
more=1
behind
settle || true
exec 9>&-
wait
"""
