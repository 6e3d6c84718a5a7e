# shellcheck shell=bash
# Sourced by deploy_on_demand.sh, deploy_with_entrypoint.sh and undeploy.sh: every step of both ways.
# It knows nothing of the server but its routes and the names of its settings.
#
# Every step looks first and makes only what is missing, so a run that stopped half-way is simply started again.

readonly health_route=/health predict_route=/predict port=8080
readonly inference_timeout_s=3600  # the longest that a dedicated endpoint waits for an answer
readonly response_bytes=9500000   # of an answer, its headers not counted; a dedicated endpoint passes on 10 MB
readonly deployment_timeout_s=7200 # the longest that Vertex AI waits for a container to become healthy
readonly build_machine=e2-highcpu-32 build_disk=200GB build_timeout=2h
yes='' dry_run='' all='' title='' answer='' built='' scratch=''

# shellcheck source=scripts/deploy_tools.sh
source scripts/deploy_tools.sh
# shellcheck source=scripts/deploy_settings.sh
source scripts/deploy_settings.sh

# deploy LOADING ARGUMENTS…: from nothing to an endpoint that sings.
deploy() {
  local loading=$1
  shift
  prepare "$@"
  check_login
  confirm "Deploys to $PROJECT_ID in $REGION: $MACHINE_TYPE with $gpu, paid for until ./undeploy.sh is run."
  enable_services
  check_quota
  create_repository
  build_image
  create_bucket
  create_service_account
  upload_model "$loading"
  create_endpoint
  deploy_model
  tell "$loading"
}

# undeploy ARGUMENTS…: removes what `deploy` made; images, bucket and account only with --all.
undeploy() {
  prepare "$@"
  check_login
  local things="the endpoint and the model $DEPLOYMENT_NAME"
  [[ -z $all ]] || things+=", the images in $REPOSITORY, gs://$BUCKET with all that is in it, and the account $email"
  confirm "Removes from $PROJECT_ID in $REGION: $things."
  remove_endpoint
  remove_model
  [[ -n $all ]] || return 0
  remove "the images" gcloud artifacts repositories delete "$REPOSITORY" --location="$REGION"
  remove "the bucket" gcloud storage rm --recursive "gs://$BUCKET"
  remove "the service account" gcloud iam service-accounts delete "$email"
}

prepare() {
  read_arguments "$@"
  [[ -n $dry_run ]] || scratch=$(mktemp -d "${TMPDIR:-/tmp}/yue-deploy.XXXXXX")
  trap '[[ -z $scratch ]] || rm -rf "$scratch"' EXIT
  export CLOUDSDK_CORE_DISABLE_PROMPTS=1 # a question here would wait for ever
  fill_settings
  check_settings
}

# --- The steps

enable_services() {
  step "Enable the services"
  run gcloud services enable aiplatform.googleapis.com artifactregistry.googleapis.com cloudbuild.googleapis.com \
    storage.googleapis.com iam.googleapis.com iamcredentials.googleapis.com --project="$PROJECT_ID"
}

