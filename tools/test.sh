#!/usr/bin/env bash
# All tests but the slow ones. First those with real sandboxes, which have the machine for themselves; then, as
# root, those without any beside some that are repeated as an ordinary user (`make test-user` repeats more).
set -euo pipefail
cd "$(dirname "$0")/.."

export REQUIRE_RUNSC=1
tests=(.venv/bin/python -m pytest -m "not slow")
plain=(tests/unit tests/contract tests/integration/{bridge,daemon,guest,stores})
# What has most to do with the rights of whoever runs it.
rights=(tests/security tests/integration/{backend,cli} tests/e2e/test_{bad_input,hibernation,lab,pool_workspaces}.py)

"${tests[@]}" "${plain[@]/#/--ignore=}"
if [[ $(id -u) != 0 ]]; then
    exec "${tests[@]}" "${plain[@]}"
fi

said=$(mktemp)
# The shell has what it starts beside itself ignore Ctrl-C, and so would the programs under test.
env --default-signal=INT,QUIT make --no-print-directory test-user PYTEST="${rights[*]}" >"$said" 2>&1 &
user=$!
trap 'kill "$user" 2>/dev/null || true; rm -f "$said"' EXIT
status=0
"${tests[@]}" "${plain[@]}" || status=$?
wait "$user" || status=$?
cat "$said"
exit "$status"
