#!/bin/sh
# Beside a server, never its child: killing a child of the postmaster makes it restart.
#   watch.sh watch PID PSQL KEY TTL [DIRECTORY]  end the server PID once nobody has held the shared advisory
#                                      lock KEY (on the database postgres) for TTL seconds, or once it cannot
#                                      be asked for that long; then remove DIRECTORY, or keep its data
#                                      first: see leave().
#   watch.sh password PID PSQL         only do what follows.
# The first line of standard input, where it is not empty, becomes the superuser's password as soon as the server
# answers. PGHOST and PGPORT say where the server is, PGPASSFILE how to log in, PGHARNESS_DATA (if set) its directory.
# PGHARNESS_USE=yes: whatever anybody does on the server is a sign of life as well (a person's server, and his application).
set -u
mode=$1
pid=$2
psql=$3
# By this name others see that it runs (harness/servers/handshake.py).
export PGUSER=postgres PGDATABASE=postgres PGCONNECT_TIMEOUT=5 PGAPPNAME='pg-harness watcher'
# Whoever gets the port of a server that has ended would be told the password. An older libpq passes over it.
[ -z "${PGPASSFILE:-}" ] || export PGREQUIREAUTH=scram-sha-256
# A TERM meant for the group must not end the switch before the server.
trap '' HUP

alive() {
    kill -0 "$pid" 2>/dev/null || return 1
    # Some init processes do not reap: a server that ended stays in the table as a zombie.
    state=
    { read -r _ _ state _ <"/proc/$pid/stat"; } 2>/dev/null
    [ "$state" != Z ]
}

# Wait for the postmaster's own word in the eighth line of its file: each log-in that comes too early costs a
# process on either side. Bounded: psql has the last word.
until_ready() {
    looks=0
    while [ -n "${PGHARNESS_DATA:-}" ] && [ "$looks" -lt 1000 ] && alive; do
        status=
        { read -r _ && read -r _ && read -r _ && read -r _ && read -r _ && read -r _ && read -r _ && read -r status; } \
            2>/dev/null <"$PGHARNESS_DATA/postmaster.pid"
        [ "$status" != ready ] || return 0
        looks=$((looks + 1))
        sleep 0.01 2>/dev/null || { sleep 1; looks=$((looks + 100)); }
    done
}

read -r password || password=
# psql reads it from its standard input: an argument would show in the process list. The password is hex digits.
first=
[ -z "$password" ] || first="SET log_statement = none; ALTER ROLE postgres PASSWORD '$password';
\\! echo 'pg-harness: the password is set' >&3"
# The container's log, for what psql's children say: psql's own complaints go nowhere.
exec 3>&2
until_ready

if [ "$mode" = password ]; then
    tries=0
    while alive && [ "$tries" -lt 60 ]; do
        if "$psql" -Xq -v ON_ERROR_STOP=1 -f - >/dev/null 2>&1 <<END; then exit 0; fi
$first
END
        tries=$((tries + 1))
        sleep 0.1 2>/dev/null || sleep 1
    done
    echo "pg-harness: the superuser's password could not be set" >&2
    exit 1
fi

key=$4
ttl=$5
directory=${6:-}
# Idle time is counted in ticks, not read from a clock: a laptop that slept gets its whole TTL again.
# COMMIT after each look: no snapshot and no lock outlives a tick.
# Sessions that began and time in statements, as the server counts them of its clients alone (14 and later); a statement is counted
# at its end, so those that run are asked for too.
used="SELECT NULL"
[ -z "${PGHARNESS_USE:-}" ] || used="SELECT CASE WHEN EXISTS (SELECT FROM pg_stat_activity WHERE datname <> 'postgres'
        AND backend_type = 'client backend' AND state <> 'idle') THEN clock_timestamp()::text
    ELSE (SELECT sum((to_jsonb(d)->>'sessions')::float8 + (to_jsonb(d)->>'active_time')::float8)::text
        FROM pg_stat_database d WHERE datname <> 'postgres') END"
