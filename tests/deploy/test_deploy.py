"""The deploy scripts, from nothing to a working endpoint and back, with a stand-in for Google Cloud."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from inference import catalog
from serving.http.request_models import Instance, JobOperation, ModelsOperation, read
from serving.settings import Settings
from tests.deploy.cloud.person import DRY_RUN_TOOLS, ROOT, Person, changes_of, gpus, only

pytestmark = pytest.mark.slow

DOCUMENT = ROOT / "docs" / "deploy.md"
DEPLOY_SCRIPTS = ("deploy_on_demand.sh", "deploy_with_entrypoint.sh")
SCRIPTS = (*DEPLOY_SCRIPTS, "undeploy.sh")
LOADING = {"deploy_on_demand.sh": "on_demand", "deploy_with_entrypoint.sh": "startup"}
TOKEN = "ya29.the-token-of-this-login"
HUB_TOKEN = "hf_TheSecretOfTheHub"


@pytest.mark.parametrize("script", DEPLOY_SCRIPTS)
def test_from_nothing_to_a_deployed_endpoint(person: Person, script: str) -> None:
    person.deploy(script)
    cloud, endpoint = person.cloud, person.endpoint
    model = cloud["models"]["yue-server"]
    assert model["environment"]["YUE_LOADING"] == LOADING[script]
    assert model["environment"]["YUE_MODEL"] == "en-cot"
    assert model["versionAliases"] == ["default", LOADING[script].replace("_", "-")]
    assert model["routes"] == ["/health", "/predict"]
    assert endpoint["dedicatedEndpointEnabled"] and endpoint["clientConnectionConfig"] == {"inferenceTimeout": "3600s"}
    (deployed,) = endpoint["deployedModels"]
    assert (
        endpoint["trafficSplit"] == {deployed["id"]: 100}
        and deployed["machine"] == "a2-highgpu-1g"
        and deployed["replicas"] == 1
    )
    assert cloud["buckets"]["gs://my-project-yue-server"]["location"] == "US-CENTRAL1"


def test_the_account_may_write_results_and_sign_their_addresses_and_nothing_else(deployed: Person) -> None:
    (bucket,) = deployed.cloud["buckets"].values()
    account = "yue-server@my-project.iam.gserviceaccount.com"
    assert bucket["roles"] == [[account, "roles/storage.objectAdmin"]]
    assert deployed.cloud["signers"] == [f"{account} roles/iam.serviceAccountTokenCreator"]
    assert "iamcredentials.googleapis.com" in deployed.cloud["services"]  # which signs


def test_the_account_may_read_the_mirror_of_the_weights(person: Person) -> None:
    person.arrange(buckets={"gs://mirror": {"location": "US-CENTRAL1", "roles": []}})
    person.deploy("deploy_on_demand.sh", "--weights=gs://mirror/yue")
    cloud = person.cloud
    assert [role for _, role in cloud["buckets"]["gs://mirror"]["roles"]] == ["roles/storage.objectViewer"]
    assert cloud["models"]["yue-server"]["environment"]["YUE_WEIGHTS"] == "gs://mirror/yue"


@pytest.mark.parametrize("model", catalog.NAMES)
def test_what_the_container_is_told_are_settings_of_the_server(person: Person, model: str) -> None:
    told = person.run("deploy_on_demand.sh", "--dry-run", f"--yue-model={model}").stdout
    (pairs,) = re.findall(r"--container-env-vars=(\S+)", told)
    given = dict(pair.split("=", 1) for pair in pairs.split(","))
    names = {name.removeprefix("YUE_").lower() for name in given}
    assert names <= set(Settings.model_fields)
    Settings(**{name.removeprefix("YUE_").lower(): value for name, value in given.items()})


@pytest.mark.parametrize(
    ("accelerator", "machine", "gpu", "max_songs"),
    [
        ("l4", "g2-standard-16", "nvidia-l4", ["1"]),
        ("a100", "a2-highgpu-1g", "nvidia-tesla-a100", []),  # the server measures what fits
        ("a100-80gb", "a2-ultragpu-1g", "nvidia-a100-80gb", []),
        ("h100", "a3-highgpu-1g", "nvidia-h100-80gb", []),
    ],
)
def test_an_accelerator_brings_its_machine(
    person: Person, accelerator: str, machine: str, gpu: str, max_songs: list[str]
) -> None:
    printed = person.run("deploy_on_demand.sh", "--dry-run", "--accelerator", accelerator).stdout
    assert f" --machine-type={machine} --accelerator=type={gpu},count=1 " in printed
    assert re.findall(r"YUE_MAX_SONGS=(\d+)", printed) == max_songs


def test_a_quantized_model_is_told_to_the_server_and_leaves_the_number_of_songs_to_it(person: Person) -> None:
    printed = person.run("deploy_on_demand.sh", "--dry-run", "--accelerator=l4", "--yue-quantization=int8").stdout
    assert ",YUE_QUANTIZATION=int8" in printed
    assert "YUE_MAX_SONGS" not in printed
    refused = person.run("deploy_on_demand.sh", "--dry-run", "--yue-quantization=int4")
    assert refused.returncode == 2 and "YUE_QUANTIZATION: got 'int4'; allowed: none, int8" in refused.stderr


def test_a_second_run_changes_nothing(deployed: Person) -> None:
    before = deployed.cloud
    deployed.deploy()
    after = deployed.cloud
    for state in (before, after):
        del state["calls"]
    assert after == before


def test_a_changed_setting_replaces_the_deployment(deployed: Person) -> None:
    deployed.arrange(quota=gpus("2"))
    deployed.deploy("deploy_on_demand.sh", "--yue-max-queue=5")
    (new,) = deployed.endpoint["deployedModels"]
    assert new["modelVersionId"] == "2" and deployed.endpoint["trafficSplit"] == {new["id"]: 100}
    assert deployed.cloud["models"]["yue-server"]["environment"]["YUE_MAX_QUEUE"] == "5"


def test_an_image_built_anew_is_deployed_anew(deployed: Person) -> None:
    deployed.arrange(quota=gpus("2"))
    deployed.deploy("deploy_on_demand.sh", "--rebuild=yes")
    assert len(deployed.calls("gcloud", "builds", "submit")) == 2
    assert deployed.endpoint["deployedModels"][0]["modelVersionId"] == "2"


def test_a_deployment_longer_than_gcloud_waits_is_waited_for(person: Person) -> None:
    person.arrange(gcloud_waits=False, polls=5)
    person.deploy()
    assert person.endpoint["deployedModels"]
    waits = len(person.calls("gcloud", "ai", "operations", "describe"))
    assert waits == 15, "5 for each of the model, the endpoint and the deployment"


def test_a_run_that_gave_up_is_taken_up_again(deployed: Person) -> None:
    """A second deployment beside the first would be paid for twice."""
    number = deployed.endpoint["name"].rpartition("/")[2]
    deployed.arrange(endpoints={number: deployed.endpoint | {"deployedModels": []}}, gcloud_waits=False, polls=9)
    assert "it goes on, run deploy_on_demand.sh again" in deployed.fails("deploy_on_demand.sh", "--wait-minutes=0")
    deployed.deploy()
    assert len(deployed.endpoint["deployedModels"]) == 1
    assert len(deployed.calls("gcloud", "ai", "endpoints", "deploy-model")) == 2, "the first one and the one given up"


def test_an_answer_that_is_lost_does_not_end_the_wait(person: Person) -> None:
    person.arrange(faults={"ai operations describe": [2, "the line is cut"]})
    person.deploy()
    assert person.endpoint["deployedModels"]


def test_a_container_that_does_not_start_says_why(person: Person) -> None:
    person.arrange(operation_errors={"DeployModel": "Model server never became ready."}, gcloud_waits=False)
    said = person.fails("deploy_on_demand.sh")
    assert "Model server never became ready." in said and "Deploy the model" in said


def test_a_step_that_fails_stops_with_its_name_and_the_next_run_goes_on_there(person: Person) -> None:
    for command, step in {
        "services enable": "Enable the services",
        "artifacts repositories create": "Create the image repository",
        "builds submit": "Build the image",
        "storage buckets create": "Create the bucket",
        "iam service-accounts create": "Create the service account",
        "ai models upload": "Upload the model",
        "curl POST": "Create the endpoint",
        "ai endpoints deploy-model": "Deploy the model",
    }.items():
        person.arrange(faults={command: [1, "the tape is full"]})
        said = person.fails("deploy_on_demand.sh")
        assert step in said and "the tape is full" in said and "run deploy_on_demand.sh again" in said
    person.deploy()
    assert len(person.calls("gcloud", "builds", "submit")) == 2, "one failed, one was good"
    assert person.endpoint["deployedModels"]


def test_a_lookup_that_fails_is_not_taken_for_a_missing_thing(person: Person) -> None:
    person.arrange(faults={"storage buckets describe": [1, "HTTPError 403: no access"]})
    assert "no access" in person.fails("deploy_on_demand.sh")
    assert not person.calls("gcloud", "storage", "buckets", "create")


def test_an_account_that_is_not_known_everywhere_yet_is_waited_for(person: Person) -> None:
    person.arrange(faults={"storage buckets add-iam-policy-binding": [3, "Service account does not exist."]})
    person.deploy()
    assert len(person.calls("gcloud", "storage", "buckets", "add-iam-policy-binding")) == 4


def test_a_bucket_elsewhere_is_refused(person: Person) -> None:
    person.arrange(buckets={"gs://far-away": {"location": "EU", "roles": []}})
    said = person.fails("deploy_on_demand.sh", "--bucket=far-away")
    assert "BUCKET: gs://far-away lies in eu" in said


def test_a_shared_endpoint_of_that_name_is_refused(person: Person) -> None:
    name = "projects/42/locations/us-central1/endpoints/7"
    person.arrange(endpoints={"7": {"name": name, "displayName": "yue-server", "deployedModels": []}})
    assert "not a dedicated one" in person.fails("deploy_on_demand.sh")


@pytest.mark.parametrize(
    "buckets",
    [
        [{"dimensions": {"region": "us-central1"}}],  # Google's JSON leaves out what is zero
        [{}],
        [{"effectiveLimit": "8"}, {"dimensions": {"region": "us-central1"}}],
        [{"dimensions": {"region": "europe-west4"}, "effectiveLimit": "8"}, {}],
        [{"dimensions": {"region": "us-central1"}, "effectiveLimit": "0"}],
    ],
)
def test_too_little_quota_is_told_before_anything_is_made(person: Person, buckets: list[dict[str, object]]) -> None:
    person.arrange(quota_buckets=buckets)
    said = person.fails("deploy_on_demand.sh")
    assert "custom_model_serving_nvidia_a100_gpus is 0, and 1 needed" in said
    assert not person.cloud["repositories"]


@pytest.mark.parametrize("buckets", [[], [{"dimensions": {"region": "europe-west4"}, "effectiveLimit": "8"}]])
def test_a_quota_that_is_not_stated_is_a_warning(person: Person, buckets: list[dict[str, object]]) -> None:
    person.arrange(quota_buckets=buckets, faults={"artifacts repositories describe": [1, "that is enough"]})
    assert "is not stated for us-central1" in person.fails("deploy_on_demand.sh")


def test_a_quota_that_cannot_be_read_is_a_warning(person: Person) -> None:
    person.arrange(quota={}, faults={"ai endpoints deploy-model": [1, "no quota"]})
    done = person.run("deploy_on_demand.sh", "--yes")
    assert "warning: the quota custom_model_serving_nvidia_a100_gpus could not be read" in done.stderr
    assert person.calls("gcloud", "builds", "submit")


def test_without_a_login_it_says_how_to_log_in(person: Person) -> None:
    person.arrange(login=False)
    assert "gcloud auth login" in person.fails("deploy_on_demand.sh")


def test_the_project_is_the_one_of_gcloud(person: Person) -> None:
    person.arrange(config_project="my-project")
    person.deploy(PROJECT_ID="")
    assert person.endpoint["deployedModels"]


def test_without_a_project_it_says_how_to_name_one(person: Person) -> None:
    assert "--project-id=PROJECT" in person.fails("deploy_on_demand.sh", PROJECT_ID="")


def test_missing_tools_are_named(person: Person, tmp_path: Path) -> None:
    said = person.fails("deploy_on_demand.sh", PATH=only(tmp_path, *DRY_RUN_TOOLS))
    assert "gcloud is missing" in said


def test_nothing_is_done_unless_the_question_is_answered(person: Person) -> None:
    done = person.run("deploy_on_demand.sh")
    assert done.returncode == 1 and "--yes" in done.stderr
    assert not person.calls("gcloud", "services")


WRONG = """--accelerator=t4 --region=Mars --spot=perhaps --min-replicas=0 --max-replicas=0 --yue-wait-seconds=3600
    --weights=/mnt/weights --deployment-name=UPPER --image-tag=a,b --no-such-setting=1 --region --hf-token=hf_x deploy
    --all"""


@pytest.mark.parametrize("argument", WRONG.split())
def test_wrong_arguments_are_code_2_and_named(person: Person, argument: str) -> None:
    done = person.run("deploy_on_demand.sh", "--dry-run", argument)
    assert done.returncode == 2, done.stdout
    assert argument.split("=")[0].strip("-").replace("-", "_").upper() in done.stderr.replace("-", "_").upper()
    assert "allowed" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_needs_no_tools(person: Person, tmp_path: Path, script: str) -> None:
    done = person.run(script, "--dry-run", PATH=only(tmp_path, *DRY_RUN_TOOLS))
    assert done.returncode == 0, done.stderr
    assert not done.stderr and not person.state_file.exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_the_commands_of_the_real_run(person: Person, script: str, deployed_cloud: Path) -> None:
    """What makes or removes something is the same, but for the numbers that the cloud gives."""
    if script == "undeploy.sh":
        shutil.copy(deployed_cloud, person.state_file)
    planned = changes_of(person.run(script, "--dry-run", "--yes").stdout)
    done = changes_of(person.run(script, "--yes").stdout)
    assert planned and done == planned


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_the_document_list_the_same_settings(person: Person, script: str) -> None:
    done = person.run(script, "--help")
    assert done.returncode == 0
    options = set(re.findall(r"^  (?:-h, )?(--[a-z-]+|HF_TOKEN) ", done.stdout, re.MULTILINE))
    table = DOCUMENT.read_text(encoding="utf-8").split("## Settings")[1].split("## ")[0]
    names = re.findall(r"`([A-Z_]+)`", "".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|")))
    documented = {name if name == "HF_TOKEN" else "--" + name.lower().replace("_", "-") for name in names}
    others = {"--help", "--dry-run", "--yes"} | ({"--all"} if script == "undeploy.sh" else set())
    assert options == documented | others


def test_secrets_are_never_printed(person: Person) -> None:
    done = person.run("deploy_on_demand.sh", "--yes", HF_TOKEN=HUB_TOKEN)
    assert done.returncode == 0, done.stderr
    assert person.cloud["models"]["yue-server"]["environment"]["HF_TOKEN"] == HUB_TOKEN
    dry = person.run("deploy_on_demand.sh", "--dry-run", HF_TOKEN=HUB_TOKEN)
    printed = done.stdout + done.stderr + dry.stdout + dry.stderr
    assert "HF_TOKEN=***" in printed
    assert HUB_TOKEN not in printed and TOKEN not in printed
    assert not any(TOKEN in word for call in person.cloud["calls"] for word in call), "arguments can be seen by others"


@pytest.mark.parametrize("script", DEPLOY_SCRIPTS)
def test_the_printed_curl_lines_reach_the_endpoint_with_good_requests(person: Person, script: str) -> None:
    printed = person.deploy(script)
    endpoint = person.endpoint
    number = endpoint["name"].rpartition("/")[2]
    path = f"v1/projects/my-project/locations/us-central1/endpoints/{number}:predict"
    lines = [shlex.split(line) for line in printed.splitlines() if line.startswith("curl --keepalive-time 60 ")]
    operations = set()
    for words in lines:
        assert f"https://{endpoint['dedicatedEndpointDns']}/{path}" in words
        (instance,) = json.loads(words[words.index("-d") + 1])["instances"]
        schema = JobOperation if "job_id" in instance else ModelsOperation if "operation" in instance else Instance
        read(schema, instance)
        operations.add(instance.get("operation", "song"))
    wanted = {"song", "status", "result", "cancel", "models/status"}
    assert operations == wanted | ({"download-models"} if script == "deploy_on_demand.sh" else set())


@pytest.mark.parametrize(
    "command",
    [
        "ai endpoints deploy-model 7 --region=us-central1 --model=yue --accelerator-type=NVIDIA_L4",
        "ai endpoints predict 7 --region=us-central1 --json-request=song.json",
        "ai endpoints create --region=us-central1 --display-name=yue",
    ],
)
def test_the_stand_in_refuses_what_gcloud_cannot_do(person: Person, command: str) -> None:
    done = subprocess.run(
        ["gcloud", *command.split(), "--project=my-project"], env=person.environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and re.search("unrecognized|Invalid choice", done.stderr)


@pytest.mark.parametrize("script", DEPLOY_SCRIPTS)
def test_the_document_shows_what_the_dry_run_prints(person: Person, script: str) -> None:
    blocks = re.findall(r"```console\n\$ (.+?)\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    shown = {shlex.split(command)[0]: (shlex.split(command), text) for command, text in blocks}
    words, text = shown[f"./{script}"]
    done = person.run(script, *words[1:], PROJECT_ID="", IMAGE_TAG="")
    assert text == done.stdout, f"put the output of {shlex.join(words)} into {DOCUMENT.name}"


def test_the_document_shows_a_good_request_with_the_sdk() -> None:
    """The SDK is too large to be installed for a test: the call is read, not made."""
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    (call,) = (one for one in calls if isinstance(one.func, ast.Attribute) and one.func.attr == "predict")
    arguments = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    (instance,) = arguments["instances"]
    read(Instance, instance)
    assert arguments["timeout"] == 3600 and arguments["use_dedicated_endpoint"] is True


def test_the_scripts_are_clean() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