# Asked for before anything is made: without quota, the deployment would fail after everything else was done.
check_quota() {
  local metric=custom_model_serving_nvidia_${quota}_gpus address limit
  step "Check the quota for $gpu in $REGION"
  [[ $SPOT == no ]] || metric=custom_model_serving_preemptible_nvidia_${quota}_gpus
  address=https://serviceusage.googleapis.com/v1beta1/projects/$PROJECT_ID/services/aiplatform.googleapis.com
  if ! rest GET "$address/consumerQuotaMetrics/aiplatform.googleapis.com%2F$metric?view=FULL"; then
    warn "the quota $metric could not be read; see it in the console under IAM > Quotas before you go on"
    return
  fi
  [[ -z $dry_run ]] || return 0
  # Google leaves out what is zero, false or empty: a bucket without a limit has the limit 0.
  limit=$(reading '
buckets = [bucket for one in answer.get("consumerQuotaLimits", []) for bucket in one.get("quotaBuckets", [])]
limits = {bucket.get("dimensions", {}).get("region", ""): bucket.get("effectiveLimit", "0") for bucket in buckets}
print(limits.get(sys.argv[1], limits.get("", "unknown")))' "$REGION")
  if [[ $limit == unknown ]]; then
    warn "the quota $metric is not stated for $REGION; see it in the console under IAM > Quotas"
  elif ((limit >= 0 && limit < MAX_REPLICAS)); then # -1 is no limit
    fail "$metric is $limit, and $MAX_REPLICAS needed; ask for more in the console (IAM > Quotas)," \
      "or choose another region or accelerator"
  fi
}

create_repository() {
  step "Create the image repository"
  look gcloud artifacts repositories describe "$REPOSITORY" --location="$REGION" --project="$PROJECT_ID" ||
    run gcloud artifacts repositories create "$REPOSITORY" --repository-format=docker --location="$REGION" \
      --project="$PROJECT_ID"
}

build_image() {
  local substitutions=_IMAGE=$image
  step "Build the image"
  if [[ $REBUILD == no ]] && look gcloud artifacts docker images describe "$image" --project="$PROJECT_ID"; then
    return
  fi
  [[ $BAKE_WEIGHTS == no ]] || substitutions+=,_BAKE_MODEL=$YUE_MODEL
  [[ -z $TORCH_REQUIREMENT ]] || substitutions+=,_TORCH_REQUIREMENT=$TORCH_REQUIREMENT
  [[ -z $PIP_ARGS ]] || substitutions+=,_PIP_ARGS=$PIP_ARGS
  run gcloud builds submit . --config=cloudbuild.yaml --region="$REGION" --machine-type="$build_machine" \
    --disk-size="$build_disk" --timeout="$build_timeout" --substitutions="$substitutions" --project="$PROJECT_ID"
  built=yes
}

create_bucket() {
  local location
  step "Create the bucket for results"
  if look gcloud storage buckets describe "gs://$BUCKET" --format=json --project="$PROJECT_ID"; then
    location=$(reading 'print(answer["location"].lower())')
    [[ $location == "$REGION" ]] ||
      fail "BUCKET: gs://$BUCKET lies in $location; allowed: a bucket in $REGION, or a name that is free"
    return
  fi
  run gcloud storage buckets create "gs://$BUCKET" --location="$REGION" --uniform-bucket-level-access \
    --public-access-prevention --project="$PROJECT_ID"
}

# It may write results, sign their addresses and read the weights' mirror, nothing else.
create_service_account() {
  local mirror=${WEIGHTS#gs://}
  step "Create the service account"
  look gcloud iam service-accounts describe "$email" --project="$PROJECT_ID" ||
    run gcloud iam service-accounts create "$SERVICE_ACCOUNT" --display-name="$DEPLOYMENT_NAME" --project="$PROJECT_ID"
  grant roles/storage.objectAdmin storage buckets "gs://$BUCKET"
  grant roles/iam.serviceAccountTokenCreator iam service-accounts "$email"
  [[ -z $mirror ]] || grant roles/storage.objectViewer storage buckets "gs://${mirror%%/*}"
}

# grant ROLE KIND… NAME: to the account, on that thing.
grant() {
  patiently gcloud "${@:2:2}" add-iam-policy-binding "$4" --member="serviceAccount:$email" --role="$1" \
    --project="$PROJECT_ID"
}

# A version for each configuration: what is uploaded already, with the same image, is not uploaded again.
upload_model() {
  local loading=$1 arguments configuration uploaded
  step "Upload the model"
  arguments=(--region="$REGION" --display-name="$DEPLOYMENT_NAME" --container-image-uri="$image"
    --container-ports="$port" --container-health-route="$health_route"
    --container-predict-route="$predict_route" --container-env-vars="$(environment "$loading")"
    --container-shared-memory-size-mb="$SHARED_MEMORY_MB" --container-deployment-timeout-seconds="$deployment_timeout_s"
    --version-aliases="default,${loading//_/-}")
  configuration=$(checksum "${arguments[@]}")
  if find_model; then
    uploaded=$(reading 'print(answer.get("labels", {}).get("configuration"))')
    [[ -n $built || $uploaded != "$configuration" ]] || return 0
    arguments+=(--parent-model="$parent/models/$DEPLOYMENT_NAME")
  else
    arguments+=(--model-id="$DEPLOYMENT_NAME")
  fi
  run_operation gcloud ai models upload "${arguments[@]}" --labels="configuration=$configuration"
  find_model || [[ -n $dry_run ]] ||
    fail "the model $DEPLOYMENT_NAME is not there after its upload; run ${0##*/} again"
}

# Sets $version, which a dry run takes to be the first.
find_model() {
  version=1
  look gcloud ai models describe "$DEPLOYMENT_NAME" --region="$REGION" --format=json --project="$PROJECT_ID" || return 1
  version=$(reading 'print(answer["versionId"])')
}

# What the container finds in its environment.
environment() {
  local list=YUE_MODEL=$YUE_MODEL,YUE_LOADING=$1,YUE_MAX_QUEUE=$YUE_MAX_QUEUE,YUE_WAIT_SECONDS=$YUE_WAIT_SECONDS
  list+=,YUE_DATA=gs://$BUCKET,YUE_REFERENCE_HOSTS=gs://$BUCKET/references,YUE_MAX_RESPONSE_BYTES=$response_bytes
  [[ $YUE_QUANTIZATION == none ]] || list+=,YUE_QUANTIZATION=$YUE_QUANTIZATION
  [[ -z $YUE_MAX_SONGS ]] || list+=,YUE_MAX_SONGS=$YUE_MAX_SONGS
  [[ -z $WEIGHTS ]] || list+=,YUE_WEIGHTS=$WEIGHTS
  [[ -z $HF_TOKEN ]] || list+=,HF_TOKEN=$HF_TOKEN
  printf '%s' "$list"
}

# gcloud cannot make a dedicated endpoint, and a shared one hangs up after 60 s.
create_endpoint() {
  local body operation
  step "Create the endpoint"
  find_endpoint
  if [[ -n $endpoint ]]; then
    describe_endpoint
    [[ $(reading 'print(answer.get("dedicatedEndpointEnabled"))') == True ]] ||
      fail "DEPLOYMENT_NAME: the endpoint $DEPLOYMENT_NAME ($endpoint) is not a dedicated one; delete it," \
        "or choose another --deployment-name"
    return
  fi
  body="{\"displayName\": \"$DEPLOYMENT_NAME\", \"dedicatedEndpointEnabled\": true,"
  body+=" \"clientConnectionConfig\": {\"inferenceTimeout\": \"${inference_timeout_s}s\"}}"
  rest POST "$api/$parent/endpoints" "$body" || fail "refused: $answer; mend it and run ${0##*/} again"
  endpoint=$(reading 'print(answer["name"].split("/endpoints/")[1].split("/")[0])')
  operation=$(reading 'print(answer["name"].rpartition("/")[2])')
  endpoint=${endpoint:-ENDPOINT_ID}
  wait_for "${operation:-OPERATION_ID}"
}

# Sets $endpoint, empty where there is none.
find_endpoint() {
  local found
  endpoint=''
  look gcloud ai endpoints list --region="$REGION" --filter="displayName=$DEPLOYMENT_NAME" --format=json \
    --project="$PROJECT_ID" || return 0
  found=$(reading 'print(len(answer), *(one["name"].rpartition("/")[2] for one in answer))')
  case $found in
    '' | 0) return ;;
    1\ *) endpoint=${found#* } ;;
    *)
      fail "DEPLOYMENT_NAME: several endpoints are called $DEPLOYMENT_NAME (${found#* }); delete all but one," \
        "or choose another --deployment-name"
      ;;
  esac
}

