# shellcheck shell=bash
# Sourced by scripts/deploy.sh: the settings of a deployment, from options, the environment and defaults, and checked.
# It knows nothing of what is done with them.
# shellcheck disable=SC2034,SC2154 # they are for the script that sources this, which also says how a mistake is told

# One setting a line: NAME;kind;default;meaning. The kinds are in `check_setting`.
settings() {
  cat <<'SETTINGS'
PROJECT_ID;name;;the Google Cloud project (default: the one of gcloud)
REGION;region;us-central1;where everything is made
DEPLOYMENT_NAME;name;yue-server;what the model and the endpoint are called
REPOSITORY;name;;Artifact Registry's repository for the image (default: DEPLOYMENT_NAME)
BUCKET;bucket;;the bucket for results (default: PROJECT_ID-DEPLOYMENT_NAME)
SERVICE_ACCOUNT;name;;the account that the server runs as (default: DEPLOYMENT_NAME)
YUE_MODEL;model;en-cot;which model sings
ACCELERATOR;accelerator;a100;l4, a100, a100-80gb or h100
MACHINE_TYPE;machine;;a machine with one such GPU (default: by ACCELERATOR)
SPOT;choice;no;yes: cheaper machines that may be taken away at any time
MIN_REPLICAS;number;1;machines that always run
MAX_REPLICAS;number;;machines at most (default: MIN_REPLICAS); a song keeps a GPU busy, so more means nearly always more
IMAGE_TAG;tag;;the image's tag (default: the commit)
REBUILD;choice;no;yes: build the image even if this tag exists
BAKE_WEIGHTS;choice;no;yes: put the weights into the image
WEIGHTS;mirror;;gs://BUCKET/FOLDER with the weights, instead of the Hub
TORCH_REQUIREMENT;requirement;;which torch is put into the image (default: the one of the Dockerfile)
PIP_ARGS;words;;more arguments for pip install in the build, as --pip-args='--pre …'
SHARED_MEMORY_MB;number;2048;the container's /dev/shm
YUE_MAX_QUEUE;number;;songs that may wait (default: by ACCELERATOR)
YUE_QUANTIZATION;quantization;none;int8: stage 1 in half the memory, for l4
YUE_MAX_SONGS;number;;songs sung together (default: 1 with l4 unless quantized, else as many as fit)
YUE_WAIT_SECONDS;number;3540;how long a request waits for its song; the endpoint hangs up after 3600
HF_TOKEN;token;;the Hub's token; never printed, so no option, but whoever may see the model can read it
POLL_SECONDS;count;15;time between two looks at what Google Cloud does
WAIT_MINUTES;count;130;how long to wait for one thing before giving up
SETTINGS
}

read_arguments() {
  while (($#)); do
    case $1 in
      --yes) yes=yes ;;
      --dry-run) dry_run=yes ;;
      --all)
        [[ ${0##*/} == undeploy.sh ]] || usage_error "got '--all'; allowed: with undeploy.sh"
        all=yes
        ;;
      --help | -h)
        usage
        exit 0
        ;;
      --*=*) set_option "${1%%=*}" "${1#*=}" ;;
      --*)
        [[ ${2:-} != --* ]] || usage_error "$1: got nothing; allowed: a value, or $1=$2"
        set_option "$1" "${2:-}"
        shift
        ;;
      *) usage_error "got '$1'; allowed: the options that --help lists" ;;
    esac
    shift
  done
}

usage() {
  local name kind default meaning
  description
  printf '\n  --dry-run              print every command and do nothing; needs neither gcloud nor a login\n'
  printf '  --yes                  ask nothing\n  --help                 this text\n'
  printf '\nSettings, as options or as environment variables of the same name (--project-id is PROJECT_ID):\n'
  while IFS=';' read -r name kind default meaning; do
    [[ $kind == token ]] || name=$(option_of "$name")
    printf '  %-22s %s%s\n' "$name" "$meaning" "${default:+ (default: $default)}"
  done < <(settings)
}

option_of() {
  printf -- '--%s' "$1" | tr 'A-Z_' 'a-z-'
}

set_option() {
  local wanted=$1 value=$2 name kind rest
  while IFS=';' read -r name kind rest; do
    if [[ $kind != token && $(option_of "$name") == "$wanted" ]]; then
      [[ -n $value ]] || usage_error "$wanted: got nothing; allowed: a value"
      printf -v "$name" '%s' "$value"
      return
    fi
  done < <(settings)
  usage_error "got '$wanted'; allowed: the options that --help lists"
}

fill_settings() {
  local name kind default meaning
  while IFS=';' read -r name kind default meaning; do
    [[ -n ${!name:-} ]] || printf -v "$name" '%s' "$default"
  done < <(settings)
  [[ -n $PROJECT_ID || -n $dry_run ]] || find_project
  PROJECT_ID=${PROJECT_ID:-my-project}
  choose_machine
  MAX_REPLICAS=${MAX_REPLICAS:-$MIN_REPLICAS}
  REPOSITORY=${REPOSITORY:-$DEPLOYMENT_NAME} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-$DEPLOYMENT_NAME}
  BUCKET=${BUCKET:-$PROJECT_ID-$DEPLOYMENT_NAME}
  [[ -n $IMAGE_TAG ]] || name_image
  [[ $BAKE_WEIGHTS == no ]] || IMAGE_TAG+=-${YUE_MODEL//[\/@]/-}
  [[ -z $TORCH_REQUIREMENT$PIP_ARGS ]] || IMAGE_TAG+=-$(checksum "$TORCH_REQUIREMENT" "$PIP_ARGS")
  image=$REGION-docker.pkg.dev/$PROJECT_ID/$REPOSITORY/server:$IMAGE_TAG
  email=$SERVICE_ACCOUNT@$PROJECT_ID.iam.gserviceaccount.com
  parent=projects/$PROJECT_ID/locations/$REGION
  api=https://$REGION-aiplatform.googleapis.com/v1
}

