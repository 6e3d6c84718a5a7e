#!/usr/bin/env bash
# Runs every check and test; arguments go to pytest. Fails when any of them fails, after all have run.
# The environment is the one of run_local.sh, see there for YUE_VENV and YUE_PIP_ARGS.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/setup.sh
source scripts/setup.sh

failed=''

# check NAME COMMAND…
check() {
  local name=$1
  shift
  printf '\n== %s\n' "$name"
  "$@" || failed="$failed${failed:+, }$name"
}

# The models of the tests are small: more threads would only wait for each other, in each of several processes.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

prepare_environment requirements-dev.txt
check "ruff check" "$python" -m ruff check
check "ruff format" "$python" -m ruff format --check
check "mypy" "$python" -m mypy
if command -v shellcheck >/dev/null; then
  check "shellcheck" shellcheck --external-sources ./*.sh scripts/*.sh .ci/run
else
  echo "shellcheck is not installed: the shell scripts are not checked (Debian: apt-get install shellcheck)"
fi
check "hadolint" "${python%/*}/hadolint" Dockerfile
check "audit" "$python" scripts/audit.py
check "pytest" "$python" -m pytest --numprocesses auto --dist loadfile "$@"

[[ -z $failed ]] || fail "failed: $failed"