deploy_model() {
  local arguments deployed_name others
  step "Deploy the model to the endpoint (15 to 60 minutes)"
  arguments=(--region="$REGION" --model="$DEPLOYMENT_NAME" --machine-type="$MACHINE_TYPE"
    --accelerator="type=$gpu,count=1" --min-replica-count="$MIN_REPLICAS" --max-replica-count="$MAX_REPLICAS"
    --traffic-split=0=100 --service-account="$email" --enable-access-logging)
  [[ $SPOT == no ]] || arguments+=(--spot)
  deployed_name=$DEPLOYMENT_NAME-v$version-$(checksum "${arguments[@]}")
  join_running_operations
  describe_endpoint
  others=$(deployed_except "$deployed_name")
  if [[ -z $(deployed_as "$deployed_name") ]]; then
    run_operation gcloud ai endpoints deploy-model "$endpoint" "${arguments[@]}" --display-name="$deployed_name"
  fi
  undeploy_models "$others"
}

# A run that was stopped leaves its operations running: a second deployment would be paid for twice, and an endpoint that
# is being deployed to cannot be deleted.
join_running_operations() {
  local operation
  [[ -z $dry_run ]] || return 0
  if ! rest GET "$api/$parent/endpoints/$endpoint/operations"; then
    warn "whether an operation is running already could not be seen: $answer"
    return
  fi
  for operation in $(reading '
running = [one["name"] for one in answer.get("operations", []) if not one.get("done")]
print(*(name.rpartition("/")[2] for name in running))'); do
    say "An operation is running already"
    wait_for "$operation"
  done
}

# run_operation COMMAND…: as `run`, for what Google Cloud does in the background, until that is done. gcloud waits for
# some of these not at all, and for the others 30 minutes, after which they go on: the operation tells how it ends.
run_operation() {
  local command=("$@" --format=json --project="$PROJECT_ID") operation
  printf '%s\n' "$(quoted "${command[@]}")"
  if [[ -n $dry_run ]]; then
    operation=OPERATION_ID
  elif "${command[@]}" 2>&1 >"$scratch/answer" | tee "$scratch/progress" >&2; then
    answer=$(<"$scratch/answer")
    operation=$(reading '
name = answer.get("name", "") if isinstance(answer, dict) else ""
print(name.rpartition("/operations/")[2] if "/operations/" in name else "")')
  else
    operation=$(sed -n 's/.*Waiting for operation \[\([0-9]*\)\].*/\1/p' "$scratch/progress" | head -n 1)
    [[ -n $operation ]] || fail "this failed, see above for the reason; mend it and run ${0##*/} again"
  fi
  [[ -z $operation ]] || wait_for "$operation"
}

# wait_for OPERATION: until it is done.
wait_for() {
  local command=(gcloud ai operations describe "$1" --region="$REGION" --format=json --project="$PROJECT_ID")
  local deadline=$((SECONDS + WAIT_MINUTES * 60)) state misses=0
  printf '%s\n' "$(quoted "${command[@]}")"
  [[ -z $dry_run ]] || return 0
  while true; do
    if answer=$("${command[@]}"); then
      misses=0
      state=$(reading 'print("failed" if "error" in answer else "done" if answer.get("done") else "running")')
    else
      ((++misses < most_tries)) || fail "the operation $1 cannot be seen; it goes on, run ${0##*/} again to wait for it"
      state=unknown
    fi
    case $state in
      done) return ;;
      failed) fail "$(reading 'print(answer["error"].get("message", answer["error"]))')" ;;
    esac
    ((SECONDS < deadline)) ||
      fail "not done after $WAIT_MINUTES minutes; it goes on, run ${0##*/} again to wait for it (operation $1)"
    sleep "$POLL_SECONDS"
  done
}