find_project() {
  check_tools
  PROJECT_ID=$(gcloud config get-value project 2>/dev/null) || true
  [[ -n $PROJECT_ID && $PROJECT_ID != '(unset)' ]] ||
    fail "PROJECT_ID: got nothing; give --project-id=PROJECT or run: gcloud config set project PROJECT"
}

# The faster the GPU, the more songs may wait. How many are sung together is left to the server, which measures what
# fits; the smallest GPU is nearly full with one, unless stage 1 is quantized.
choose_machine() {
  local machine='' queue='' songs=''
  case $ACCELERATOR in
    l4) gpu=nvidia-l4 quota=l4 machine=g2-standard-16 queue=8 songs=1 ;;
    a100) gpu=nvidia-tesla-a100 quota=a100 machine=a2-highgpu-1g queue=16 ;;
    a100-80gb) gpu=nvidia-a100-80gb quota=a100_80gb machine=a2-ultragpu-1g queue=32 ;;
    h100) gpu=nvidia-h100-80gb quota=h100 machine=a3-highgpu-1g queue=32 ;;
  esac
  MACHINE_TYPE=${MACHINE_TYPE:-$machine} YUE_MAX_QUEUE=${YUE_MAX_QUEUE:-$queue}
  [[ $YUE_QUANTIZATION == none ]] || songs=''
  YUE_MAX_SONGS=${YUE_MAX_SONGS:-$songs}
}

# The commit names the image, unless the files are not those of the commit: then it is built every time.
name_image() {
  IMAGE_TAG=$(git rev-parse --short=12 HEAD 2>/dev/null) || IMAGE_TAG=latest
  if [[ $IMAGE_TAG == latest || -n $(git status --porcelain 2>/dev/null) ]]; then
    IMAGE_TAG+=-modified
    REBUILD=yes
  fi
}

check_settings() {
  local name kind default meaning
  while IFS=';' read -r name kind default meaning; do
    [[ -z ${!name} ]] || check_setting "$name" "$kind"
  done < <(settings)
  [[ $BAKE_WEIGHTS == no || -z $WEIGHTS ]] || # the server would prefer them to those in its image
    usage_error "WEIGHTS: got '$WEIGHTS' with BAKE_WEIGHTS=yes; allowed: one of the two"
  ((MIN_REPLICAS <= MAX_REPLICAS)) || usage_error "MAX_REPLICAS: got '$MAX_REPLICAS'; allowed: $MIN_REPLICAS or more"
  ((YUE_WAIT_SECONDS < inference_timeout_s)) ||
    usage_error "YUE_WAIT_SECONDS: got '$YUE_WAIT_SECONDS'; allowed: 1 to $((inference_timeout_s - 1))"
}

check_setting() {
  local name=$1 form allowed
  case $2 in
    name) form='[a-z][a-z0-9-]{4,28}[a-z0-9]' allowed='6 to 30 lower-case letters, digits and -' ;;
    machine) form='[a-z0-9-]+' allowed='a machine type such as g2-standard-16' ;;
    region) form='[a-z]+-[a-z]+[0-9]+' allowed='a region such as us-central1' ;;
    bucket) form='[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]' allowed="a bucket's name, without gs://" ;;
    mirror) form='gs://[a-z0-9][A-Za-z0-9._/-]+' allowed='gs://BUCKET/FOLDER' ;;
    model) form='[A-Za-z0-9._/@-]+' allowed='en-cot, zh-icl, … or owner/name@revision' ;;
    tag) form='[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}' allowed='letters, digits, _, . and -' ;;
    requirement) form='torch[A-Za-z0-9.=<>~!+_-]*' allowed='a requirement without commas such as torch==2.13.0' ;;
    words) form='[A-Za-z0-9._:/=@+ -]+' allowed='words of letters, digits, and . _ : / = @ + -' ;;
    accelerator) form='l4|a100|a100-80gb|h100' allowed='l4, a100, a100-80gb, h100' ;;
    quantization) form='none|int8' allowed='none, int8' ;;
    choice) form='yes|no' allowed='yes, no' ;;
    number) form='[1-9][0-9]{0,5}' allowed='a whole number from 1' ;;
    count) form='[0-9]{1,5}' allowed='a whole number from 0' ;;
    token) form='[A-Za-z0-9_-]+' allowed='letters, digits, _ and -' ;;
  esac
  if ! [[ ${!name} =~ ^($form)$ ]]; then
    local got=${!name}
    [[ $2 != token ]] || got='a token'
    usage_error "$name: got '$got'; allowed: $allowed"
  fi
}
