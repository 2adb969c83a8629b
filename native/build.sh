#!/bin/sh
# Compile the module for one PostgreSQL: build.sh INCLUDE_DIRECTORY OUTPUT [FLAGS]
# INCLUDE_DIRECTORY is what `pg_config --includedir-server` says. No libc is linked: its functions come from the server's own.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
include=$1 output=$2
shift 2
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
for source in known records log present marks pages room rewind; do
    "${CC:-cc}" -std=gnu99 -O2 -fPIC -fno-stack-protector -U_FORTIFY_SOURCE -fno-strict-aliasing -fwrapv -Wall -Wextra \
        -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers -Wno-clobbered \
        -ffile-prefix-map="$here"=. "$@" -I"$include" -c "$here/$source.c" -o "$objects/$source.o"
done
"${CC:-cc}" -shared -nostdlib -Wl,--build-id=none -Wl,--as-needed -s -o "$output" \
    "$objects"/known.o "$objects"/records.o "$objects"/log.o "$objects"/present.o "$objects"/marks.o "$objects"/pages.o "$objects"/room.o "$objects"/rewind.o