# The endpoint is in $answer.
describe_endpoint() {
  look gcloud ai endpoints describe "$endpoint" --region="$REGION" --format=json --project="$PROJECT_ID" ||
    [[ -n $dry_run ]] || fail "the endpoint $endpoint is gone; run ${0##*/} again"
}

deployed_as() {
  reading 'deployed = answer.get("deployedModels", [])
print(*(one["id"] for one in deployed if one.get("displayName") == sys.argv[1]))' "$1"
}

# The one with the traffic last: it cannot go before the others.
deployed_except() {
  reading 'others = [one["id"] for one in answer.get("deployedModels", []) if one.get("displayName") != sys.argv[1]]
print(*sorted(others, key=lambda one: answer.get("trafficSplit", {}).get(one, 0)))' "$1"
}

undeploy_models() {
  local id
  for id in $1; do
    run_operation gcloud ai endpoints undeploy-model "$endpoint" --deployed-model-id="$id" --region="$REGION"
  done
}

# The commands that use the endpoint, ready to be copied.
tell() {
  local dns address
  # shellcheck disable=SC2016 # it is for the reader to run
  local authorization='"Authorization: Bearer $(gcloud auth print-access-token)"'
  local song_words='"genres": "folk acoustic guitar calm female", "lyrics": "[verse]\nThe kettle hums"'
  # Where there is no song, the answer says why, and no file is written.
  local save='import base64, json, sys; answer = json.load(sys.stdin); song = answer.get("predictions", [answer])[0]'
  save+='; "audio" in song or sys.exit(json.dumps(song)); open("song.mp3", "wb").write(base64.b64decode(song["audio"]))'
  step "The endpoint answers"
  describe_endpoint
  dns=$(reading 'print(answer["dedicatedEndpointDns"])')
  address=https://${dns:-ENDPOINT_DNS}/v1/$parent/endpoints/$endpoint:predict
  # Kept alive, since idle connections are cut while a song is sung.
  curl_line="curl --keepalive-time 60 -H $authorization -H 'Content-Type: application/json' '$address'"
  [[ $1 == startup ]] ||
    tell_one 'Fetch the weights before the first song' '{"operation": "download-models", "wait": false}'
  tell_one 'What the models are doing' '{"operation": "models/status"}'
  tell_one 'A song, waited for' "{$song_words}" "python3 -c '$save'"
  tell_one 'A song, not waited for: the answer names its job' "{$song_words, \"wait_seconds\": 0}"
  tell_one 'How far a job is' '{"job_id": "JOB_ID", "operation": "status"}'
  tell_one 'The song of a job' '{"job_id": "JOB_ID", "operation": "result"}' "python3 -c '$save'"
  tell_one 'Cancel a job' '{"job_id": "JOB_ID", "operation": "cancel"}'
  say "./undeploy.sh removes the endpoint and the model, with --all the rest too; until then the machine is paid for."
}

