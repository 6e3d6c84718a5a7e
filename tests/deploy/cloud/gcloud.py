"""A stand-in for gcloud: knows the commands and flags that the real one has, and refuses every other.

Independent of what the commands are used for.
"""

from __future__ import annotations

import json
import re
import sys
from typing import NamedTuple

from state import ACCELERATORS, TOKEN, Cloud, Handler, Json, NotFound, Refused, as_sent, opened, same_project

IMAGE = re.compile(r"(?P<region>[a-z0-9-]+)-docker\.pkg\.dev/my-project/(?P<repository>[\w-]+)/[\w-]+:[\w.-]+")
GLOBAL = {"project", "format", "quiet", "filter"}


class Command(NamedTuple):
    """What a command takes: how many words, the flags it must have, those it may have."""

    words: int
    required: set[str]
    optional: set[str]
    handler: Handler


def main(arguments: list[str]) -> int:
    with opened() as cloud:
        cloud.state["calls"].append(["gcloud", *arguments])
        try:
            answer = obey(cloud, arguments)
        except Refused as error:
            print(f"ERROR: (gcloud) {error}", file=sys.stderr)
            return 1
    if isinstance(answer, str):
        print(answer)
    elif "--format=json" in arguments:
        print(json.dumps(as_sent(answer)))
    return 0


def obey(cloud: Cloud, arguments: list[str]) -> object:
    name = next((name for name in COMMANDS if arguments[: len(name.split())] == name.split()), None)
    if name is None:
        raise Refused(f"Invalid choice: {' '.join(arguments[:4])}")
    command, rest = COMMANDS[name], arguments[len(name.split()) :]
    words = [word for word in rest if not word.startswith("--")]
    flags: dict[str, str] = {
        word[2:].partition("=")[0]: word.partition("=")[2] for word in rest if word.startswith("--")
    }
    if unknown := set(flags) - GLOBAL - command.required - command.optional:
        raise Refused(f"unrecognized arguments: {sorted(unknown)}")
    if missing := command.required - set(flags):
        raise Refused(f"arguments {sorted(missing)} must be specified")
    if command.words >= 0 and len(words) != command.words:
        raise Refused(f"{command.words} arguments must be specified, got {words}")
    if name not in WITHOUT_LOGIN and not cloud.state["login"]:
        raise Refused("You do not currently have an active account selected.")
    if name not in WITHOUT_PROJECT:
        same_project(flags.get("project") or str(cloud.state["config_project"]))
    cloud.fault_of(" ".join([name, *words]))
    return command.handler(cloud, words, flags)


# --- Storage, images, accounts


