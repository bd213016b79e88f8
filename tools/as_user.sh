#!/usr/bin/env bash
# As root: run the tests as an ordinary user would, in a copy of this tree, with an environment, a home
# and a runsc of that user's own. The user is a bare uid, so nothing is added to the machine's accounts.
#   tools/as_user.sh [PYTEST ARGUMENT...]
set -euo pipefail
cd "$(dirname "$0")/.."

uid=${TORPOR_TEST_UID:-54321}
[[ $(id -u) == 0 ]] || { echo "this needs root: it becomes uid $uid" >&2; exit 1; }

# Not below /tmp, which is small on some machines and private in the sandboxes under test.
base=/var/lib/torpor-test-$uid
home=$base/home
tree=$base/tree
mkdir -p "$home" "$tree"

# The working tree as it is, without what git ignores; what was deleted here goes there too.
find "$tree" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [[ -e $file || -L $file ]] && printf '%s\0' "$file"
done | tar --null --files-from=- -cf - | tar -xf - -C "$tree"

runsc=$(.venv/bin/torpor install-runsc --from existing --json |
    .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["runsc"]["path"])')
build=$home/.local/share/torpor/gvisor/root
rm -rf "$build"
mkdir -p "$build"
cp "$runsc" "$build/"
[[ -d $(dirname "$runsc")/gvisor-bin ]] && cp -r "$(dirname "$runsc")/gvisor-bin" "$build/"
ln -sfn gvisor/root/runsc "$home/.local/share/torpor/runsc"
chown -R -h "$uid:$uid" "$base"

# pytest keeps its folders below /tmp by the user's name, and refuses one that another uid left there.
name=torpor-test-$uid
rm -rf "/tmp/pytest-of-$name"

# Only what reaches the package index and what the tests are told; nothing of root's besides.
keep=(PATH=/usr/local/bin:/usr/bin:/bin HOME="$home" USER="$name" LOGNAME="$name" LANG=C.UTF-8)
while IFS='=' read -r -d '' key value; do
    case $key in
    PIP_* | SSL_CERT_* | *_CA_BUNDLE | *_proxy | *_PROXY | CI) keep+=("$key=$value") ;;
    esac
done < <(env -0)

become=(env -i "${keep[@]}" setpriv "--reuid=$uid" "--regid=$uid" --clear-groups)
cd "$tree"
echo "  the same as uid $uid"
"${become[@]}" tools/venv.sh
"${become[@]}" env REQUIRE_RUNSC=1 .venv/bin/python -m pytest -m "not slow" "$@"
