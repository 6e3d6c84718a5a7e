"""Every gcloud command of the scripts and documents, through gcloud's own checks, without a network or a login.

Independent of what Google Cloud would answer.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from tests.deploy.cloud.gcloud_check import library, refusals
from tests.deploy.cloud.person import ROOT, Person

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(library() is None, reason="gcloud is not installed: nothing checks what is printed"),
]

Words = tuple[str, ...]
DOCUMENTS = ("README.md", "docs/api.md", "docs/deploy.md")
VARIANTS = (
    "deploy_on_demand.sh",
    "deploy_with_entrypoint.sh",
    "deploy_on_demand.sh --accelerator=l4 --yue-quantization=int8",
    "deploy_on_demand.sh --accelerator=a100-80gb --spot=yes --min-replicas=2 --max-replicas=3",
    "deploy_with_entrypoint.sh --accelerator=h100 --machine-type=a3-highgpu-1g --region=europe-west4 --image-tag=v2.1",
    "deploy_on_demand.sh --weights=gs://mirror/yue --bucket=my.results_1 --service-account=another --repository=images",
    "deploy_on_demand.sh --torch-requirement=torch>=2.12 '--pip-args=--pre --no-deps' --bake-weights=yes --rebuild=yes",
    "deploy_with_entrypoint.sh --yue-model=owner/name@main --yue-max-songs=2 --yue-max-queue=3 --shared-memory-mb=64",
    "undeploy.sh",
    "undeploy.sh --all --bucket=my.results_1 --service-account=another --repository=images --deployment-name=other-1",
)
UPLOAD = "ai models upload --region=us-central1 --display-name=yue --container-image-uri=a/b:c"
DEPLOY = "ai endpoints deploy-model 7 --region=us-central1 --display-name=yue --machine-type=g2-standard-16"
MISTAKES = {
    f"{UPLOAD} --container-port=8080": "unrecognized arguments: --container-port=8080",
    f"{DEPLOY} --model=yue --accelerator-type=nvidia-l4": "unrecognized arguments",
    f"{DEPLOY} --model=yue --accelerator=type=nvidia-l5,count=1": "nvidia-l4",
    f"{DEPLOY} --model=yue --accelerator=kind=nvidia-l4": "valid keys are [count, type]",
    f"{DEPLOY} --model=yue --min-replica-count=one": "Value must be an integer",
    f"{DEPLOY} --accelerator=type=nvidia-l4,count=1": "argument --model: Must be specified",
    "artifacts repositories create yue --repository-format=dockr --location=us-central1": "DOCKR",
    "artifacts repositories create yue --location=us-central1": "argument --repository-format: Must be specified",
    "builds submit . --config=cloudbuild.yaml --machine-type=e2-highcpu-33": "Invalid choice: 'e2-highcpu-33'",
    "builds submit . --config=no-such-file.yaml": "no-such-file.yaml",
    "ai models delete yue": "--region",
    "ai models delete --region=us-central1": "MODEL must be specified",
    "ai models remove yue --region=us-central1": "Invalid choice: 'remove'",
    "storage buckets describe yue": "only accepts bucket URLs",
}


def test_gcloud_takes_every_command(commands: set[Words], verdicts: dict[Words, str]) -> None:
    assert len(commands) > 40
    refused = {shlex.join(words): verdicts[words] for words in sorted(commands) if verdicts[words]}
    assert not refused


def test_gcloud_refuses_every_command_with_an_invented_flag(commands: set[Words], verdicts: dict[Words, str]) -> None:
    missed = [shlex.join(words) for words in commands if "--no-such-flag" not in verdicts[invented(words)]]
    assert not missed


@pytest.mark.parametrize("mistake", MISTAKES)
def test_gcloud_refuses_a_mistake(mistake: str, verdicts: dict[Words, str]) -> None:
    assert MISTAKES[mistake] in verdicts[tuple(mistake.split())]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> set[Words]:
    """The words behind gcloud: what is printed, what is run, and what the documents tell to type."""
    person = Person(tmp_path_factory.mktemp("gcloud"))
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS]
    for variant in VARIANTS:
        script, *arguments = shlex.split(variant)
        done = person.run(script, "--dry-run", *arguments, HF_TOKEN="hf_x")
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    return {words for text in texts for words in printed(text)} | run_by(person)


def printed(text: str) -> Iterator[Words]:
    """Every command but a login, which would wait for a browser."""
    for line in text.replace("\\\n", "").splitlines():
        if line.startswith("gcloud ") and " login" not in line:
            yield tuple(shlex.split(line)[1:])
        for inner in re.findall(r"\$\(gcloud ([^)]*)\)", line):
            yield tuple(inner.split())


def run_by(person: Person) -> set[Words]:
    """From nothing to an endpoint, to another version that takes the place of the first, and back to nothing."""
    person.arrange(config_project="my-project", quota={"custom_model_serving_nvidia_a100_gpus": "2"})
    person.deploy(PROJECT_ID="")
    person.deploy("deploy_with_entrypoint.sh")
    person.deploy("undeploy.sh", "--all")
    return {tuple(words) for _, *words in person.calls("gcloud")}


def invented(words: Words) -> Words:
    return (*words, "--no-such-flag=1")


@pytest.fixture(scope="module")
def verdicts(commands: set[Words]) -> dict[Words, str]:
    """Why gcloud refuses a command, for all of them at once: it takes a second to start."""
    asked = [*commands, *map(invented, commands), *(tuple(mistake.split()) for mistake in MISTAKES)]
    return dict(zip(asked, refusals([(*words, "--project=my-project") for words in asked], ROOT), strict=True))
