"""Spare databases, made behind a test: copies of the clean ones, in folders beside the data.

A used database serves again as a spare one. Most of its files are as they were made, and the others are copied again:
that takes a tenth of what a whole copy takes, and of what it takes to remove one. A file has not changed if it has the
inode and the time of change that it had before the server got it: nobody can set that time but the kernel.

In `$spare`, each set that is ready is a folder, named by its first OID. `new` is the one that is being made, `used` has
what was exchanged. What files were made with is in the container's `/run`, so no used database outlasts its boot.
"""

from __future__ import annotations

__all__ = ["MAKING", "MOST_LEFT"]

MOST_LEFT = 8
"""Used databases that stay where they are, since the server may still write pages of their unlogged tables."""

MAKING = (
    r"""
prepare() { # FIRST: a set of spare databases, in $spare/FIRST; goes on with what of it is there
    [ -n "$oids" ] || return 1
    [ ! -d "$spare/$1/$1" ] || return 0
    copy=$(copy_of "$golden")
    of=.$1-$copy # not of another copy, should it have come meanwhile
    if [ ! -d "$spare/new/$of" ]; then
        rm -rf "$spare/new" && mkdir -p -m 700 "$spare" && mkdir "$spare/new" "$spare/new/$of" || return 1
    fi
    number=$1
    for oid in $oids; do
        if [ ! -d "$spare/new/$number" ]; then
            rm -rf "$spare/new/.part"
            reuse "$oid" "$number" || {
                rm -rf "$spare/new/.part"
                cp -a --reflink=always "$golden/base/$oid" "$spare/new/.part"
            } && mv "$spare/new/.part" "$spare/new/$number" || return 1
        fi
        number=$((number + 1))
    done
    [ "$number" -le $(($1 + step)) ] && { [ -z "$listed" ] || list_made "$1"; } &&
        rm -rf "$spare/$1" && mv "$spare/new" "$spare/$1"
}

list_files() { # FOLDER...: of databases, each with its inode and time of change; not what is only a cache
    find "$@" -mindepth 1 ! -name 'pg_internal.init*' -printf '%i %C@ %f\n' || echo /
}

list_made() { # FIRST: what says later which files of this set are as they were made
    list_files "$spare/new"/[0-9]* | sort >"$note.made.$1.$copy" &&
        ! grep -qx / "$note.made.$1.$copy" || return 1
    sleep 0.01 # the clock for times of change goes in steps: whatever is written from now on has another one
}

are_as_made() { # FIRST: whether this set, in its place, has the files that it was made with
    number=$1
    list=$note.made.$1.$base
    set --
    for each in $oids; do
        set -- "$@" "$data/base/$number"
        number=$((number + 1))
    done
    list_files "$@" 2>/dev/null | sort | cmp -s - "$list"
}

reuse() { # OID NUMBER: a used database is made to what OID is in the copy, in $spare/new/.part
    for folder in "$spare/used"/[0-9]*; do
        each=${folder##*/}
        case $each in *[!0-9]*) continue ;; esac
        [ $((each % step)) = $(($2 % step)) ] || continue
        list=$note.made.$((each - each % step)).$copy
        [ -s "$list" ] && mv "$folder" "$spare/new/.part" && copy_changed "$golden/base/$1" "$spare/new/.part"
        return
    done
    return 1
}

copy_changed() { # FROM TO: what is not as $list says is copied again; a file with this inode and time has not changed
    from=$1 to=$2
    changed=$(list_files "$to" | grep -vxFf "$list")
    [ $? -le 1 ] || return 1
    set --
    while read -r inode stamp file; do
        case $inode:$file in
        :) ;;
        *: | *[!0-9A-Za-z_.:]*) return 1 ;; # none of the server's
        *) set -- "$@" "$to/$file" ;;
        esac
    done <<END
$changed
END
    rm -f -- "$to"/pg_internal.init* "$@" || return 1
    set --
    for each in "$from"/* "$from"/.[!.]*; do
        if [ -e "$each" ] && [ ! -e "$to/${each##*/}" ]; then set -- "$@" "$each"; fi
    done
    [ $# = 0 ] || cp -a --reflink=always -t "$to" -- "$@" || return 1
    set -- $(stat -c %f:%u:%g "$from" "$to")
    [ "$1" = "$2" ]
}

forget_used() { # Nothing in the server's memory or log may need a folder any more that goes from its place.
    [ -s "$note.used" ] || return 0
    if [ -n "$used" ] && hear forgot; then # another psql would take as long as the checkpoint
        exec 8<&-
    elif ! (ask_server -c 'set statement_timeout = 0' -c checkpoint) >/dev/null; then
        # A server that answers, and can't write what it has in memory, would not start again as it is.
        if (ask_server -c 'select 1') >/dev/null; then weaken 'the server could not write a checkpoint'; fi
        return 1
    fi
    rm -rf "$spare/used" && mkdir -p -m 700 "$spare/used" || return 1
    set --
    while read -r line; do
        for each in $line; do
            case $each in *[!0-9]*) continue ;; esac
            [ -d "$data/base/$each" ] || continue
            # A checkpoint writes no page of an unlogged table. Whoever needs room in memory does, later.
            if has_unlogged "$data/base/$each"; then
                echo "$each" >>"$note.left"
            else
                set -- "$@" "$data/base/$each"
            fi
        done
    done <"$note.used"
    [ $# = 0 ] || mv -t "$spare/used" -- "$@" || return 1
    rm -f "$note.used"
    count=0
    while read -r each; do count=$((count + 1)); done 2>/dev/null <"$note.left" || true
    [ "$count" -lt """
    + f"{MOST_LEFT}"
    + r""" ] || weaken 'the server has pages of unlogged tables of used databases'
}

weaken() { # REASON: the next reset starts the server again
    echo "$1" >"$note.weak"
    rm -f "$note"
}

has_unlogged() { # FOLDER: of a database
    for file in "$1"/*_init; do
        [ ! -e "$file" ] || return 0
    done
    return 1
}

remove_old() { # of spare databases and of what is known about them: what no later reset uses
    set -- "$spare/used"
    for each in "$spare"/[0-9]*; do
        number=${each##*/}
        [ "$number" -ge "$first" ] && [ "$number" -le $((first + step)) ] || set -- "$@" "$each"
    done
    for each in "$note.made".*; do
        number=${each#"$note.made."} number=${number%%.*}
        [ "$number" -ge $((first - step)) ] && [ "$number" -le $((first + step)) ] || set -- "$@" "$each"
    done
    rm -rf -- "$@"
}
"""
)
