#!/bin/sh
# Starts a local postmaster and its watcher as nobody's children, and prints their process numbers.
#   launch.sh BIN DATA LOG SETTINGS [KEY TTL DIRECTORY [PID]]  with PID, of the postmaster: the watcher alone
# PGHOST, PGPORT and PGPASSFILE are the watcher's.
set -eu
umask 077
here=${0%/*}
bin=$1 data=$2 log=$3 settings=$4
shift 4
key=${1:-} ttl=${2:-} directory=${3:-} pid=${4:-}
if [ -z "$pid" ]; then
    set --
    while IFS= read -r line; do
        [ -z "$line" ] || set -- "$@" -c "$line"
    done <"$settings"
    (unset PGHOST PGPORT PGPASSFILE; exec "$bin/postgres" -D "$data" "$@" </dev/null >>"$log" 2>&1) &
    pid=$!
fi
watcher=0
if [ -n "$ttl" ]; then
    /bin/sh "$here/watch.sh" watch "$pid" "$bin/psql" "$key" "$ttl" "$directory" </dev/null >>"$log" 2>&1 &
    watcher=$!
fi
# Whoever called may be gone by now, and must be able to find them the next time.
echo "$pid $watcher" >"$here/launched"
echo "$pid $watcher"
