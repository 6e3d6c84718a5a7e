"""Deploys the server to Vertex AI and removes it: every step of deploy_*.sh and undeploy.sh, which start this.

It uses the server's routes and the names of its settings, and needs nothing but Python's own library. Every step checks
first and creates only what is missing, so a run that stopped half-way can be started again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from deploy_commands import Commands, Failed, Refused, check_login
from deploy_settings import INFERENCE_TIMEOUT_S, checksum, make_parser, parse

ROUTES = "--container-ports=8080 --container-health-route=/health --container-predict-route=/predict"
RESPONSE_BYTES = 9_500_000  # of an answer, its headers not counted; a dedicated endpoint passes on 10 MB
DEPLOYMENT_TIMEOUT_S = 7200  # the longest that Vertex AI waits for a container to become healthy
BUILD = "--machine-type=e2-highcpu-32 --disk-size=200GB --timeout=2h"
SERVICES = ("aiplatform", "artifactregistry", "cloudbuild", "storage", "iam", "iamcredentials")
SCRIPTS = {"on_demand": "deploy_on_demand.sh", "startup": "deploy_with_entrypoint.sh", "undeploy": "undeploy.sh"}
DEPLOYS = (
    "Builds the image and deploys it to a dedicated endpoint of Vertex AI, paid for until ./undeploy.sh is run; {}"
)
DESCRIPTIONS = {
    "on_demand": DEPLOYS.format("the weights come with the first request for a song, or when they are asked for."),
    "startup": DEPLOYS.format("the weights come when the container starts, and songs are taken when they are loaded."),
    "undeploy": "Undeploys the model, then deletes the endpoint and the model. Give the settings used to deploy.",
}
SONG = r'"genres": "folk acoustic guitar calm female", "lyrics": "[verse]\nThe kettle hums"'
# Where there is no song, the answer says why, and no file is written.
SAVE_SONG = (
    """python3 -c 'import base64, json, sys; answer = json.load(sys.stdin); """
    """song = answer.get("predictions", [answer])[0]; "audio" in song or sys.exit(json.dumps(song)); """
    """open("song.mp3", "wb").write(base64.b64decode(song["audio"]))'"""
)
REQUESTS = {
    "Fetch the weights before the first song": '"operation": "download-models", "wait": false',
    "What the models are doing": '"operation": "models/status"',
    "A song, waited for": SONG,
    "A song, not waited for: the answer names its job": f'{SONG}, "wait_seconds": 0',
    "How far a job is": '"job_id": "JOB_ID", "operation": "status"',
    "The song of a job": '"job_id": "JOB_ID", "operation": "result"',
    "Cancel a job": '"job_id": "JOB_ID", "operation": "cancel"',
}


