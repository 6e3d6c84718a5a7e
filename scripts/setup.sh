# shellcheck shell=bash
# Sourced by run_local.sh and run_tests.sh: finds Python and prepares the virtual environment.
# Afterwards $python is the environment's interpreter.

fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# prepare_environment FILE: an environment that holds what the requirements FILE asks for.
prepare_environment() {
  local requirements=$1
  if [[ -n ${YUE_VENV:-} ]]; then
    python=$YUE_VENV/bin/python
    "$python" -c '' 2>/dev/null || fail "YUE_VENV: got '$YUE_VENV'; allowed: a virtual environment (no $python that runs)"
    check_installed "$requirements"
    return
  fi
  python=.venv/bin/python
  make_environment
  install_requirements "$requirements"
}

# check_installed FILE: that nothing is missing of what the requirements FILE names.
check_installed() {
  local missing
  missing=$("$python" -c '
import importlib.metadata, re, sys

def names(path):
    for line in open(path):
        if line.startswith("-r "):
            yield from names(line[3:].strip())
        elif name := re.match(r"[\w.-]+", line):
            yield name[0]

def is_missing(name):
    return not any(importlib.metadata.distributions(name=name))

missing = list(filter(is_missing, names(sys.argv[1])))
print(", ".join(missing))
sys.exit(bool(missing))
' "$1") || fail "YUE_VENV: $YUE_VENV lacks $missing; install what is missing: $python -m pip install -r $1"
}

# Makes .venv, anew where it is broken or was left half-made: the marker stands from the first step to the last.
make_environment() {
  if [[ ! -e .venv/incomplete ]] && "$python" -m pip --version >/dev/null 2>&1; then
    return
  fi
  find_python
  echo "Making .venv with $base_python"
  rm -rf .venv
  mkdir .venv
  touch .venv/incomplete
  "$base_python" -m venv .venv
}

install_requirements() {
  local requirements=$1 stamp wanted pip_args=()
  stamp=.venv/installed-$(basename "$requirements")
  wanted=$(checksum requirements*.txt)
  if [[ -e $stamp && $(<"$stamp") == "$wanted" ]]; then
    return
  fi
  echo "Installing $requirements (the first time this takes minutes)"
  read -r -a pip_args <<<"${YUE_PIP_ARGS:-}" || true
  # Most modules are never imported, and the others are compiled when they are, where that may be written.
  [[ -n ${PYTHONDONTWRITEBYTECODE:-} ]] || pip_args+=(--no-compile)
  touch .venv/incomplete
  # The odd expansion is for bash 3.2, to which an empty array is an unset one.
  "$python" -m pip install --disable-pip-version-check ${pip_args[@]+"${pip_args[@]}"} -r "$requirements" ||
    fail "$requirements could not be installed; pip says above why"
  rm .venv/incomplete
  printf '%s\n' "$wanted" >"$stamp"
}

# Sets $base_python to a Python that is new enough and can make environments.
find_python() {
  local candidate found=''
  for candidate in python3.11 python3.12 python3.13 python3; do
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    found=$candidate
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      base_python=$candidate
      return
    fi
  done
  [[ -z $found ]] || fail "$found has no venv module; install it (on Debian and Ubuntu: apt-get install python3-venv)"
  fail "no Python 3.11 or newer; install one (Debian and Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.12)"
}

checksum() {
  cat "$@" | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}