loop="DO \$\$
DECLARE
    tick constant float8 := least(5, greatest(0.2, $ttl / 6.0));
    idle float8 := 0;
    kept float8;
    before text;
    now text;
BEGIN
    LOOP
        IF pg_try_advisory_lock($key) THEN
            $used INTO now;
            idle := CASE WHEN now IS DISTINCT FROM before THEN 0 ELSE idle + tick END;
            before := now;
            -- A run may leave a failed test's database for people: ALTER DATABASE postgres SET harness.ttl.
            SELECT max(substr(entry, 13)::float8) INTO kept FROM pg_db_role_setting, unnest(setconfig) entry
             WHERE entry LIKE 'harness.ttl=%';
            EXIT WHEN idle > greatest($ttl, kept);
            PERFORM pg_advisory_unlock($key);
        ELSE
            idle := 0;
        END IF;
        COMMIT;
        PERFORM pg_sleep(tick);
    END LOOP;
END \$\$"
# Settings of the server that would end the loop; which of them exist depends on the version.
free="SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('statement_timeout',
    'transaction_timeout', 'lock_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout')"
# And the session ends within a second of a psql that was killed, where version and system can do that: a loop without its
# client ends nothing, and would look like a switch.
noticed="DO \$\$ BEGIN PERFORM set_config('client_connection_check_interval', '1s', false);
    EXCEPTION WHEN OTHERS THEN NULL; END \$\$"

misses=0
ours=
while alive; do
    # The kill is psql's own last command: its session still holds the lock exclusively, so a client that
    # comes too late waits for the lock and is told of the shutdown, and never works on a dying server.
    said=$("$psql" -XAtq -v ON_ERROR_STOP=1 -f - -c '\echo connected' -c "$free" -c "$noticed" -c "$loop" \
        -c "\\! kill -INT $pid" 2>/dev/null <<END
$first
END
    ) && {
        ours=yes
        echo "pg-harness: nobody held the sign of life for $ttl s: ending the server" >&2
        break
    }
    alive || break
    case $said in *connected*) misses=0 ;; *) misses=$((misses + 1)) ;; esac
    # A server that cannot be asked must end too; no sooner than 10 s, it may be starting or recovering.
    limit=${ttl%%.*}
    [ "$limit" -gt 10 ] || limit=10
    if [ "$misses" -ge "$limit" ]; then
        echo "pg-harness: the watcher could not ask the server for $limit s: ending it" >&2
        break
    fi
    sleep 1
done

# What is dear to migrate again stays for the next start (process/snapshots.py, keep_later): whole, or nothing of it.
leave() {
    { read -r target <"$directory/keep/target"; } 2>/dev/null || return 0
    [ ! -e "$target" ] || return 0
    half=$target.$$.half
    if mkdir "$half" && cp -a "$directory/data" "$directory/keep/base.json" "$directory/keep/password" "$half/"; then
        touch "$half/base.json"
        mv "$half" "$target"
        echo "pg-harness: its data is kept in $target" >&2
    else
        rm -rf "$half"
    fi
}

clean=$ours
for signal in INT QUIT KILL; do
    alive || break
    # Without a checkpoint its unlogged tables would be lost at the next start.
    [ "$signal" = INT ] || clean=
    kill -"$signal" "$pid" 2>/dev/null
    waited=0
    while alive && [ "$waited" -lt 5 ]; do sleep 1; waited=$((waited + 1)); done
done
if [ -n "$directory" ]; then
    # Who started a server that died at once still wants the end of its log.
    [ "$ours" = yes ] || sleep 3
    # What a standby writes while its folder is removed would stay.
    for standby in "$directory"/standby-*; do
        [ ! -e "$standby/data" ] || /bin/sh "$directory/standby.sh" end "$standby"
    done
    [ "$clean" != yes ] || leave
    rm -rf "$directory"
fi