def enable(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    cloud.state["services"] = sorted({*cloud.state["services"], *words})
    return None


def create_repository(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    if words[0] in cloud.state["repositories"]:
        raise Refused("ALREADY_EXISTS: the repository already exists")
    cloud.state["repositories"][words[0]] = {"location": flags["location"], "format": flags["repository-format"]}
    return None


def describe_repository(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    repository = cloud.find("repositories", words[0])
    if repository["location"] != flags["location"]:
        raise NotFound("NOT_FOUND: Requested entity was not found.")
    return repository


def describe_image(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    if words[0] not in cloud.state["images"]:
        raise NotFound("Image not found.")
    return {"image_summary": words[0]}


def build(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    given = dict(pair.split("=", 1) for pair in flags["substitutions"].split(","))
    image = IMAGE.fullmatch(given.pop("_IMAGE"))
    if (
        flags["config"] != "cloudbuild.yaml"
        or set(given) - {"_BAKE_MODEL", "_TORCH_REQUIREMENT", "_PIP_ARGS"}
        or image is None
    ):
        raise Refused(f"INVALID_ARGUMENT: {flags}")
    if cloud.find("repositories", image["repository"])["location"] != image["region"]:
        raise Refused("the repository lies in another region")
    cloud.state["images"] = sorted({*cloud.state["images"], image[0]})
    return None


def create_bucket(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    if words[0] in cloud.state["buckets"]:
        raise Refused("HTTPError 409: the bucket exists already")
    cloud.state["buckets"][words[0]] = {"location": flags["location"].upper(), "roles": []}
    return None


def describe_bucket(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    if words[0] not in cloud.state["buckets"]:
        raise NotFound(f"{words[0]} not found: 404.")
    return cloud.find("buckets", words[0])


def grant(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    if words[0] not in cloud.state["buckets"]:
        raise NotFound(f"{words[0]} not found: 404.")
    member = flags["member"].removeprefix("serviceAccount:")
    if member not in cloud.state["accounts"]:
        raise Refused(f"HTTPError 400: Service account {member} does not exist.")
    roles = cloud.state["buckets"][words[0]]["roles"]
    if [member, flags["role"]] not in roles:
        roles.append([member, flags["role"]])
    return None


def grant_on_account(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    member = flags["member"].removeprefix("serviceAccount:")
    if {member, words[0]} - set(cloud.state["accounts"]):
        raise NotFound("NOT_FOUND: Unknown service account")
    cloud.state["signers"] = sorted({*cloud.state["signers"], f"{member} {flags['role']}"})
    return None


def create_account(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    email = f"{words[0]}@my-project.iam.gserviceaccount.com"
    if email in cloud.state["accounts"] or not re.fullmatch(r"[a-z][a-z0-9-]{4,28}[a-z0-9]", words[0]):
        raise Refused(f"ALREADY_EXISTS or wrong: {email}")
    cloud.state["accounts"].append(email)
    return None


def describe_account(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    if words[0] not in cloud.state["accounts"]:
        raise NotFound("NOT_FOUND: Unknown service account")
    return {"email": words[0]}


# --- Vertex AI


def upload_model(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    image = IMAGE.fullmatch(flags["container-image-uri"])
    if image is None or image[0] not in cloud.state["images"] or image["region"] != flags["region"]:
        raise Refused(f"INVALID_ARGUMENT: no image {flags['container-image-uri']} in {flags['region']}")
    if int(flags["container-deployment-timeout-seconds"]) > 7200:
        raise Refused("INVALID_ARGUMENT: deployment timeout")
    if not re.fullmatch(r"([a-z0-9_-]+=[a-z0-9_-]{0,63},?)*", flags.get("labels", "")):
        raise Refused(f"INVALID_ARGUMENT: labels {flags['labels']}")
    prefix = f"projects/my-project/locations/{flags['region']}/models/"
    parent = flags.get("parent-model", "")
    name = parent.removeprefix(prefix) or flags["model-id"]
    if parent != (prefix + name if name in cloud.state["models"] else ""):
        raise Refused(f"the model {name} with the parent {parent!r}")
    version = int(cloud.state["models"].get(name, {"versionId": "0"})["versionId"]) + 1
    model = {
        "name": prefix + name,
        "versionId": str(version),
        "versionAliases": flags["version-aliases"].split(","),
        "labels": dict(pair.split("=") for pair in flags["labels"].split(",")),
        "environment": dict(pair.split("=", 1) for pair in flags["container-env-vars"].split(",")),
        "image": image[0],
        "region": flags["region"],
        "routes": [flags["container-health-route"], flags["container-predict-route"]],
    }
    return _wait(cloud, cloud.begin(f"models/{name}", "UploadModel", model))


def describe_model(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    model = cloud.find("models", words[0])
    if model["region"] != flags["region"]:
        raise NotFound("NOT_FOUND: The Model does not exist.")
    return model


def list_endpoints(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    wanted = flags["filter"].removeprefix("displayName=")
    here = f"/{flags['region']}/"
    return [one for one in cloud.state["endpoints"].values() if one["displayName"] == wanted and here in one["name"]]


def describe_endpoint(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    return cloud.find("endpoints", words[0])


def deploy_model(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    endpoint, model = cloud.find("endpoints", words[0]), describe_model(cloud, [flags["model"]], flags)
    assert isinstance(model, dict)
    accelerator = dict(pair.split("=") for pair in flags["accelerator"].split(","))
    if ACCELERATORS.get(flags["machine-type"], ("",))[0] != accelerator["type"] or accelerator["count"] != "1":
        raise Refused(f"INVALID_ARGUMENT: {flags['machine-type']} with {accelerator}")
    if f"/{flags['region']}/" not in endpoint["name"] or flags["service-account"] not in cloud.state["accounts"]:
        raise Refused("INVALID_ARGUMENT: endpoint, model and account do not fit")
    deployment = {
        "displayName": flags["display-name"],
        "model": model["name"],
        "modelVersionId": model["versionId"],
        "machine": flags["machine-type"],
        "spot": "spot" in flags,
        "replicas": int(flags["max-replica-count"]),
    }
    return _wait(cloud, cloud.deploy(words[0], deployment))


def _wait(cloud: Cloud, operation: Json) -> object:
    """Wait as gcloud does: say for what, and give up after half an hour while it goes on."""
    number = operation["name"].rpartition("/")[2]
    print(f"Using endpoint [https://here/]\nWaiting for operation [{number}]...", file=sys.stderr)
    if not cloud.state["gcloud_waits"]:
        raise Refused(f"Operation {number} has not finished in 1800 seconds. It may still be underway remotely.")
    while not (operation := cloud.look(number)).get("done"):
        pass
    if "error" in operation:
        raise Refused(operation["error"]["message"])
    return {"@type": "type.googleapis.com/google.protobuf.Empty"}


def undeploy_model(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    endpoint, gone = cloud.find("endpoints", words[0]), flags["deployed-model-id"]
    names = [one["id"] for one in endpoint["deployedModels"]]
    if gone not in names or (len(names) > 1 and endpoint["trafficSplit"].get(gone)):
        raise Refused(f"the deployed model {gone} is not there, or has traffic")
    _wait(cloud, cloud.begin(f"endpoints/{words[0]}", "UndeployModel", {"id": gone}))
    return []


def delete_endpoint(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    thing = f"endpoints/{words[0]}"
    if cloud.find("endpoints", words[0])["deployedModels"]:
        raise Refused("FAILED_PRECONDITION: the endpoint has deployed models")
    cloud.refuse_while_busy(thing)
    return _wait(cloud, cloud.begin(thing, "DeleteEndpoint", {}))


def delete_model(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
    """Begin only: of what takes its time, this is the one that gcloud does not wait for."""
    describe_model(cloud, words, flags)
    deployed: list[Json] = [one for end in cloud.state["endpoints"].values() for one in end["deployedModels"]]
    if any(one["model"].endswith(f"/models/{words[0]}") for one in deployed):
        raise Refused("FAILED_PRECONDITION: the model is deployed")
    return cloud.begin(f"models/{words[0]}", "DeleteModel", {})


def delete(kind: str) -> Handler:
    def handler(cloud: Cloud, words: list[str], flags: dict[str, str]) -> object:
        if words[0] not in cloud.state[kind]:
            raise NotFound(f"NOT_FOUND: {words[0]}")
        if isinstance(cloud.state[kind], list):
            cloud.state[kind].remove(words[0])
        else:
            del cloud.state[kind][words[0]]
        return None

    return handler


UPLOAD = {"region", "display-name", "container-image-uri", "container-env-vars", "version-aliases", "labels"}
UPLOAD |= {f"container-{name}" for name in ("ports", "health-route", "predict-route")}
UPLOAD |= {"container-deployment-timeout-seconds", "container-shared-memory-size-mb"}
DEPLOY = {"region", "model", "display-name", "machine-type", "accelerator", "min-replica-count", "max-replica-count"}
DEPLOY |= {"traffic-split", "service-account", "enable-access-logging"}
BUILD = {"config", "region", "machine-type", "disk-size", "timeout", "substitutions"}
COMMANDS = {
    "auth print-access-token": Command(0, set(), set(), lambda *_: TOKEN),
    "config get-value": Command(1, set(), set(), lambda cloud, *_: cloud.state["config_project"] or "(unset)"),
    "services enable": Command(-1, set(), set(), enable),
    "artifacts repositories create": Command(1, {"repository-format", "location"}, set(), create_repository),
    "artifacts repositories describe": Command(1, {"location"}, set(), describe_repository),
    "artifacts repositories delete": Command(1, {"location", "quiet"}, set(), delete("repositories")),
    "artifacts docker images describe": Command(1, set(), set(), describe_image),
    "builds submit": Command(1, BUILD, set(), build),
    "storage buckets create": Command(
        1, {"location", "uniform-bucket-level-access"}, {"public-access-prevention"}, create_bucket
    ),
    "storage buckets describe": Command(1, set(), set(), describe_bucket),
    "storage buckets add-iam-policy-binding": Command(1, {"member", "role"}, set(), grant),
    "storage rm": Command(1, {"recursive"}, set(), delete("buckets")),
    "iam service-accounts create": Command(1, set(), {"display-name"}, create_account),
    "iam service-accounts describe": Command(1, set(), set(), describe_account),
    "iam service-accounts delete": Command(1, {"quiet"}, set(), delete("accounts")),
    "iam service-accounts add-iam-policy-binding": Command(1, {"member", "role"}, set(), grant_on_account),
    "ai models upload": Command(0, UPLOAD, {"model-id", "parent-model"}, upload_model),
    "ai models describe": Command(1, {"region"}, set(), describe_model),
    "ai models delete": Command(1, {"region", "quiet"}, set(), delete_model),
    "ai endpoints list": Command(0, {"region"}, set(), list_endpoints),
    "ai endpoints describe": Command(1, {"region"}, set(), describe_endpoint),
    "ai endpoints deploy-model": Command(1, DEPLOY, {"spot"}, deploy_model),
    "ai endpoints undeploy-model": Command(1, {"region", "deployed-model-id"}, set(), undeploy_model),
    "ai endpoints delete": Command(1, {"region", "quiet"}, set(), delete_endpoint),
    "ai operations describe": Command(1, {"region"}, set(), lambda cloud, words, flags: cloud.look(words[0])),
}
WITHOUT_LOGIN = {"config get-value"}
WITHOUT_PROJECT = {"config get-value", "auth print-access-token"}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
