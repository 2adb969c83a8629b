#!/bin/sh
# The suite in as many parts as there are servers, side by side: ../../compose/urls 3 | ./shards.sh
# Each part has a report of Jest's, results-1.json and so on.
set -eu
servers=$(cat)
count=$(echo "$servers" | wc -l)
number=0
parts=
for line in $servers; do
    number=$((number + 1))
    # By a variable: an argument with a password would stand in the process list.
    PGHARNESS_SERVER_URL=${line#*=} pg-harness run -- npm test -- --shard="$number/$count" --json --outputFile="results-$number.json" &
    parts="$parts $!"
done
failed=0
for part in $parts; do wait "$part" || failed=1; done
exit "$failed"
