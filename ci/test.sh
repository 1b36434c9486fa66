#!/usr/bin/env bash
# The one test command: makes an environment of its own, installs the package into it with its compiled core, and runs
# lint, types, contracts and all tests, the latter from an empty directory, so that what is tested is what is installed.
#
#   bash ci/test.sh            PYTHON=python3.12 bash ci/test.sh
set -euo pipefail
exec </dev/null  # the same with a terminal, without one, and with stdin closed
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE  # without the last, each of hundreds of processes would compile all it imports
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
scratch=$(mktemp -d)
running=()
# A lane is a process group: when the rest fails, it does not go on without its files.
ended() {
  for started in ${running[@]+"${running[@]}"}; do kill -- "-${started#* }" 2>/dev/null || true; done
  rm -rf "$scratch"
}
trap ended EXIT
step() { printf '\n=== %s (%ss)\n' "$1" "$SECONDS"; }

step "environment"
# A copy without leftovers: a stray compiled kernel in the checkout must not end up in the wheel.
mkdir "$scratch/source"
(cd "$root" && git ls-files -z --cached --others --exclude-standard) >"$scratch/files" ||
  (cd "$root" && find . -type f ! -path '*/.*/*' ! -path './build/*' ! -name '*.so' -print0) >"$scratch/files"  # an unpacked sdist
tar -C "$root" -c --ignore-failed-read --null -T "$scratch/files" -f - | tar -C "$scratch/source" -x -f -

bin=$scratch/venv/bin tests=$scratch/source/tests
settings() {
  cd "$scratch/empty"
  export DYNAMO_SOURCE=$scratch/source DYNAMO_REQUIRE=${DYNAMO_REQUIRE:-compiled} HYPOTHESIS_STORAGE_DIRECTORY=$scratch/hypothesis PATH=$bin:$PATH
  # Histories fresh for each commit, and the same again for the same one. CI (.ci/run) takes more of them, and more examples of each property.
  export DYNAMO_SEED_BASE=${DYNAMO_SEED_BASE:-commit} DYNAMO_EXAMPLES=${DYNAMO_EXAMPLES:-20}
}
pytest() { "$bin/python" -m pytest -c "$scratch/source/pyproject.toml" --rootdir "$scratch/source" -p no:cacheprovider -q "$@"; }

# Lanes side by side: one begins at once, for all it needs of the others is a wheel, and one mostly waits.
lane() {
  set -m
  ("$@") >"$scratch/$1.log" 2>&1 &
  set +m
  running+=("$1 $!")
}
distributions_and_pure() {
  local status=0
  step "distributions"
  "$python" "$scratch/source/ci/wheels.py" --source "$scratch/source" --built "$scratch/wheel" || status=1
  until [ -d "$scratch/empty" ]; do sleep 1; done  # the environment is ready, or this lane is ended
  step "tests that cross the kernels, pure core"
  settings
  DYNAMO_PURE=1 "$bin/dynamo" version
  local pure=()
  for room in membership replication store wire verbs/test_verbs.py verbs/test_many.py; do pure+=("$tests/$room"); done
  # Of real processes what a kernel decides: siblings, contexts, and that nothing is lost.
  for test in two_puts_under_one_context_are_siblings_until_a_put_merges_them the_cart_example_finds_every_purchase_after_a_kill; do
    pure+=("$tests/cluster/test_cli_cluster.py::test_$test")
  done
  DYNAMO_PURE=1 DYNAMO_EXAMPLES=$((DYNAMO_EXAMPLES / 2)) pytest "${pure[@]}" || status=1
  step "end of distributions and pure core"
  return $status
}
lane distributions_and_pure

"$python" -m venv "$scratch/venv"
pip() { "$bin/python" -m pip "$@" -q --disable-pip-version-check; }
# Built in a copy of the copy: a build leaves its own copies of modules behind, which nobody wants linted.
cp -R "$scratch/source" "$scratch/build"
DYNAMO_EXTENSIONS=require pip wheel --no-deps --wheel-dir "$scratch/made" "$scratch/build"
mv "$scratch/made" "$scratch/wheel"
pip install --no-compile "$(echo "$scratch"/wheel/*.whl)[test,fuzz]"  # the first import compiles, and only what is used

cd "$scratch/source"
step "lint"
"$bin/ruff" check .
"$bin/ruff" format --check .
step "types"
"$bin/mypy"
step "contracts"
PYTHONPATH=$scratch/source "$bin/lint-imports" --no-cache

mkdir "$scratch/empty"
settings
commands=("$tests/bench" "$tests/cli" "$tests/core/test_build.py" "$tests/test_fuzz.py")
histories_and_commands() {
  local status=0
  step "simulated histories"
  pytest "$tests/testing" --durations 8 || status=1
  step "tests that start commands and builds"
  pytest "${commands[@]}" || status=1
  step "end of histories, commands and builds"
  return $status
}
clusters() {
  step "tests of real processes, compiled core"
  pytest "$tests/cluster" --durations 8
}
lane histories_and_commands
lane clusters
failed=0

step "tests, compiled core"
"$bin/dynamo" version
pytest "$tests" "${commands[@]/#/--ignore=}" --ignore "$tests/testing" --ignore "$tests/cluster" || failed=1
for started in "${running[@]}"; do
  wait "${started#* }" || failed=1
  cat "$scratch/${started% *}.log"
done
running=()
[ "$failed" = 0 ] || { step "FAILED"; exit 1; }
step "done"
