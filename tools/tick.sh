#!/usr/bin/env bash
# Runs a command quietly: one line every five seconds while it works, its whole output if it fails.
#   tools/tick.sh "what it does" COMMAND [ARGUMENT...]
set -euo pipefail
what=$1
shift
log=$(mktemp -t torpor-step.XXXXXX)
echo "  $what"
"$@" >"$log" 2>&1 </dev/null &
child=$!
trap 'kill "$child" 2>/dev/null || true; rm -f "$log"' EXIT
trap 'exit 130' INT TERM
started=$SECONDS
while kill -0 "$child" 2>/dev/null; do
    sleep 0.2
    if ((SECONDS - started >= ${next:-5})); then
        last=$(tail -n 1 "$log" | tr -d '\r' | sed 's/^ *//')
        echo "    $((SECONDS - started)) s  ${last:0:80}"
        next=$((SECONDS - started + 5))
    fi
done
code=0
wait "$child" || code=$?
if ((code != 0)); then
    cat "$log" >&2
    echo "failed with code $code: $*" >&2
fi
exit "$code"
