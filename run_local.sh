#!/usr/bin/env bash
# Starts the server on this machine, generates a first song with it, and keeps serving.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: ./run_local.sh [--once] [--output FILE]

Prepares .venv, starts the server, generates a song from examples/lyrics.txt (with the model tiny, from its first two
sections) and keeps serving until Ctrl-C.

  --once         stop the server after the song; the exit code is the song's
  --output FILE  the file of the song, which is overwritten; its ending picks mp3, wav, flac or ogg
                 (default: song.mp3, or if that exists song-2.mp3, …)
  --help         this text

Environment:
  YUE_MODEL      default tiny: a demonstration that runs anywhere; it hums a tune and cannot sing words.
                 With a GPU: YUE_MODEL=en-cot ./run_local.sh (downloads the real weights the first time)
  PORT           default 8080
  YUE_HOST       the IP address to listen at, default 127.0.0.1, which only this machine reaches
  YUE_VENV       an existing virtual environment, used as it is: nothing is installed
  YUE_PIP_ARGS   more arguments for pip install. On Linux pip takes torch's CUDA build; for the smaller
                 CPU build name PyTorch's CPU index: YUE_PIP_ARGS="--extra-index-url ADDRESS".
                 pip's own PIP_* variables work too.
USAGE
}

readonly start_seconds=60 # for the server to answer at all; models are loaded after that
readonly stop_seconds=10  # for the server to end before it is killed
once='' output='' caller=$PWD server='' client='' log='' keep_log='' host='' url=''

main() {
  read_arguments "$@"
  [[ $output == '' || $output == /* ]] || output=$caller/$output
  cd "$(dirname "${BASH_SOURCE[0]}")"
  # shellcheck source=scripts/setup.sh
  source scripts/setup.sh
  export PORT=${PORT:-8080} YUE_MODEL=${YUE_MODEL:-tiny}
  find_address
  check_output
  check_port
  check_model
  prepare_environment requirements.txt
  "$python" -m inference.gpu "$YUE_MODEL" "${YUE_DEVICE:-auto}" # warns where the real weights would find none
  trap stop EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  start_server
  generate_song
  tell
  [[ -n $once ]] || serve
}

read_arguments() {
  while (($#)); do
    case $1 in
      --once) once=yes ;;
      --output)
        [[ -n ${2:-} ]] || usage_error "--output: got nothing; allowed: a file"
        output=$2
        shift
        ;;
      --output=?*) output=${1#--output=} ;;
      --help | -h)
        usage
        exit 0
        ;;
      *) usage_error "got '$1'; allowed: --once, --output FILE, --help" ;;
    esac
    shift
  done
}

usage_error() {
  echo "run_local.sh: $*" >&2
  exit 2
}

# Where this script reaches the server; one that listens everywhere is reached on this machine.
find_address() {
  host=${YUE_HOST:-127.0.0.1}
  case $host in
    0.0.0.0) host=127.0.0.1 ;;
    ::) host=::1 ;;
  esac
  url=http://$host:$PORT
  if [[ $host == *:* ]]; then url="http://[$host]:$PORT"; fi
}

# These checks come before anything slow.
check_output() {
  if [[ -z $output ]]; then
    [[ -w $caller ]] || usage_error "the song would go to $caller, which cannot be written to; name a file by --output"
    return
  fi
  if [[ -d $output || ! -w $(dirname "$output") ]]; then
    usage_error "--output: got '$output'; allowed: a file in a folder that can be written to"
  fi
  case ${output##*/} in
    *.mp3 | *.wav | *.flac | *.ogg) ;;
    *) usage_error "--output: got '$output'; allowed: a name that ends in .mp3, .wav, .flac or .ogg" ;;
  esac
}

check_port() {
  if ! [[ $PORT =~ ^[1-9][0-9]{0,4}$ ]] || ((PORT > 65535)); then
    usage_error "PORT: got '$PORT'; allowed: 1 to 65535"
  fi
  if port_is_taken; then
    fail "port $PORT is in use; stop the program that listens there or choose another: PORT=8081 ./run_local.sh"
  fi
}

# The catalogue needs nothing but Python, so it is asked before the environment is made.
check_model() {
  local interpreter=${YUE_VENV:-.venv}/bin/python
  if ! "$interpreter" -c '' 2>/dev/null; then
    [[ -z ${YUE_VENV:-} ]] || return 0 # prepare_environment tells that there is none
    find_python
    interpreter=$base_python
  fi
  "$interpreter" - "$YUE_MODEL" <<'PYTHON' || exit 2
import sys
from inference import catalog
from inference.errors import UnknownModel
try:
    catalog.find(sys.argv[1].strip())
except UnknownModel as error:
    sys.exit(f"run_local.sh: YUE_{str(error).replace('model', 'MODEL', 1)}")
PYTHON
}

