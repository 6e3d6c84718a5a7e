#!/usr/bin/env bash
# Runs every check and test, or with --quick those for every minute. Fails when any of them fails, after all have run.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: ./run_tests.sh [--quick] [PYTEST ARGUMENTS]

Prepares .venv with the tools for testing and runs ruff, mypy, shellcheck (where it is installed), hadolint, the audit of
packages and pytest. The container's image is built and tested only with -m container, or with all the rest: -m ''.

  --quick  ruff, mypy, and the tests that start no servers, engines or containers: about 2 minutes on two cores
  --help   this text

Environment: YUE_VENV and YUE_PIP_ARGS as in ./run_local.sh --help
USAGE
}

failed=''

# check NAME COMMAND…
check() {
  local name=$1
  shift
  printf '\n== %s\n' "$name"
  "$@" || failed="$failed${failed:+, }$name"
}

# begin NAME COMMAND…: as check, but beside what follows; `finish` shows its output and takes its result.
begin() {
  local name=$1
  shift
  "$@" >"$folder/$name" 2>&1 &
  begun+=("$name=$!")
}

finish() {
  local each
  for each in "${begun[@]}"; do
    check "${each%=*}" shown "${each%=*}" "${each##*=}"
  done
}

# shown NAME PID
shown() {
  local code=0
  wait "$2" || code=$?
  cat "$folder/$1"
  return "$code"
}

quick='' begun=()
case ${1:-} in
  --quick)
    quick=yes
    shift
    ;;
  --help | -h)
    usage
    exit 0
    ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/setup.sh
source scripts/setup.sh

# The models of the tests are small: more threads would only wait for each other, in each of several processes.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Servers and engines are started again and again: what they import is compiled once.
unset PYTHONDONTWRITEBYTECODE

prepare_environment requirements-dev.txt
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

check "ruff check" "$python" -m ruff check
check "ruff format" "$python" -m ruff format --check
begin "mypy" "$python" -m mypy
if [[ -n $quick ]]; then
  set -- -m 'not container and not slow' "$@"
else
  if command -v shellcheck >/dev/null; then
    check "shellcheck" shellcheck --external-sources ./*.sh scripts/*.sh .ci/run
  else
    echo "shellcheck is not installed: the shell scripts are not checked (Debian: apt-get install shellcheck)"
  fi
  check "hadolint" "${python%/*}/hadolint" Dockerfile
  begin "audit" "$python" scripts/audit.py
  # Much of the time is waiting for servers: one process more than there are cores.
  cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) # nproc obeys OMP_NUM_THREADS
  export PYTEST_XDIST_AUTO_NUM_WORKERS=${PYTEST_XDIST_AUTO_NUM_WORKERS:-$((cores + 1))}
fi
check "pytest" "$python" -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"
finish

[[ -z $failed ]] || fail "failed: $failed"
