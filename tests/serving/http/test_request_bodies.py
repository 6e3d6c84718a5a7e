"""What a request's body may hold around its instances, and the fields of operations."""

from __future__ import annotations

import pytest

from inference import catalog
from serving.http import request_models
from serving.http.problems import Problem
from serving.http.request_models import Download, JobOperation
from serving.http.song_instances import read_song_instance
from tests.support.fakes import INSTANCE, LYRICS

TINY = catalog.find("tiny")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ([], "got a list; allowed: a JSON object"),
        (None, "got null; allowed: a JSON object"),
        (True, "got true or false; allowed: a JSON object"),
        (1.5, "got a number; allowed: a JSON object"),
        ({}, "instances: got nothing; allowed: a list of 1 to 2 instances"),
        ({"instances": []}, "a list of 1 to 2 instances"),
        ({"instances": {}}, "a list of 1 to 2 instances"),
        ({"instances": [1, 2, 3]}, "got '3 instances'"),
        ({"instances": [1], "parameter": {}}, "instances, parameters"),
        ({"instances": [1], "parameters": []}, "parameters: got []; allowed: a JSON object"),
        ({"instances": [1], "parameters": {"top_p": 2}}, "top_p: got 2"),
        ({"instances": None}, "instances: got nothing"),
        ({"parameters": {"genres": "pop", "lyrics": LYRICS}}, "instances: got nothing"),
        (
            {"instances": [INSTANCE], "genres": "pop"},
            "genres: got 'pop'; allowed: instances, parameters; genres belongs",
        ),
        ({"instances": [INSTANCE], "job_id": "1"}, "job_id belongs in an instance"),
        ({"parameters": {"top_p": 2}, **INSTANCE}, "top_p: got 2"),
        ({"parameters": [], **INSTANCE}, "parameters: got []; allowed: a JSON object"),
        ({"parameters": {}, "genre": "pop"}, "genre: got 'pop'; allowed: instances, parameters"),
        ({"genre": "pop"}, "genre: got 'pop'; allowed: instances, parameters"),
        ({"instances": [1], "parameters": {"nonsense": 2}}, "nonsense: got 2"),
    ],
)
def test_a_wrong_body_is_named(body: object, named: str) -> None:
    with pytest.raises(Problem) as caught:
        request_models.read_body(body, max_instances=2)
    assert caught.value.status == 400
    assert named in caught.value.detail


@pytest.mark.parametrize("body", [INSTANCE, {"job_id": "1", "operation": "status"}, {"operation": "models/status"}])
def test_a_body_that_is_an_instance_is_the_only_one(body: dict[str, object]) -> None:
    assert request_models.read_body(body, max_instances=2) == ([body], {})
    assert request_models.read_body({**body, "instances": None}, max_instances=2) == ([body], {})
    assert request_models.read_body({**body, "parameters": None}, max_instances=2) == ([body], {})
    parameters = {"top_p": 0.5}
    assert request_models.read_body({**body, "parameters": parameters}, max_instances=2) == ([body], parameters)


def test_an_unknown_field_of_a_body_that_is_an_instance_is_refused_by_name() -> None:
    (instance,), parameters = request_models.read_body({**INSTANCE, "tempo": 90, "parameters": {"top_p": 0.5}}, 2)
    with pytest.raises(Problem, match="tempo: got 90; allowed: only the fields genres, lyrics"):
        read_song_instance(instance, parameters, TINY)


def test_a_revision_that_is_too_long_is_told_its_length_and_the_limit() -> None:
    with pytest.raises(Problem, match=r"revision: got 'xxx.*… \(201 characters\); allowed: .*200"):
        request_models.read(Download, {"model": "a/b", "revision": "x" * 201})


def test_operations_are_read_strictly() -> None:
    assert request_models.read(JobOperation, {"job_id": "1", "operation": "cancel"}).operation == "cancel"
    with pytest.raises(Problem, match="operation: got 'stop'; allowed: status, result, cancel"):
        request_models.read(JobOperation, {"job_id": "1", "operation": "stop"})
    assert request_models.read(Download, {"force": None}) == Download()
    with pytest.raises(Problem, match="wait: got 'no'"):
        request_models.read(Download, {"wait": "no"})
