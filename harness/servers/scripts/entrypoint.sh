#!/bin/sh
# Starts a throwaway PostgreSQL in any image that holds its binaries. POSIX sh, builtins only (but `rm`,
# and `cp` for data that the image brought): images differ in everything else. Put into the container between create and start, with, beside it:
#   password   the superuser's, one line, readable by root only; in an image that is run by hand:
#              POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD
#   settings   server settings, one `name=value` a line
#   server.crt, server.key   where PGHARNESS_TLS is set: then nobody logs in over the network without TLS
#   watch.sh   the dead-man's switch
#   standby.sh what starts a standby beside the server, where one is asked for later
# Into an image that has the scripts, password, settings, certificate and key come by standard input instead (PGHARNESS_STDIN).
# Environment (no secrets): PGHARNESS_BASE where data directories lie; PGHARNESS_TTL seconds, empty: never;
# PGHARNESS_LOCK_KEY of the sign of life, a number or an SQL expression; PGHARNESS_SERVER_ID the server's id, where the settings
# cannot know it (a Swarm's task); PGHARNESS_USER the image's own user, a name or `uid:gid`.
set -eu
here=${0%/*}
base=${PGHARNESS_BASE:-$here/data}

say() { echo "pg-harness: $*" >&2; }
die() { say "$1"; exit 64; }

find_binaries() {
    bin=
    newest=0
    # A wrapper on PATH (pgenv, asdf) without the server beside it is no use: both must be there.
    for dir in $(IFS=:; for d in $PATH; do echo "$d"; done) /usr/local/pgsql/bin /usr/local/bin; do
        if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then bin=$dir; return; fi
    done
    for dir in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/libexec/postgresql*/ /usr/local/pgsql-*/bin \
        /usr/lib/postgresql*/bin /opt/*/bin /opt/*/*/bin /usr/local/*/bin; do
        dir=${dir%/}
        [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] || continue
        # The number in the path, for "the newest"; 9.6 counts as 9.
        number=${dir%/bin}
        number=${number##*[!0-9.]}
        number=${number%%.*}
        [ "${number:-0}" -ge "$newest" ] && newest=${number:-0} bin=$dir
    done
    [ -n "$bin" ] || die "this image holds no PostgreSQL server: no initdb and postgres on PATH ($PATH) or in the usual folders"
}

# Sets name, uid and gid of the first passwd entry whose name or number is $1.
lookup() {
    while IFS=: read -r name _ uid gid _; do
        if [ "$name" = "$1" ] || [ "$uid" = "$1" ]; then return 0; fi
    done </etc/passwd
    return 1
}

find_user() {
    wanted=${PGHARNESS_USER:-}
    wanted=${wanted%%:*}
    [ "$wanted" = root ] && wanted=
    [ "$wanted" = 0 ] && wanted=
    [ -e /etc/passwd ] || : >/etc/passwd
    if [ -n "$wanted" ] && lookup "$wanted"; then return; fi
    if lookup postgres; then return; fi
    # initdb refuses a user without a passwd entry; root of this container may add one.
    name=postgres uid=26 gid=26
    case $wanted in '' | *[!0-9]*) ;; *) uid=$wanted gid=$wanted ;; esac
    echo "$name:x:$uid:$gid::$here:/bin/sh" >>/etc/passwd 2>/dev/null ||
        die "this image has no user 'postgres' and /etc/passwd cannot be written: PostgreSQL refuses to run as root"
}

as_user() {
    export PGHARNESS_STAGE="$1" PGHARNESS_BASE="$base" PGHARNESS_BIN="$bin"
    # busybox has a setpriv without --reuid: try before use.
    if setpriv --reuid="$uid" --regid="$gid" --clear-groups /bin/sh -c : 2>/dev/null; then
        exec setpriv --reuid="$uid" --regid="$gid" --clear-groups /bin/sh "$0"
    fi
    for tool in gosu su-exec; do
        if "$tool" "$uid:$gid" /bin/sh -c : 2>/dev/null; then exec "$tool" "$uid:$gid" /bin/sh "$0"; fi
    done
    if su -s /bin/sh "$name" -c : 2>/dev/null; then exec su -s /bin/sh "$name" -c "exec /bin/sh '$0'"; fi
    die "this image has nothing that drops privileges (tried setpriv, gosu, su-exec, su): PostgreSQL refuses to run as root"
}

init() {
    help=$("$bin/initdb" --help)
    set -- -D "$data" --username=postgres --encoding=UTF8 --auth-local=trust --auth-host=scram-sha-256
    case $help in *--no-sync*) set -- "$@" --no-sync ;; esac
    case $help in *--no-instructions*) set -- "$@" --no-instructions ;; esac
    # On by default since 18; hint bits would then write WAL, which a reset reads as a change.
    case $help in *--no-data-checksums*) set -- "$@" --no-data-checksums ;; esac
    case $help in *--wal-segsize*) set -- "$@" --wal-segsize=4 ;; esac
    # 16 and later: a random password gains nothing from 4096 rounds, each connection pays for them.
    case $help in *--set*) set -- "$@" --set scram_iterations=1 ;; esac
    case $help in *--builtin-locale*) set -- "$@" --locale-provider=builtin --builtin-locale=C.UTF-8 ;; esac
    umask 077
    # Without a password nobody comes in by the network: an image's directory has none.
    if [ -n "$password" ]; then
        echo "$password" >"$base/.pwfile"
        set -- "$@" --pwfile="$base/.pwfile"
    fi
    if ! report=$("$bin/initdb" "$@" --locale=C.UTF-8 2>&1); then
        case $report in
        *"invalid locale"*) report=$("$bin/initdb" "$@" --locale=C 2>&1) || failed=yes ;;
        *) failed=yes ;;
        esac
    fi
    [ -z "$password" ] || : >"$base/.pwfile"
    [ -z "${failed:-}" ] || die "initdb failed: $report"
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    # Last: what was cut off before this line is never used, the next start takes the next number.
    : >"$data.ready"
}

# Runs watch.sh beside the server. The image or an earlier start brought the data: then it sets our password.
beside() {
    mode=$1
    shift
    # In a subshell that ends at once: it must be init's child, not the postmaster's.
    (
        PGHARNESS_DATA=$data PGHOST=$socket /bin/sh "$here/watch.sh" "$mode" "$$" "$bin/psql" "$@" <<END &
$new_password
END
    )
}

# Adds to the arguments of postgres what lets nobody in from the network without TLS. Key and rules lie beside the data, for an image
# that is made of it holds neither.
encrypted() {
    umask 077
    : >"$base/server.key"
    while IFS= read -r line; do echo "$line"; done <&4 >"$base/server.key"
    exec 4<&-
    # The rules of the data (an image's own, say) may know `host`, which allows both.
    while read -r kind rest; do
        case $kind in
        host) printf '%s\n' "hostssl $rest" ;;
        hostnossl | hostnogssenc | hostgssenc | '' | '#'*) ;;
        *) printf '%s\n' "$kind $rest" ;;
        esac
    done <"$data/pg_hba.conf" >"$base/hba.conf"
}

serve() {
    bin=$PGHARNESS_BIN
    # Where others look for it, wherever the data lies.
    socket=$base
    # Data that the image brought goes to memory where it fits: a write to a file of an image's layer
    # copies the whole file first.
    if [ "$base" != "$here/data" ] && [ -e "$here/data/1.ready" ] && [ ! -e "$base/1.ready" ]; then
        # Without -p: who copies is who serves, and nobody reads the times of these files.
        if cp -RP "$here/data/1" "$base/1"; then : >"$base/1.ready"; else
            rm -rf "$base/1"
            say "the image's data does not fit into memory: using it where it is"
            base=$here/data
        fi
    fi
    number=1
    while [ -d "$base/$number" ] && [ ! -e "$base/$number.ready" ]; do number=$((number + 1)); done
    data=$base/$number
    password=
    new_password=
    read -r password <&3 || :
    exec 3<&-
    if [ -e "$data.ready" ]; then new_password=$password; else init; fi
    if [ "${PGHARNESS_ONLY:-}" = init ]; then exit 0; fi
    unset POSTGRES_PASSWORD
    # A restarted container reuses process numbers: the old one in this file may be somebody else's now.
    rm -f "$data/postmaster.pid" "$socket/.s.PGSQL.5432" "$socket/.s.PGSQL.5432.lock"
    set --
    while IFS= read -r line; do
        [ -z "$line" ] || set -- "$@" -c "$line"
    done <"$here/settings"
    if [ -n "${PGHARNESS_TLS:-}" ]; then
        encrypted
        set -- "$@" -c ssl=on -c "ssl_cert_file=$here/server.crt" -c "ssl_key_file=$base/server.key" \
            -c ssl_min_protocol_version=TLSv1.2 -c "hba_file=$base/hba.conf"
    fi
    [ -z "${PGHARNESS_SERVER_ID:-}" ] || set -- "$@" -c "harness.server_id=$PGHARNESS_SERVER_ID"
    if [ -n "${PGHARNESS_TTL:-}" ]; then
        [ -x "$bin/psql" ] || die "this image has no psql beside its server, which the dead-man's switch needs"
        beside watch "$PGHARNESS_LOCK_KEY" "$PGHARNESS_TTL"
    elif [ -n "$new_password" ]; then
        beside password
    fi
    unset PGHARNESS_STAGE PGHARNESS_BIN PGHARNESS_TTL PGHARNESS_LOCK_KEY PGHARNESS_USER PGHARNESS_BASE PGHARNESS_TLS PGHARNESS_SERVER_ID
    exec "$bin/postgres" -D "$data" -c "unix_socket_directories=$socket" "$@"
}

# The switch alone, for a server that runs and whose switch has died.
watch() {
    PGHARNESS_DATA=$("$PGHARNESS_BIN/psql" -XAtq -h "$base" -U postgres -d postgres -c 'SHOW data_directory')
    read -r pid <"$PGHARNESS_DATA/postmaster.pid"
    export PGHARNESS_DATA PGHOST="$base"
    exec /bin/sh "$here/watch.sh" watch "$pid" "$PGHARNESS_BIN/psql" "$PGHARNESS_LOCK_KEY" "$PGHARNESS_TTL" </dev/null
}

# A standby beside the server (standby.sh): $PGHARNESS_STANDBY is the verb and its number.
standby() {
    verb=${PGHARNESS_STANDBY% *}
    number=${PGHARNESS_STANDBY#* }
    data=
    for pid in "$base"/*/postmaster.pid "$here"/data/*/postmaster.pid; do
        case $pid in
        */standby-* | *'*'*) ;;
        *) data=${pid%/*} ;;
        esac
    done
    [ -n "$data" ] || die "the server does not run"
    folder=${data%/*}/standby-$number
    case $verb in
    copy) exec /bin/sh "$here/standby.sh" copy "$data" "$folder" ;;
    launch)
        set --
        if [ -n "${PGHARNESS_TLS:-}" ]; then
            set -- -c ssl=on -c "ssl_cert_file=$here/server.crt" -c "ssl_key_file=$base/server.key" \
                -c ssl_min_protocol_version=TLSv1.2 -c "hba_file=$base/hba.conf"
        fi
        # What a postmaster inherits, its sessions could read.
        bin=$PGHARNESS_BIN
        unset PGHARNESS_STAGE PGHARNESS_BIN PGHARNESS_TTL PGHARNESS_LOCK_KEY PGHARNESS_USER PGHARNESS_BASE PGHARNESS_TLS
        exec /bin/sh "$here/standby.sh" launch "$bin" "$data" "$folder" "$here/settings" "$here/standby-$number.own" \
            "$here/standby-$number.label" "$@"
        ;;
    *) exec /bin/sh "$here/standby.sh" "$verb" "$folder" ;;
    esac
}

# An image's own PG* variables would bend initdb and psql.
unset PGDATA PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE PGOPTIONS PGSERVICE PGHOSTADDR PGSSLMODE PGPASSFILE 2>/dev/null || :
export LC_ALL=C

case ${PGHARNESS_STAGE:-} in
server) serve ;;
watch) watch ;;
standby) standby ;;
esac
find_binaries
if [ "${1:-}" = version ]; then
    exec "$bin/postgres" --version
fi
if [ "${1:-}" = healthy ]; then
    exec "$bin/psql" -XAtq -h "$base" -U postgres -d postgres -c 'SELECT 1'
fi
if [ "${1:-}" = watch ]; then
    if [ -w /etc/passwd ]; then
        find_user
        as_user watch
    fi
    export PGHARNESS_BIN="$bin"
    watch
fi
if [ "${1:-}" = standby ]; then
    export PGHARNESS_STANDBY="$2 $3"
    if [ -w /etc/passwd ]; then
        find_user
        as_user standby
    fi
    export PGHARNESS_BIN="$bin"
    standby
fi
if [ -n "${PGHARNESS_STDIN:-}" ] && [ ! -e "$here/password" ]; then
    # The image has these scripts already: all that is new comes by standard input, up to an empty line.
    umask 077
    read -r line && [ -n "$line" ] || die "no password came by standard input"
    echo "$line" >"$here/password"
    umask 022
    while IFS= read -r line && [ -n "$line" ]; do echo "$line"; done >"$here/settings"
    if [ -n "${PGHARNESS_TLS:-}" ]; then
        while IFS= read -r line && [ -n "$line" ]; do echo "$line"; done >"$here/server.crt"
        umask 077
        while IFS= read -r line && [ -n "$line" ]; do echo "$line"; done >"$here/server.key"
        umask 022
    fi
    exec </dev/null
fi
unset PGHARNESS_STDIN
if [ -r "$here/password" ]; then
    exec 3<"$here/password"
elif [ "${PGHARNESS_ONLY:-}" = init ]; then
    exec 3</dev/null
else
    if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then read -r POSTGRES_PASSWORD <"$POSTGRES_PASSWORD_FILE" || :; fi
    case ${POSTGRES_PASSWORD:-} in
    '') die "there is no password: set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE" ;;
    *[!0-9A-Za-z_.~-]*) die "the password may hold letters, digits and . _ ~ - only" ;;
    esac
    exec 3<<END
$POSTGRES_PASSWORD
END
fi
if [ -n "${PGHARNESS_TLS:-}" ]; then
    [ -r "$here/server.key" ] || die "no key came for TLS, or this user cannot read it"
    exec 4<"$here/server.key"
fi
# Into a Swarm's task nothing was put before its start: the server's user makes its files there. Elsewhere an image that says it has data,
# and has none, must not get an empty server.
[ -z "${PGHARNESS_SERVER_ID:-}" ] || [ -d "$base" ] || mkdir -m 1777 "$base" 2>/dev/null || :
# Who may write there is root; an image without the file gets one.
if [ -w /etc/passwd ] || { [ ! -e /etc/passwd ] && [ -w /etc ]; }; then
    find_user
    as_user server
fi
# Not root: the image or the daemon forces a user.
export PGHARNESS_BIN="$bin"
serve