port_is_taken() {
  (: <"/dev/tcp/$host/$PORT") 2>/dev/null
}

start_server() {
  log=$(mktemp "${TMPDIR:-/tmp}/yue-server.XXXXXX")
  echo "Starting the server with the model $YUE_MODEL on port $PORT"
  # In a process group of its own (set -m): Ctrl-C reaches this script alone, which then ends the whole group.
  set -m
  "$python" -m gunicorn >"$log" 2>&1 </dev/null &
  server=$!
  set +m
  local deadline=$((SECONDS + start_seconds))
  until answers; do
    kill -0 "$server" 2>/dev/null || give_up 1 "the server ended before it answered"
    ((SECONDS < deadline)) || give_up 1 "the server did not answer within $start_seconds s"
    sleep 0.2
  done
}

# Any answer from /health will do, 503 too: models may still be loading.
answers() {
  "$python" - "$url/health" <<'PYTHON' 2>/dev/null
import sys, urllib.error, urllib.request
try:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=5)
except urllib.error.HTTPError:
    pass
PYTHON
}

generate_song() {
  local code=0 project=$PWD interpreter=$python out=() length=() keys=${YUE_API_KEY:-}
  [[ $interpreter == /* ]] || interpreter=$project/$interpreter
  [[ -z $output ]] || out=(--out "$output" --force)
  [[ $YUE_MODEL != tiny ]] || length=(--segments 2) # enough to hear that it works
  # In the background, since bash heeds signals during `wait` but not while a command runs in front.
  # The odd expansion is for bash 3.2, to which an empty array is an unset one. Of several keys the client sends the first.
  (cd "$caller" && YUE_API_KEY=${keys%%,*} exec "$interpreter" "$project/client.py" sing --url "$url" ${out[@]+"${out[@]}"} ${length[@]+"${length[@]}"} \
    --genres-file "$project/examples/genres.txt" --lyrics-file "$project/examples/lyrics.txt") &
  client=$!
  wait "$client" || code=$?
  client=''
  ((code == 0)) || give_up "$code" "the song failed"
}

tell() {
  if [[ $YUE_MODEL == tiny ]]; then
    echo "This was the model tiny, a demonstration: it hums a tune and cannot sing words."
    echo "With a GPU, the real weights sing the lyrics: YUE_MODEL=en-cot ./run_local.sh"
  fi
}

serve() {
  echo "Serving at $url until Ctrl-C; the log is $log"
  echo "The studio, to write songs and to hear them: open $url/ in a browser"
  echo "In a second terminal: python3 client.py sing --url $url --genres 'folk calm' --lyrics-file examples/lyrics.txt"
  tell_environment
  wait "$server" || true
  give_up 1 "the server ended"
}

# The line that puts the environment's python3 first on PATH, for entrypoint.sh and the like.
tell_environment() {
  local activate=${python%/*}/activate
  [[ -e $activate ]] || return 0
  [[ $activate == /* ]] || activate=$PWD/$activate
  printf 'To use its environment there: . %q\n' "$activate"
}

give_up() {
  local code=$1
  keep_log=yes
  show_troubles >&2
  echo "run_local.sh: $2; its whole log is $log" >&2
  exit "$code"
}

# The last warnings and errors in the log, and what is no record at all.
show_troubles() {
  "$python" - "$log" <<'PYTHON'
import json, sys
shown = []
with open(sys.argv[1], encoding="utf-8", errors="replace") as lines:
    for line in filter(None, map(str.strip, lines)):
        try:
            record = json.loads(line)
            if record["severity"] not in ("DEBUG", "INFO"):
                shown.append(f"{record['severity']}: {record['message']}")
        except (ValueError, TypeError, KeyError):
            shown.append(line)
print(*shown[-20:], sep="\n")
PYTHON
}

# However this script ends, nothing that it started is left behind.
stop() {
  trap '' HUP INT TERM
  [[ -z $client ]] || kill "$client" 2>/dev/null || true
  [[ -z $server ]] || end_server
  [[ -n $keep_log || -z $log ]] || rm -f "$log"
}

end_server() {
  local deadline=$((SECONDS + stop_seconds))
  kill -TERM "$server" 2>/dev/null || true
  while kill -0 "$server" 2>/dev/null && ((SECONDS < deadline)); do
    sleep 0.1
  done
  kill -KILL -- "-$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  # Its workers are not this script's children: what tells their end is the port.
  while port_is_taken && ((SECONDS < deadline + stop_seconds)); do
    sleep 0.1
  done
}

main "$@"