def main(task: str, words: Sequence[str]) -> int:
    """Do one of the tasks in SCRIPTS; the exit code."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # gcloud writes in between
    script = SCRIPTS[task]
    parser = make_parser(script, DESCRIPTIONS[task])
    if task == "undeploy":
        gone = "delete the images, the bucket with all results and the service account, too"
        parser.add_argument("--all", action="store_true", help=gone)
    try:
        settings = parse(parser, words)
        deployment = Deployment(Commands(settings, f"run {script} again"))
        if task == "undeploy":
            deployment.remove(settings.all)
        else:
            deployment.make(task)
    except Failed as error:
        print(f"{script}: {Commands.title}{error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print(f"{script}: stopped; operations of Google Cloud continue", file=sys.stderr)
        return 130
    return 0


class Deployment:
    """The server in a project, with the steps that deploy and remove it."""

    def __init__(self, commands: Commands) -> None:
        self.cloud, self.settings = commands, commands.settings
        project, region, name = self.settings.project_id, self.settings.region, self.settings.deployment_name
        self.name, self.here, self.place = name, f"--region={region}", f"{project} in {region}"
        self.image = f"{region}-docker.pkg.dev/{project}/{self.settings.repository}/server:{self.settings.image_tag}"
        self.email = f"{self.settings.service_account}@{project}.iam.gserviceaccount.com"
        self.bucket = f"gs://{self.settings.bucket}"
        self.parent = f"projects/{project}/locations/{region}"
        self.api = f"https://{region}-aiplatform.googleapis.com/v1/{self.parent}"
        self.built = False

    def make(self, loading: str) -> None:
        """Deploy: from nothing to an endpoint that answers."""
        machine = f"{self.settings.machine_type} with {self.settings.gpu}"
        self._confirm(f"Deploys to {self.place}: {machine}, paid for until ./undeploy.sh is run.")
        self.enable_services()
        self.check_quota()
        self.create_repository()
        self.build_image()
        self.create_bucket()
        self.create_service_account()
        version = self.upload_model(loading)
        endpoint = self.create_endpoint()
        self.deploy_model(endpoint, version)
        self.tell(endpoint, loading)

    def remove(self, everything: bool) -> None:
        """Remove what `make` made; images, bucket and account only with everything."""
        repository, things = self.settings.repository, f"the endpoint and the model {self.name}"
        if everything:
            things += f", the images in {repository}, {self.bucket} with all that is in it"
            things += f", and the account {self.email}"
        self._confirm(f"Removes from {self.place}: {things}.")
        self.remove_endpoint()
        self.remove_model()
        if everything:
            location = f"--location={self.settings.region}"
            self._remove("the images", f"gcloud artifacts repositories delete {repository} {location}")
            self._remove("the bucket", f"gcloud storage rm --recursive {self.bucket}")
            self._remove("the service account", f"gcloud iam service-accounts delete {self.email}")

    def _confirm(self, what: str) -> None:
        if not self.cloud.dry_run:
            check_login()
        print(f"# {what}")
        if not self.cloud.dry_run and not self.settings.yes:
            print("Go on? [y/N] ", end="", flush=True)
            if not sys.stdin.readline().lower().startswith("y"):
                raise Failed("nothing was done; answer y, or give --yes")

    # --- The steps

    def enable_services(self) -> None:
        self.cloud.step("Enable the services")
        self.cloud.run("gcloud services enable", *(f"{service}.googleapis.com" for service in SERVICES))

    def check_quota(self) -> None:
        """Check before anything is created: without quota, the deployment would fail after all other steps."""
        region, needed = self.settings.region, int(self.settings.max_replicas)
        spot = "preemptible_" if self.settings.spot == "yes" else ""
        metric = f"custom_model_serving_{spot}nvidia_{self.settings.quota}_gpus"
        self.cloud.step(f"Check the quota for {self.settings.gpu} in {region}")
        of_project = f"https://serviceusage.googleapis.com/v1beta1/projects/{self.settings.project_id}"
        of_service = f"{of_project}/services/aiplatform.googleapis.com/consumerQuotaMetrics"
        see = "see it in the console under IAM > Quotas"
        try:
            answer = self.cloud.rest("GET", f"{of_service}/aiplatform.googleapis.com%2F{metric}?view=FULL")
        except Refused:
            return warn(f"the quota {metric} could not be read; {see} before you go on")
        limit = quota_limit(answer, region)
        if limit is None and not self.cloud.dry_run:
            warn(f"the quota {metric} is not stated for {region}; {see}")
        if limit is not None and 0 <= limit < needed:  # -1 is no limit
            more = "ask for more in the console (IAM > Quotas), or choose another region or accelerator"
            raise Failed(f"{metric} is {limit}, and {needed} needed; {more}")

    def create_repository(self) -> None:
        name, location = self.settings.repository, f"--location={self.settings.region}"
        self.cloud.step("Create the image repository")
        if self.cloud.find(f"gcloud artifacts repositories describe {name} {location}") is None:
            self.cloud.run(f"gcloud artifacts repositories create {name} --repository-format=docker {location}")

    def build_image(self) -> None:
        settings = self.settings
        self.cloud.step("Build the image")
        look = f"gcloud artifacts docker images describe {self.image}"
        if settings.rebuild == "no" and self.cloud.find(look) is not None:
            return
        substitutions = {
            "_IMAGE": self.image,
            "_BAKE_MODEL": settings.yue_model if settings.bake_weights == "yes" else "",
            "_TORCH_REQUIREMENT": settings.torch_requirement,
            "_PIP_ARGS": settings.pip_args,
        }
        build = f"gcloud builds submit . --config=cloudbuild.yaml {self.here} {BUILD}"
        self.cloud.run(build, f"--substitutions={pairs(substitutions)}")
        self.built = True

    def create_bucket(self) -> None:
        region = self.settings.region
        self.cloud.step("Create the bucket for results")
        found = self.cloud.find(f"gcloud storage buckets describe {self.bucket} --format=json")
        if not found:
            access = "--uniform-bucket-level-access --public-access-prevention"
            self.cloud.run(f"gcloud storage buckets create {self.bucket} --location={region} {access}")
        elif found["location"].lower() != region:
            allowed = f"a bucket in {region}, or a name that is free"
            raise Failed(f"BUCKET: {self.bucket} lies in {found['location'].lower()}; allowed: {allowed}")

    def create_service_account(self) -> None:
        """The account may write results, sign their addresses and read the weights' mirror, nothing else."""
        settings = self.settings
        self.cloud.step("Create the service account")
        if self.cloud.find(f"gcloud iam service-accounts describe {self.email}") is None:
            name = f"{settings.service_account} --display-name={self.name}"
            self.cloud.run(f"gcloud iam service-accounts create {name}")
        self._grant("roles/storage.objectAdmin", "storage buckets", self.bucket)
        self._grant("roles/iam.serviceAccountTokenCreator", "iam service-accounts", self.email)
        if settings.weights:
            mirror = "/".join(settings.weights.split("/")[:3])
            self._grant("roles/storage.objectViewer", "storage buckets", mirror)

    def _grant(self, role: str, kind: str, on: str) -> None:
        to = f"--member=serviceAccount:{self.email}"
        self.cloud.patiently(f"gcloud {kind} add-iam-policy-binding {on} {to} --role={role}")

    def upload_model(self, loading: str) -> str:
        """Upload a version for each configuration, unless it is there with the same image; the version's number."""
        settings = self.settings
        self.cloud.step("Upload the model")
        arguments = f"{self.here} --display-name={self.name} --container-image-uri={self.image} {ROUTES}"
        arguments += f" --container-env-vars={pairs(self.environment(loading))}"
        arguments += f" --container-shared-memory-size-mb={settings.shared_memory_mb}"
        arguments += f" --container-deployment-timeout-seconds={DEPLOYMENT_TIMEOUT_S}"
        arguments += f" --version-aliases=default,{loading.replace('_', '-')}"
        configuration = checksum(arguments)
        found = self._find_model()
        if not found or self.built or found.get("labels", {}).get("configuration") != configuration:
            place = f"--parent-model={self.parent}/models/{self.name}" if found else f"--model-id={self.name}"
            label = f"--labels=configuration={configuration}"
            self.cloud.run_operation(f"gcloud ai models upload {arguments} {place} {label}")
            found = self._find_model()
        if not found and not self.cloud.dry_run:
            raise Failed(f"the model {self.name} is not there after its upload; {self.cloud.again}")
        return str(found["versionId"]) if found else "1"

    def _find_model(self) -> Any:
        return self.cloud.find(f"gcloud ai models describe {self.name} {self.here} --format=json")

    def environment(self, loading: str) -> dict[str, str]:
        """The container's environment, without empty values."""
        settings = self.settings
        return {
            "YUE_MODEL": settings.yue_model,
            "YUE_LOADING": loading,
            "YUE_MAX_QUEUE": settings.yue_max_queue,
            "YUE_WAIT_SECONDS": settings.yue_wait_seconds,
            "YUE_DATA": self.bucket,
            "YUE_REFERENCE_HOSTS": f"{self.bucket}/references",
            "YUE_MAX_RESPONSE_BYTES": str(RESPONSE_BYTES),
            "YUE_QUANTIZATION": settings.yue_quantization.replace("none", ""),
            "YUE_MAX_SONGS": settings.yue_max_songs,
            "YUE_WEIGHTS": settings.weights,
            "HF_TOKEN": settings.hf_token,
        }

    def create_endpoint(self) -> str:
        """Create a dedicated endpoint, which gcloud cannot. A shared one closes connections after 60 s."""
        self.cloud.step("Create the endpoint")
        endpoint = self._find_endpoint()
        if endpoint:
            if not self._describe(endpoint).get("dedicatedEndpointEnabled"):
                shared = f"the endpoint {self.name} ({endpoint}) is not a dedicated one"
                raise Failed(f"DEPLOYMENT_NAME: {shared}; delete it, or choose another --deployment-name")
            return endpoint
        wait = {"inferenceTimeout": f"{INFERENCE_TIMEOUT_S}s"}
        body = {"displayName": self.name, "dedicatedEndpointEnabled": True, "clientConnectionConfig": wait}
        try:
            begun = self.cloud.rest("POST", f"{self.api}/endpoints", body)
        except Refused as error:
            raise Failed(f"refused: {error}; mend it and {self.cloud.again}") from None
        *_, endpoint, _, operation = begun.get("name", "ENDPOINT_ID/operations/OPERATION_ID").split("/")
        self.cloud.wait_for(operation)
        return endpoint

    def _find_endpoint(self) -> str:
        """The id of the endpoint of this name, empty where there is none."""
        listing = f"gcloud ai endpoints list {self.here} --filter=displayName={self.name} --format=json"
        found = [one["name"].rpartition("/")[2] for one in self.cloud.find(listing) or ()]
        if len(found) > 1:
            several = f"several endpoints are called {self.name} ({' '.join(found)})"
            raise Failed(f"DEPLOYMENT_NAME: {several}; delete all but one, or choose another --deployment-name")
        return "".join(found)

    def _describe(self, endpoint: str) -> Any:
        found = self.cloud.find(f"gcloud ai endpoints describe {endpoint} {self.here} --format=json")
        if found is None and not self.cloud.dry_run:
            raise Failed(f"the endpoint {endpoint} is gone; {self.cloud.again}")
        return found or {}

    def deploy_model(self, endpoint: str, version: str) -> None:
        settings = self.settings
        self.cloud.step("Deploy the model to the endpoint (15 to 60 minutes)")
        arguments = f"{self.here} --model={self.name} --machine-type={settings.machine_type}"
        arguments += f" --accelerator=type={settings.gpu},count=1"
        arguments += f" --min-replica-count={settings.min_replicas} --max-replica-count={settings.max_replicas}"
        arguments += f" --traffic-split=0=100 --service-account={self.email} --enable-access-logging"
        arguments += " --spot" if settings.spot == "yes" else ""
        name = f"{self.name}-v{version}-{checksum(arguments)}"
        self._join_running_operations(endpoint)
        deployed = deployed_on(self._describe(endpoint))
        if name not in deployed.values():
            self.cloud.run_operation(f"gcloud ai endpoints deploy-model {endpoint} {arguments} --display-name={name}")
        self._undeploy(endpoint, (one for one, old in deployed.items() if old != name))

    def _join_running_operations(self, endpoint: str) -> None:
        """Wait for operations that an earlier run left running.

        A second deployment would be paid for twice, and an endpoint that is being deployed to cannot be deleted.
        """
        if self.cloud.dry_run:
            return
        try:
            answer = self.cloud.rest("GET", f"{self.api}/endpoints/{endpoint}/operations")
        except Refused as error:
            return warn(f"cannot list the running operations: {error}")
        for operation in answer.get("operations", ()):
            if not operation.get("done"):
                print("# An operation is running already")
                self.cloud.wait_for(operation["name"].rpartition("/")[2])

    def _undeploy(self, endpoint: str, deployed: Iterable[str]) -> None:
        for one in deployed:
            which = f"{endpoint} --deployed-model-id={one} {self.here}"
            self.cloud.run_operation(f"gcloud ai endpoints undeploy-model {which}")

    def tell(self, endpoint: str, loading: str) -> None:
        """Print commands to copy, which use the endpoint."""
        self.cloud.step("The endpoint answers")
        dns = self._describe(endpoint).get("dedicatedEndpointDns", "ENDPOINT_DNS")
        address = f"https://{dns}/v1/{self.parent}/endpoints/{endpoint}:predict"
        # Kept alive, since idle connections are cut while a song is generated.
        curl = 'curl --keepalive-time 60 -H "Authorization: Bearer $(gcloud auth print-access-token)"'
        curl += f" -H 'Content-Type: application/json' '{address}'"
        for what, instance in REQUESTS.items():
            if loading == "on_demand" or "download-models" not in instance:
                print(f"# {what}:")
                save = f" | {SAVE_SONG}" if instance == SONG or '"result"' in instance else ""
                print(f"{curl} -d '{{\"instances\": [{{{instance}}}]}}'{save}")
        gone = "./undeploy.sh removes the endpoint and the model, with --all the rest too"
        print(f"# {gone}; until then the machine is paid for.")

    # --- Removal

    def remove_endpoint(self) -> None:
        self.cloud.step("Remove the endpoint")
        endpoint, deployed = self._find_endpoint(), ["DEPLOYED_MODEL_ID"]
        if endpoint:
            try:
                self._join_running_operations(endpoint)
            except Failed as error:
                warn(f"{error}; the removal continues")
            deployed = list(deployed_on(self._describe(endpoint)))
        elif not self.cloud.dry_run:
            return print("# There is none")
        endpoint = endpoint or "ENDPOINT_ID"
        self._undeploy(endpoint, deployed)
        self.cloud.run_operation(f"gcloud ai endpoints delete {endpoint} {self.here} --quiet")

    def remove_model(self) -> None:
        self.cloud.step("Remove the model")
        if not self._find_model() and not self.cloud.dry_run:
            return print("# There is none")
        self.cloud.run_operation(f"gcloud ai models delete {self.name} {self.here} --quiet")

    def _remove(self, what: str, command: str) -> None:
        """Remove what may be gone already."""
        self.cloud.step(f"Remove {what}")
        if self.cloud.find(f"{command} --quiet") is None and not self.cloud.dry_run:
            print("# There is none")


def quota_limit(answer: Any, region: str) -> int | None:
    """The limit in a region, None where it is not stated; Google leaves out what is zero, false or empty."""
    buckets = [bucket for limit in answer.get("consumerQuotaLimits", []) for bucket in limit.get("quotaBuckets", [])]
    limits = {bucket.get("dimensions", {}).get("region", ""): bucket.get("effectiveLimit", 0) for bucket in buckets}
    limit = limits.get(region, limits.get(""))
    return None if limit is None else int(limit)


def deployed_on(endpoint: Any) -> dict[str, str]:
    """Ids and names of what is deployed, what has the traffic last: it cannot go before the others."""
    traffic = endpoint.get("trafficSplit", {})
    models = sorted(endpoint.get("deployedModels", []), key=lambda model: traffic.get(model["id"], 0))
    return {model["id"]: model.get("displayName", "") for model in models}


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def pairs(values: dict[str, str]) -> str:
    """The values that are not empty, as gcloud takes them."""
    return ",".join(f"{name}={value}" for name, value in values.items() if value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
