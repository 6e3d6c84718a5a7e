# shellcheck shell=bash
# Sourced by scripts/deploy.sh: how a command is printed, run, tried again, and its answer read.
# It knows nothing of what the commands are for.
# shellcheck disable=SC2154 # $dry_run, $yes, $title and $scratch belong to the script that sources this

fail() {
  printf '%s: %s%s\n' "${0##*/}" "${title:+$title: }" "$*" >&2
  exit 1
}

usage_error() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

warn() {
  printf 'warning: %s\n' "$*" >&2
}

step() {
  title=$1
  printf '\n# %s\n' "$title"
}

say() {
  printf '# %s\n' "$*"
}

confirm() {
  local reply=''
  say "$1"
  [[ -z $yes && -z $dry_run ]] || return 0
  read -r -p 'Go on? [y/N] ' reply || true
  [[ $reply == [yY]* ]] || fail "nothing was done; answer y, or give --yes"
}

readonly most_tries=6 # in a row, for what Google Cloud needs some seconds to hear of, and for an answer that is lost

# The words as a shell reads them, secrets masked.
quoted() {
  local word words=() quote="'" escaped="'\\''"
  for word in "$@"; do
    [[ -z $HF_TOKEN ]] || word=${word//"$HF_TOKEN"/***}
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=$quote${word//$quote/$escaped}$quote
    words+=("$word")
  done
  printf '%s' "${words[*]}"
}

# run COMMAND…: prints it and does it.
run() {
  printf '%s\n' "$(quoted "$@")"
  [[ -z $dry_run ]] || return 0
  "$@" || fail "this failed, see above for the reason; mend it and run ${0##*/} again, what exists is reused"
}

# look COMMAND…: its output is in $answer; 1 when what it asks for does not exist. A dry run finds nothing.
look() {
  printf '%s\n' "$(quoted "$@")"
  answer=''
  [[ -z $dry_run ]] || return 1
  if answer=$("$@" 2>"$scratch/errors"); then
    return 0
  fi
  if grep -qiE 'not[ _]found|does not exist|matched no objects' "$scratch/errors"; then
    return 1
  fi
  cat "$scratch/errors" >&2
  fail "this could not be looked up, see above for the reason"
}

# patiently COMMAND…: as `run`, for what may need some seconds until Google Cloud knows it everywhere.
patiently() {
  local tries
  for ((tries = 1; tries < most_tries; tries++)); do
    [[ -z $dry_run ]] || break
    if "$@" >/dev/null 2>&1; then
      printf '%s\n' "$(quoted "$@")"
      return
    fi
    sleep "$POLL_SECONDS"
  done
  run "$@"
}

# rest METHOD ADDRESS [BODY]: the answer is in $answer; 1 when it was refused.
rest() {
  local command=(curl --silent --show-error --request "$1") token status
  [[ -z ${3:-} ]] || command+=(--header 'Content-Type: application/json' --data "$3")
  # shellcheck disable=SC2016 # it is for the reader to run
  printf '%s --header "Authorization: Bearer $(gcloud auth print-access-token)" %s\n' \
    "$(quoted "${command[@]}")" "$(quoted "$2")"
  answer='{}'
  [[ -z $dry_run ]] || return 0
  token=$(gcloud auth print-access-token) || fail "there is no login; run: gcloud auth login"
  # The token goes through a pipe: every user of this machine can see a command's arguments.
  answer=$(printf 'Authorization: Bearer %s\n' "$token" |
    "${command[@]}" --header @- --write-out '\n%{http_code}' "$2") || fail "no answer from $2"
  status=${answer##*$'\n'} answer=${answer%$'\n'*}
  [[ $status == 2* ]]
}

# reading PROGRAM: what the Python program prints of the JSON in $answer. A dry run has no answers.
reading() {
  [[ -z $dry_run ]] || return 0
  python3 -c "import json, sys; answer = json.load(sys.stdin); $1" "${@:2}" <<<"$answer" ||
    fail "cannot make sense of this answer: $answer"
}

# checksum WORD…: a number that changes when a word does.
checksum() {
  printf '%s\n' "$@" | cksum | cut -d ' ' -f 1
}

check_tools() {
  local tool
  for tool in gcloud curl python3; do
    command -v "$tool" >/dev/null || fail "$tool is missing; install it (gcloud is part of the Google Cloud SDK)"
  done
}

check_login() {
  [[ -z $dry_run ]] || return 0
  check_tools
  gcloud auth print-access-token >/dev/null 2>"$scratch/errors" ||
    fail "there is no login: $(<"$scratch/errors"); run: gcloud auth login"
}
