"""What is in the data folder of a PostgreSQL server, exchanged while its first process goes on."""

from __future__ import annotations

__all__ = ["IN_PLACE"]

IN_PLACE = r"""
look_at() { # PID: a process, in $state, $parent and $started
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    set -- ${line##*) }
    state=$1 parent=$2 started=${20}
}

others() { # what runs in the server's cgroup beside the server and the process that holds it up, in $left
    left=
    while read -r each; do
        case $each in "$pid" | "$held" | 0) ;; *) left="$left $each" ;; esac
    done <"$group"
}

find_group() { # the list of processes in the server's cgroup, in $group
    group=
    while IFS=: read -r number controllers path; do
        case $number:$controllers in 0: | *:name=systemd) ;; *) continue ;; esac
        case $path in *.service) ;; *) continue ;; esac
        for folder in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
            [ -e "$folder$path/cgroup.procs" ] || continue
            while read -r each; do
                if [ "$each" = "$pid" ]; then group=$folder$path/cgroup.procs; return 0; fi
            done <"$folder$path/cgroup.procs"
        done
    done <"/proc/$pid/cgroup"
    return 1
}

find_held() { # the checkpointer, which the server waits for when another of its processes has crashed
    held=
    others
    for each in $left; do
        title=
        { read -r title <"/proc/$each/cmdline" || true; } 2>/dev/null
        case $title in *checkpointer*) ;; *) continue ;; esac
        look_at "$each" && [ "$parent" = "$pid" ] && held=$each && return 0
    done
    return 1
}

wait_until() { # COMMAND...: polls with a deadline, as nothing tells when a process has ended
    round=0
    until "$@"; do
        round=$((round + 1))
        [ "$round" -lt 1500 ] || return 1
        sleep 0.001
    done
}

all_ended() {
    others
    [ -z "$left" ] || kill -9 $left 2>/dev/null || true
    for each in $killed $left; do
        [ ! -e "/proc/$each" ] || return 1
    done
}

is_alone() { # the server is stopped, so that it starts nothing more, and does not reap
    look_at "$pid" && [ "$state" = T ] || return 1
    others
    [ -n "$left" ] || return 0
    kill -9 $left 2>/dev/null || true
    return 1
}

goes_on() { # START: the server is the same, and has started processes again
    look_at "$pid" && [ "$started" = "$1" ] && others && [ -n "$left" ]
}

empty_tablespaces() { # the cluster's own part of those that were made since: it would refuse to make them there again
    version=
    read -r version <"$golden/PG_VERSION" || return 1
    for link in "$data"/pg_tblspc/*; do
        [ -L "$link" ] || continue
        rm -rf "$(readlink "$link")"/PG_"$version"_[0-9]* || return 1
    done
}

move_all() { # FROM TO: everything but what says which server works in the folder
    from=$1 to=$2
    set --
    for each in "$from"/* "$from"/.[!.]*; do
        case ${each##*/} in postmaster.pid | postmaster.opts) continue ;; esac
        if [ -e "$each" ] || [ -L "$each" ]; then set -- "$@" "$each"; fi
    done
    mv -t "$to" -- "$@"
}

in_place() { # what the folder holds is exchanged while the server holds still between two lives
    [ -e "$note" ] && [ ! -e "$taken" ] || return 1
    [ -e "$next" ] || copy_next || return 1
    { read -r pid since rest <"$note"; } 2>/dev/null && look_at "$pid" && [ "$started" = "$since" ] || return 1
    [ "/proc/$pid/cwd" -ef "$data" ] || return 1
    { read -r each <"$data/postmaster.pid"; } 2>/dev/null && [ "$each" = "$pid" ] || return 1
    set -- $(stat -c %a:%u:%g "$data" "$golden")
    [ "$1" = "$2" ] || return 1
    held=
    find_group && find_held || return 1
    # From here on nobody but this way knows what state the folder is in, until the note is written again.
    : >"$note" && mv "$next" "$taken" && mkdir "$old" || return 1
    # The server sees its processes crash, lets nobody in, and waits for the last of them, which can't end.
    kill -STOP "$held" && others && killed=$left && [ -n "$killed" ] || return 1
    wait_until all_ended || return 1
    kill -STOP "$pid" && wait_until is_alone || return 1
    empty_tablespaces && move_all "$data" "$old" && move_all "$taken" "$data" || return 1
    # Then it reads its settings, makes new memory, and starts on what is now in the folder.
    kill -HUP "$pid" && kill -9 "$held" && kill -CONT "$pid"
}
"""
