#!/usr/bin/env bash
# What the container runs: the server, or the download of its weights.
# In a checkout it does the same with the python3 that is first on PATH.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: entrypoint.sh [serve | download]

  serve     run the server (the default) until SIGTERM or Ctrl-C
  download  download the weights of YUE_MODEL, verify them and end: for a volume, or an image with the weights inside
  --help    this text

Environment (all settings are in docs/configuration.md):
  YUE_MODEL       default tiny: a demonstration that hums a tune; en-cot sings the lyrics
  YUE_LOADING     on_demand (default): weights come with the first song; startup: when the server starts
  YUE_WEIGHTS     where the weights are already, instead of the Hub: a folder, or a gs://, s3:// or az:// address
  YUE_DATA        where jobs and songs are kept: a folder, or a gs://, s3:// or az:// address; default in the cache
  YUE_API_KEY     the key, or keys, without which only probes and /docs are answered; default none
  YUE_HOST        where to listen, default 127.0.0.1, which only this machine reaches; 0.0.0.0: everywhere
  PORT            default 8080; Vertex AI's AIP_HTTP_PORT counts first
  HF_HOME         where weights from the Hub are kept
  XDG_CACHE_HOME  where everything else that is made once is kept
USAGE
}

cache='' stopped=''

main() {
  (($# <= 1)) || usage_error "got '$*'; allowed: one of serve, download, --help"
  keep_folders
  cd "$(dirname "${BASH_SOURCE[0]}")"
  case ${1-serve} in
    serve | download) ;;
    --help | -h)
      usage
      exit
      ;;
    *) usage_error "got '$1'; allowed: serve, download, --help" ;;
  esac
  check_folders
  "${1-serve}"
}

# A relative folder is the caller's, not this script's. An address, or a ~ that the Hub's library expands, stays.
keep_folders() {
  local variable
  for variable in YUE_WEIGHTS AIP_STORAGE_URI YUE_DATA XDG_CACHE_HOME HF_HOME HF_HUB_CACHE; do
    case ${!variable:-} in
      '' | /* | *://* | \~*) ;;
      *) export "$variable=$PWD/${!variable}" ;;
    esac
  done
}

# check_python MODULE: that the requirements are installed.
check_python() {
  python3 -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" ||
    fail "python3 ($(command -v python3)) lacks what requirements.txt names; activate the environment that has it," \
      "as with: source .venv/bin/activate"
}

# gunicorn takes this process's place: signals reach it. It reads and checks the settings, the port among them.
serve() {
  check_python gunicorn
  exec python3 -m gunicorn
}

# The first process of a container gets no signal that it does not ask for, and Python does not ask for SIGTERM:
# so this shell stays, and passes it on.
download() {
  local code=0 weights=${YUE_WEIGHTS:-${AIP_STORAGE_URI:-}}
  local arguments=(--model "${YUE_MODEL:-tiny}" --device "${YUE_DEVICE:-auto}" --cache "$cache")
  [[ -z $weights ]] || arguments+=(--local "$weights")
  check_python obstore
  trap stop INT TERM
  python3 -m inference.weights.download "${arguments[@]}" &
  [[ -z $stopped ]] || stop
  wait $! || code=$?
  if [[ -n $stopped ]]; then
    wait $! || code=$? # the first one was cut short by the signal
    echo "entrypoint.sh: the download was stopped; what is here already is kept" >&2
  fi
  exit "$code"
}

stop() {
  stopped=yes
  jobs -p | xargs -r kill -TERM 2>/dev/null || true
}

check_folders() {
  local base=${XDG_CACHE_HOME:-${HOME:?entrypoint.sh: neither HOME nor XDG_CACHE_HOME is set}/.cache}
  cache=$base/yue-server
  [[ ! -g $base ]] || umask g=rwx # a folder that belongs to its group: so does what is put there
  check_writable XDG_CACHE_HOME "$cache"
  if [[ ${YUE_MODEL:-tiny} != tiny && -z ${YUE_WEIGHTS:-}${AIP_STORAGE_URI:-} ]] && ! is_offline; then
    local variable=HF_HOME hub=${HF_HOME:-$base/huggingface}
    [[ -z ${HF_HUB_CACHE:-} ]] || variable=HF_HUB_CACHE hub=$HF_HUB_CACHE
    check_writable "$variable" "${hub/#\~/${HOME:-}}"
  fi
  if [[ -n ${YUE_DATA:-} && $YUE_DATA != *://* ]]; then # else it is a bucket
    check_writable YUE_DATA "${YUE_DATA/#\~/$HOME}"
  fi
}

# The words that the Hub's library takes for yes.
is_offline() (
  shopt -s nocasematch
  [[ ${HF_HUB_OFFLINE:-} =~ ^(1|on|yes|true)$ ]]
)

check_writable() {
  local variable=$1 folder=$2
  if ! mkdir -p -- "$folder" 2>/dev/null || [[ ! -w $folder ]]; then
    fail "$variable: $folder cannot be written to; allowed: a folder that user $(id -u) may write to"
  fi
}

fail() {
  echo "entrypoint.sh: $*" >&2
  exit 1
}

usage_error() {
  echo "entrypoint.sh: $*" >&2
  usage >&2
  exit 2
}

main "$@"
