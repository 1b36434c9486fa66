#!/usr/bin/env bash
# The one test command: makes an environment of its own, installs the package into it with its compiled core, and runs
# lint, types, contracts and all tests, the latter from an empty directory, so that what is tested is what is installed.
#
#   bash ci/test.sh            PYTHON=python3.12 bash ci/test.sh
set -euo pipefail
exec </dev/null  # the same with a terminal, without one, and with stdin closed
unset PYTHONPATH PYTHONHOME
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
step() { printf '\n=== %s (%ss)\n' "$1" "$SECONDS"; }

step "environment"
"$python" -m venv "$scratch/venv"
bin=$scratch/venv/bin
"$bin/python" -m pip install -q --disable-pip-version-check --upgrade "pip>=24"
# A copy without leftovers: a stray compiled kernel in the checkout must not end up in the wheel.
mkdir "$scratch/source"
(cd "$root" && git ls-files -z --cached --others --exclude-standard) >"$scratch/files" ||
  (cd "$root" && find . -type f ! -path '*/.*/*' ! -path './build/*' ! -name '*.so' -print0) >"$scratch/files"  # an unpacked sdist
tar -C "$root" -c --ignore-failed-read --null -T "$scratch/files" -f - | tar -C "$scratch/source" -x -f -
# Built in a copy of the copy: a build leaves its own copies of modules behind, which nobody wants linted.
cp -R "$scratch/source" "$scratch/build"
DYNAMO_EXTENSIONS=require "$bin/python" -m pip install -q --disable-pip-version-check "$scratch/build[test,fuzz]"

cd "$scratch/source"
step "lint"
"$bin/ruff" check .
"$bin/ruff" format --check .
step "types"
"$bin/mypy"
step "contracts"
PYTHONPATH=$scratch/source "$bin/lint-imports" --no-cache

mkdir "$scratch/empty"
cd "$scratch/empty"
export DYNAMO_SOURCE=$scratch/source DYNAMO_REQUIRE=${DYNAMO_REQUIRE:-compiled} HYPOTHESIS_STORAGE_DIRECTORY=$scratch/hypothesis PATH=$bin:$PATH
# Fresh for each commit, and the same again for the same one. DYNAMO_SEEDS=200 runs more of them.
export DYNAMO_SEED_BASE=${DYNAMO_SEED_BASE:-commit}
tests=$scratch/source/tests
pytest() { "$bin/python" -m pytest -c "$scratch/source/pyproject.toml" --rootdir "$scratch/source" -p no:cacheprovider -q "$@"; }

# Three lanes side by side, for real processes mostly wait. All go to their end, whatever fails.
histories_and_distributions() {
  set -e
  step "simulated histories"
  pytest "$tests/testing"
  step "distributions"
  "$bin/python" "$scratch/source/ci/wheels.py" --source "$scratch/source"
  step "end of histories and distributions"
}
clusters() {
  step "tests of real processes, compiled core"
  pytest "$tests/cluster" --durations 8
}
lanes=(histories_and_distributions clusters)
running=()
for lane in "${lanes[@]}"; do
  ("$lane") >"$scratch/$lane.log" 2>&1 &
  running+=($!)
done
failed=0

step "tests, compiled core"
"$bin/dynamo" version
pytest "$tests" --ignore "$tests/testing" --ignore "$tests/cluster" || failed=1
step "tests that cross the kernels, pure core"
DYNAMO_PURE=1 "$bin/dynamo" version
pure=()
for room in membership replication storage store wire api client verbs cluster/test_cli_cluster.py; do pure+=("$tests/$room"); done
DYNAMO_PURE=1 pytest "${pure[@]}" || failed=1
for at in "${!lanes[@]}"; do
  wait "${running[$at]}" || failed=1
  cat "$scratch/${lanes[$at]}.log"
done
[ "$failed" = 0 ] || { step "FAILED"; exit 1; }
step "done"
