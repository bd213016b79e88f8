#!/usr/bin/env bash
# Makes .venv with everything that pyproject.toml names, or does nothing when it is as it should be.
# PYTHON chooses the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if is_new_enough "$name"; then
            echo "$name"
            return
        fi
    done
    echo "no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python" >&2
    exit 1
}

# A virtual environment cannot be moved, so the folder counts too.
wanted="$(sha256sum <pyproject.toml | cut -c 1-16) $PWD"
if [[ $(cat .venv/torpor-stamp 2>/dev/null) == "$wanted" ]] && is_new_enough .venv/bin/python; then
    exit 0
fi

python=$(find_python)
if ! is_new_enough .venv/bin/python || [[ ! -x .venv/bin/pip ]] ||
    [[ $(cat .venv/torpor-stamp 2>/dev/null) != *" $PWD" && -e .venv/torpor-stamp ]]; then
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python cannot make virtual environments; as root: apt-get install python3-venv" >&2
        exit 1
    fi
    rm -rf .venv
    tools/tick.sh "making .venv with $("$python" --version)" "$python" -m venv .venv
fi
rm -f .venv/torpor-stamp
tools/tick.sh "installing Torpor and what it needs into .venv (one to two minutes the first time)" \
    .venv/bin/python -m pip install --disable-pip-version-check --no-input \
    --progress-bar off -e '.[lab,test]'
echo "$wanted" >.venv/torpor-stamp
