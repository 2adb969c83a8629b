#!/bin/sh
# A standby beside its primary, on the same machine and as the same user: its data is copied from the primary's folder while that runs,
# and it ends with it. POSIX sh, builtins only (but `cp`, `rm`, `mkdir`, `chmod`, `cat`, `tail`).
#   standby.sh copy DATA FOLDER          copy what is in DATA to FOLDER/data; the caller has told the server that a backup is made
#   standby.sh launch BIN DATA FOLDER SETTINGS OWN LABEL [ARGUMENTS]
#                                        start a postmaster on FOLDER/data, with the settings in SETTINGS and then those in OWN, and
#                                        what ends it with the primary. LABEL is of the backup in which the data was copied; whoever
#                                        has it copied again removes the former one. Further arguments are postgres's
#   standby.sh watch PRIMARY PID FOLDER  what ends it: looks after both processes until one of them has ended
#   standby.sh running FOLDER            whether its postmaster runs
#   standby.sh end FOLDER                end it, with what looks after it; that there is none is success
#   standby.sh log FOLDER                print the end of its log
set -eu
export LC_ALL=C
umask 077
verb=$1
shift

say() { echo "pg-harness: $*" >&2; }

# Whether a process is there and no zombie: some init processes do not reap.
alive() {
    [ "$1" -gt 0 ] 2>/dev/null || return 1
    kill -0 "$1" 2>/dev/null || return 1
    state=
    { read -r _ _ state _ <"/proc/$1/stat"; } 2>/dev/null || :
    [ "$state" != Z ]
}

# The number in the file of the postmaster of a data directory, in `found`; 0: none. It may be another process's by now.
postmaster() {
    found=0
    { read -r found <"$1/postmaster.pid"; } 2>/dev/null || :
    case $found in '' | *[!0-9]*) found=0 ;; esac
}

# Whether the process of that number is the postmaster of that data directory: it works there (proc(5)); elsewhere than on Linux
# its number has to do.
works_in() {
    alive "$1" || return 1
    [ ! -e "/proc/$1/cwd" ] || [ "/proc/$1/cwd" -ef "$2" ]
}

running() {
    postmaster "$1/data"
    works_in "$found" "$1/data"
}

nap() { sleep "$1" 2>/dev/null || sleep 1; }

# What a file that vanished makes of a copy is put right by the log; whatever else went wrong is an error.
taken() {
    status=0
    said=$(cp -RPp "$1" "$2" 2>&1) || status=$?
    [ "$status" != 0 ] || return 0
    # It was killed, or cannot say what was wrong.
    if [ "$status" != 1 ] || [ -z "$said" ]; then
        say "cp ended with $status at $1: $said"
        return 1
    fi
    rest=
    while IFS= read -r line; do
        case $line in '' | *'No such file or directory'*) ;; *) rest="$rest$line
" ;; esac
    done <<END
$said
END
    [ -n "$rest" ] || return 0
    say "$rest"
    return 1
}

# A copy whose caller was killed goes on; it must not write into the next one's.
newest() {
    number=
    { read -r number <"$folder/copying"; } 2>/dev/null || :
    [ "$number" = $$ ] || { say "another copy to $folder has begun"; exit 1; }
}

# A sign of life each second: whoever asked a daemon for the copy waits for no more than a minute without one.
breathe() {
    while nap 1 </dev/null >/dev/null 2>&1 && alive $$; do echo .; done
}

copy() {
    from=$1
    folder=$2
    to=$folder/copied.$$
    mkdir -p "$folder"
    echo $$ >"$folder/copying"
    rm -rf "$folder/data" "$folder/begun" "$folder"/copied.* || :
    [ ! -e "$folder/data" ] || { say "$folder/data cannot be removed"; exit 1; }
    mkdir "$to"
    breathe &
    breath=$!
    trap 'kill "$breath" 2>/dev/null || :' EXIT
    for path in "$from"/*; do
        newest
        name=${path##*/}
        case $name in
        postmaster.pid | postmaster.opts | backup_label* | tablespace_map* | recovery.signal | standby.signal | *.pid | core*) ;;
        # The log comes by the stream, from the backup's beginning; the rest is of this life of the server alone (pg_basebackup
        # leaves out the same). The copies of marks are the primary's own.
        pg_wal) mkdir "$to/pg_wal" "$to/pg_wal/archive_status" ;;
        pg_replslot | pg_dynshmem | pg_notify | pg_serial | pg_snapshots | pg_stat_tmp | pg_subtrans | pgsql_tmp* | pgh_marks)
            mkdir "$to/$name"
            ;;
        # Last: what it says is only true of what was copied before.
        global) ;;
        *) taken "$path" "$to/$name" ;;
        esac
    done
    newest
    taken "$from/global" "$to/global"
    chmod 700 "$to"
    newest
    mv "$to" "$folder/data"
}

# Looks after a standby: when the primary has ended, it ends as well. It lives as long as either of them.
watch() {
    primary=$1
    pid=$2
    folder=$3
    seen=
    while alive "$pid"; do
        # It goes there a moment after its start; a process that was there and is not is another one of the same number.
        if works_in "$pid" "$folder/data"; then seen=yes; elif [ -n "$seen" ]; then break; fi
        if ! alive "$primary"; then
            # Gently at first: a person's is started again, from where it was.
            for signal in INT QUIT KILL; do
                kill -"$signal" "$pid" 2>/dev/null || break
                looks=0
                while alive "$pid" && [ "$looks" -lt 20 ]; do nap 0.1; looks=$((looks + 1)); done
                alive "$pid" || break
            done
            break
        fi
        nap 0.2
    done
}

launch() {
    bin=$1
    primary=$2
    folder=$3
    settings=$4
    own=$5
    label=$6
    shift 6
    postmaster "$primary"
    server=$found
    # A container that was restarted uses numbers again: the one in this file may be somebody else's now.
    if running "$folder"; then return 0; fi
    rm -f "$folder/data/postmaster.pid"
    # Once: a standby that has gone on since must not begin again with it. Nor must a copy begin without the label of its own backup:
    # it would lack what was written meanwhile.
    if [ ! -e "$folder/begun" ]; then
        [ -s "$label" ] || { say "the copy in $folder was cut off"; exit 1; }
        cat "$label" >"$folder/data/backup_label"
    fi
    : >"$folder/begun"
    : >"$folder/data/standby.signal"
    for file in "$settings" "$own"; do
        while IFS= read -r line; do
            [ -z "$line" ] || set -- "$@" -c "$line"
        done <"$file"
    done
    : >"$folder/log"
    "$bin/postgres" -D "$folder/data" "$@" </dev/null >>"$folder/log" 2>&1 &
    pid=$!
    # A shell of its own: a function that is called with other files keeps ours open, and whoever called us reads until they are closed.
    /bin/sh "$0" watch "$server" "$pid" "$folder" </dev/null >/dev/null 2>&1 &
}

end() {
    running "$1" || return 0
    pid=$found
    for signal in QUIT KILL; do
        kill -"$signal" "$pid" 2>/dev/null || return 0
        looks=0
        while alive "$pid" && [ "$looks" -lt 50 ]; do nap 0.1; looks=$((looks + 1)); done
        alive "$pid" || return 0
    done
    say "the standby $pid does not end"
    return 1
}

case $verb in
copy) copy "$@" ;;
launch) launch "$@" ;;
running) running "$@" ;;
end) end "$@" ;;
watch) watch "$@" ;;
log) tail -n 25 "$1/log" ;;
*) say "standby.sh does not know $verb"; exit 64 ;;
esac