# tell_one WHAT INSTANCE [COMMAND]: the answer goes to the COMMAND.
tell_one() {
  say "$1:"
  printf '%s\n' "$curl_line -d '{\"instances\": [$2]}'${3:+ | $3}"
}

# --- Removing

remove_endpoint() {
  step "Remove the endpoint"
  find_endpoint
  if [[ -n $dry_run ]]; then
    endpoint=ENDPOINT_ID
    undeploy_models DEPLOYED_MODEL_ID
  elif [[ -z $endpoint ]]; then
    say "There is none"
    return
  else
    (join_running_operations) || say "It failed; what there is is removed all the same"
    describe_endpoint
    undeploy_models "$(deployed_except '')"
  fi
  run_operation gcloud ai endpoints delete "$endpoint" --region="$REGION" --quiet
}

remove_model() {
  step "Remove the model"
  if ! find_model && [[ -z $dry_run ]]; then
    say "There is none"
    return
  fi
  run_operation gcloud ai models delete "$DEPLOYMENT_NAME" --region="$REGION" --quiet
}

# remove WHAT COMMAND…: what is not there need not be removed.
remove() {
  step "Remove $1"
  shift
  look "$@" --quiet --project="$PROJECT_ID" || [[ -n $dry_run ]] || say "There is none"
}
