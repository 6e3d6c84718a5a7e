"""The script that removes a deployment, with a stand-in for Google Cloud; how one comes about is in test_deploy.py."""

from __future__ import annotations

import pytest

from tests.deploy.cloud.person import Person, gpus

pytestmark = pytest.mark.slow


def test_undeploy_removes_what_is_paid_for_and_keeps_the_results(deployed: Person) -> None:
    done = deployed.run("undeploy.sh", "--yes")
    assert done.returncode == 0, done.stderr
    cloud = deployed.cloud
    assert not cloud["endpoints"] and not cloud["models"]
    assert cloud["buckets"] and cloud["repositories"] and cloud["accounts"]


@pytest.mark.parametrize("gcloud_waits", [True, False])
def test_undeploy_ends_when_everything_is_gone(deployed: Person, gcloud_waits: bool) -> None:
    """gcloud begins the deletion of a model only, and stops waiting for the others after half an hour."""
    deployed.arrange(gcloud_waits=gcloud_waits, polls=7)
    done = deployed.run("undeploy.sh", "--yes")
    assert done.returncode == 0, done.stderr
    assert not deployed.cloud["endpoints"] and not deployed.cloud["models"]


@pytest.mark.parametrize("kind", ["UndeployModel", "DeleteEndpoint", "DeleteModel"])
def test_undeploy_fails_when_something_cannot_be_removed(deployed: Person, kind: str) -> None:
    deployed.arrange(operation_errors={kind: "a pipeline uses it"})
    assert "a pipeline uses it" in deployed.fails("undeploy.sh")
    deployed.arrange(operation_errors={})
    assert deployed.run("undeploy.sh", "--yes").returncode == 0
    assert not deployed.cloud["endpoints"] and not deployed.cloud["models"]


@pytest.mark.parametrize("errors", [{}, {"DeployModel": "Model server never became ready."}])
def test_undeploy_waits_for_a_deployment_that_is_still_running(deployed: Person, errors: dict[str, str]) -> None:
    number = deployed.endpoint["name"].rpartition("/")[2]
    deployed.arrange(endpoints={number: deployed.endpoint | {"deployedModels": []}}, gcloud_waits=False, polls=9)
    deployed.arrange(operation_errors=errors)
    deployed.fails("deploy_on_demand.sh", "--wait-minutes=0")
    done = deployed.run("undeploy.sh", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not deployed.cloud["endpoints"] and not deployed.cloud["models"]


def test_undeploy_removes_everything_with_all(deployed: Person) -> None:
    done = deployed.run("undeploy.sh", "--yes", "--all")
    assert done.returncode == 0, done.stderr
    cloud = deployed.cloud
    assert not any(cloud[kind] for kind in ("endpoints", "models", "buckets", "repositories", "accounts"))


def test_undeploy_may_be_run_twice(deployed: Person) -> None:
    for _ in range(2):
        done = deployed.run("undeploy.sh", "--yes", "--all")
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("There is none") == 5


def test_undeploy_removes_the_model_with_the_traffic_last(deployed: Person) -> None:
    """A run that was stopped may leave two; the one that answers cannot go first."""
    deployed.arrange(quota=gpus("2"), faults={"ai endpoints undeploy-model": [1, "stopped here"]})
    deployed.fails("deploy_on_demand.sh", "--yue-max-queue=5")
    number, endpoint = deployed.endpoint["name"].rpartition("/")[2], deployed.endpoint
    deployed.arrange(endpoints={number: endpoint | {"deployedModels": endpoint["deployedModels"][::-1]}})
    done = deployed.run("undeploy.sh", "--yes")
    assert done.returncode == 0, done.stderr
    assert not deployed.cloud["endpoints"]


def test_undeploy_asks_before_it_removes(deployed: Person) -> None:
    assert deployed.run("undeploy.sh", "--all").returncode == 1
    assert deployed.endpoint["deployedModels"]
