"""A small Google Cloud in a folder: projects, buckets, images, models, endpoints and long-running operations.

It does not know who asks: `gcloud.py` and `curl.py` do, each with the rules of its own way in.

Whatever changes a model or an endpoint is an operation: it moves on only when it is looked at, and nothing has changed
until it is done.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Json = dict[str, Any]

TOKEN = "ya29.the-token-of-this-login"
FOLDER = "STAND_IN_CLOUD"  # the environment variable that says where the cloud lies
ACCELERATORS = {
    "g2-standard-16": ("nvidia-l4", "l4"),
    "a2-highgpu-1g": ("nvidia-tesla-a100", "a100"),
    "a2-ultragpu-1g": ("nvidia-a100-80gb", "a100_80gb"),
    "a3-highgpu-1g": ("nvidia-h100-80gb", "h100"),
}
PERFECT: Json = {
    "login": True,
    "config_project": "",
    "services": [],
    "repositories": {},
    "images": [],
    "buckets": {},
    "accounts": [],
    "signers": [],  # accounts and their roles on themselves
    "models": {},
    "endpoints": {},
    "operations": {},
    "quota": {f"custom_model_serving_nvidia_{name}_gpus": "1" for _, name in ACCELERATORS.values()},
    "quota_buckets": None,  # all that is said of a quota; None: what `quota` holds
    "polls": 3,  # looks at an operation until it is done
    "gcloud_waits": True,  # whether gcloud waits long enough for a deployment
    "operation_errors": {},  # the kind of an operation -> why every one of that kind fails
    "faults": {},  # the start of a command -> [how often, what gcloud then says]
    "numbers": 1000,
    "calls": [],
}


class Refused(Exception):
    """The cloud, or the command, says no."""


class NotFound(Refused):
    """What is asked for is not there."""


class Cloud:
    """The state in a folder, read when it is opened and written when it is closed."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "cloud.json"
        self.state: Json = json.loads(self.file.read_text()) if self.file.exists() else json.loads(json.dumps(PERFECT))

    def save(self) -> None:
        self.file.write_text(json.dumps(self.state, indent=2))

    def number(self) -> str:
        self.state["numbers"] += 1
        return str(self.state["numbers"])

    def find(self, kind: str, name: str) -> Json:
        if name not in self.state[kind]:
            raise NotFound(f"NOT_FOUND: {kind[:-1]} {name}")
        return dict(self.state[kind][name])

    def fault_of(self, command: str) -> None:
        """Raise what a test wants to go wrong here."""
        for start, fault in self.state["faults"].items():
            if command.startswith(start) and fault[0]:
                fault[0] -= 1
                raise Refused(fault[1])

    # --- Endpoints

    def create_endpoint(self, parent: str, body: Json) -> Json:
        unknown = set(body) - {"displayName", "dedicatedEndpointEnabled", "clientConnectionConfig"}
        timeout = body.get("clientConnectionConfig", {}).get("inferenceTimeout", "600s")
        if unknown or not re.fullmatch(r"\d+s", timeout) or int(timeout[:-1]) > 3600:
            raise Refused(f"INVALID_ARGUMENT: {sorted(unknown) or timeout}")
        number = self.number()
        endpoint = {**body, "name": f"{parent}/endpoints/{number}", "deployedModels": []}
        if body.get("dedicatedEndpointEnabled"):
            endpoint["dedicatedEndpointDns"] = f"{number}.{parent.rsplit('/')[-1]}-42.prediction.vertexai.goog"
        return self.begin(f"endpoints/{number}", "CreateEndpoint", endpoint)

    def deploy(self, endpoint: str, deployment: Json) -> Json:
        """Begin a deployment; like the platform, refuse what the quota does not hold."""
        _, quota = ACCELERATORS[deployment["machine"]]
        replicas = [one["replicas"] for one in self._deployments() if one["machine"] == deployment["machine"]]
        limit = int(self.state["quota"][f"custom_model_serving_nvidia_{quota}_gpus"])
        if 0 <= limit < sum(replicas) + deployment["replicas"]:
            raise Refused(f"RESOURCE_EXHAUSTED: custom_model_serving_nvidia_{quota}_gpus is {limit}")
        return self.begin(f"endpoints/{endpoint}", "DeployModel", {"id": self.number(), **deployment})

    def _deployments(self) -> Iterator[Json]:
        for endpoint in self.state["endpoints"].values():
            yield from endpoint["deployedModels"]

    # --- Operations

    def begin(self, on: str, kind: str, effect: Json) -> Json:
        """Begin an operation on a thing such as "models/yue-server"; it has its effect when it is done."""
        number = self.number()
        name = f"projects/42/locations/here/{on}/operations/{number}"
        metadata = {"@type": f"type.googleapis.com/google.cloud.aiplatform.v1.{kind}OperationMetadata"}
        operation = {"name": name, "metadata": metadata, "left": self.state["polls"], "kind": kind, "effect": effect}
        self.state["operations"][number] = operation
        return shown(operation)

    def operations_on(self, thing: str) -> list[Json]:
        return [shown(one) for one in self.state["operations"].values() if f"/{thing}/operations/" in one["name"]]

    def refuse_while_busy(self, thing: str) -> None:
        if any(not one.get("done") for one in self.operations_on(thing)):
            raise Refused(f"FAILED_PRECONDITION: an operation on {thing} is running")

    def look(self, number: str) -> Json:
        """An operation as it is now; each look brings it nearer to its end."""
        if number not in self.state["operations"]:
            raise NotFound(f"NOT_FOUND: operation {number}")
        operation: Json = self.state["operations"][number]
        if not operation.get("done"):
            operation["left"] -= 1
            if operation["left"] <= 0:
                self._end(operation)
        return shown(operation)

    def _end(self, operation: Json) -> None:
        operation["done"] = True
        kind, effect = operation["kind"], operation["effect"]
        if why := self.state["operation_errors"].get(kind):
            operation["error"] = {"code": 9, "message": why}
            return
        things, name = operation["name"].split("/")[4:6]
        if kind.startswith("Delete"):
            del self.state[things][name]
        elif kind in ("CreateEndpoint", "UploadModel"):
            self.state[things][name] = effect
        else:
            endpoint = self.state["endpoints"][name]
            kept = [one for one in endpoint["deployedModels"] if one["id"] != effect["id"]]
            endpoint["deployedModels"] = kept + ([effect] if kind == "DeployModel" else [])
            if kind == "DeployModel":
                endpoint["trafficSplit"] = {effect["id"]: 100}


def shown(operation: Json) -> Json:
    """An operation without what is known to the cloud alone."""
    return {key: value for key, value in operation.items() if key not in ("left", "kind", "effect")}


def as_sent(value: Any) -> Any:
    """A value as Google's JSON has it: a field that is zero, false or empty is left out."""
    if isinstance(value, dict):
        fields = {key: as_sent(field) for key, field in value.items()}
        return {key: field for key, field in fields.items() if field not in (0, "0", False, "", None, [], {})}
    return [as_sent(one) for one in value] if isinstance(value, list) else value


@contextmanager
def opened() -> Iterator[Cloud]:
    """The cloud that the environment names; what was changed is kept, also when it says no."""
    cloud = Cloud(Path(os.environ[FOLDER]))
    try:
        yield cloud
    finally:
        cloud.save()


def same_project(value: str) -> str:
    if value != "my-project":
        raise Refused(f"PERMISSION_DENIED on the project {value} (or it may not exist)")
    return value


Handler = Callable[[Cloud, list[str], dict[str, str]], object]
