"""The server keeps to its contract: every route is in it, and every answer is as it says, whatever is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from pydantic import TypeAdapter
from werkzeug.serving import make_server

from inference.engine.pipeline import Pipeline
from inference.engine.scheduler import Scheduler
from inference.errors import DownloadError, EngineError
from inference.song import SongRequest
from server import close_app
from serving.http import openapi, response_models
from serving.http.operations import OPERATIONS
from serving.http.request_models import Parameters
from serving.settings import RESERVED_THREADS
from tests.support.fakes import INSTANCE, Served, new_folder, problem
from tests.support.paths import TESTS
from tests.support.threaded import answering

pytestmark = pytest.mark.slow

PROJECT = TESTS.parent
REQUESTS = 13  # of each operation, besides those that try every limit of every field
LONGEST_RUN_SECONDS = 300


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    close_app(served.app)


@pytest.fixture
def document(served: Served) -> Any:
    return served.client.get("/openapi.json").json


@contextmanager
def listening(served: Served) -> Iterator[str]:
    """The address of the app, on a real port."""
    with answering(make_server("127.0.0.1", 0, served.app, threaded=True)) as server:
        yield f"http://127.0.0.1:{server.port}"


def tried_out(address: str, *options: str) -> str:
    """What schemathesis says of the server, in whose answers it found nothing wrong."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(TESTS / "data" / "schemathesis.toml")]
    command += ["run", f"{address}/openapi.json", "--generation-deterministic", "--max-examples", str(REQUESTS)]
    done = subprocess.run(
        [*command, "--no-color", *options],
        cwd=new_folder(),  # where it leaves what it found, which it would ask again
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=LONGEST_RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def schema_of(document: Any, name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})


def test_whatever_is_asked_is_answered_as_the_contract_says() -> None:
    served = Served(max_queue=10_000)
    with listening(served) as address:
        report = tried_out(address)
        tried = re.search(r"Operations: +(\d+) selected / (\d+) total", report)
        assert tried and tried[1] == tried[2] and int(tried[1]) > 20, report
        jobs = served.client.get("/jobs").json["jobs"]
    close_app(served.app)
    assert {"succeeded"} <= {job["status"] for job in jobs}  # it went beyond what is refused


def test_files_are_answered_as_the_contract_says() -> None:
    served = Served(max_queue=10_000)
    with listening(served) as address:
        phases = ("--phases", "examples,coverage,fuzzing")  # no links lead from a file to anything
        tried_out(address, *phases, "--include-path", "/predict", "--header", "Accept: audio/*, */*;q=0.1")
    close_app(served.app)


def test_an_unknown_field_is_refused_also_where_it_holds_nothing(served: Served) -> None:
    assert problem(served.client.post("/download-models", json={"modle": None}), 400)["field"] == "modle"
    assert problem(served.predict({**INSTANCE, "sede": None}), 400)["field"] == "sede"
    assert problem(served.predict(INSTANCE, parameters={"sede": None}), 400)["field"] == "sede"
    assert served.one(seed=None)["status"] == "succeeded"


def test_a_key_that_cannot_be_one_is_refused_whatever_is_asked(served: Served) -> None:
    key = {"Idempotency-Key": "two words"}
    for instance in (INSTANCE, {"operation": "models/status"}):
        assert problem(served.predict(instance, headers=key), 400)["field"] == "Idempotency-Key"


def test_a_path_with_a_doubled_slash_is_a_problem_like_any_unknown_one(served: Served) -> None:
    problem(served.client.get("/models//status"), 404)
    problem(served.client.get("/jobs//audio/mix.mp3"), 404)


def test_the_document_is_a_valid_openapi_document_by_get_and_post(served: Served, document: Any) -> None:
    validate(document)
    assert served.client.post("/openapi.json").json == document
    assert document["info"]["version"] == tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]


def test_every_route_is_in_the_document_and_nothing_else() -> None:
    served = Served(health_route="/v1/endpoints/1", predict_route="/v1/endpoints/1:predict")
    paths = served.client.get("/openapi.json").json["paths"]
    documented = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    routed = {(re.sub(r"<(\w+)>", r"{\1}", path), method) for path, method, _ in openapi.routes(served.app)}
    assert documented == routed
    assert ("/v1/endpoints/1:predict", "POST") in documented
    assert {view.__name__ for _, _, view in openapi.routes(served.app)} == OPERATIONS.keys()
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(set(ids)) == len(ids)
    close_app(served.app)


def test_the_limits_of_the_fields_are_in_the_document(document: Any) -> None:
    song = document["components"]["schemas"]["Instance"]["properties"]
    assert song.keys() == Parameters.model_fields.keys()
    assert all(field["description"] for field in song.values())
    assert song["top_k"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 1_024}
    assert song["guidance_scale"]["anyOf"][0] == {"type": "number", "minimum": 1, "maximum": 10}
    assert song["request_id"]["anyOf"][0]["pattern"] == "^[!-~]{1,128}$"
    assert song["max_new_tokens"]["default"] == SongRequest("", "", 0).max_new_tokens


def test_the_next_song_is_at_position_1_in_the_document_as_in_the_answers(document: Any) -> None:
    position = document["components"]["schemas"]["UnfinishedJob"]["properties"]["position"]
    assert "1 for the next" in position["description"] and position["anyOf"][0] == {"type": "integer", "minimum": 1}
    served = Served(may_generate=False)
    served.client.post("/download-models")
    generated, following = (served.one(wait_seconds=0)["job_id"] for _ in range(2))
    served.models.engine.wait_until_begun(1)
    answer = served.client.get(f"/jobs/{following}").json
    assert answer["position"] == 1
    schema_of(document, "UnfinishedJob").validate(answer)
    served.models.engine.release()
    served.wait_for(generated)
    close_app(served.app)


def test_the_number_of_instances_is_as_the_server_is_set_up() -> None:
    served = Served(max_instances=3)
    request = served.client.get("/openapi.json").json["components"]["schemas"]["PredictRequest"]
    assert request["properties"]["instances"]["maxItems"] == 3
    close_app(served.app)


def test_the_examples_and_those_of_the_documents_are_requests(served: Served, document: Any) -> None:
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    bodies = [example["value"] for example in content["examples"].values()]
    texts = "".join((PROJECT / name).read_text() for name in ("README.md", "docs/api.md"))
    told = [json.loads(body) for body in re.findall(r"-d '\s*(\{\"instances\".*?\})'", texts, re.DOTALL)]
    assert len(bodies) >= 5 and len(told) >= 4
    assert bodies[0]["instances"][0]["lyrics"] == (PROJECT / "examples" / "lyrics.txt").read_text().strip()
    for body in (*bodies, *told):
        schema_of(document, "PredictRequest").validate(body)
    assert served.client.post("/predict", json=bodies[0]).json["predictions"][0]["status"] == "succeeded"


def test_no_answer_holds_more_or_less_than_the_contract_says() -> None:
    """Every kind of job and every state of the models, with nothing that is not described."""
    served = Served(may_fetch=False, may_generate=False, threads=RESERVED_THREADS + 1)
    ask = served.client
    answers: list[tuple[Any, Any]] = [
        (response_models.Health, ask.get("/health").json),
        (response_models.CancelAnswer, ask.delete("/download-models").json),
        (response_models.DownloadAnswer, ask.post("/download-models", json={"wait": False}).json),
        (response_models.ModelsStatus, ask.get("/models/status").json),
    ]
    served.models.may_fetch.set()
    answers += [
        (response_models.DownloadAnswer, ask.post("/download-models").json),
        (response_models.ModelsStatus, ask.get("/models/status").json),
    ]
    generated, cancelled, failed = (served.one(wait_seconds=0, request_id=name)["job_id"] for name in "abc")
    served.models.engine.wait_until_begun(1)
    answers.append((response_models.Predictions, served.predict({"job_id": generated, "operation": "status"}).json))
    ask.delete(f"/jobs/{cancelled}")
    served.models.engine.release()
    served.wait_for(generated)
    served.wait_for(failed)
    served.models.engine.error = EngineError("it broke")
    broken = served.predict(
        {**INSTANCE, "tracks": ["mix", "vocal"]}, {"job_id": generated, "operation": "result"}, 3
    ).json
    answers += [
        (response_models.Predictions, broken),
        (response_models.ProblemView, broken["predictions"][0]["error"]),
        (response_models.SongPrediction, broken["predictions"][1]),
        (response_models.JobListView, ask.get("/jobs").json),
        (response_models.JobWithoutSong, ask.get(f"/jobs/{cancelled}").json),
        (response_models.ProblemView, served.predict({**INSTANCE, "lyrics": "no tag"}).json),
        (response_models.ProblemView, served.predict({**INSTANCE, "top_p": 2, "seed": -2}).json),
    ]
    close_app(served.app)
    refusing = Served()
    refusing.models.errors.append(DownloadError("no network", "offline"))
    answers.append((response_models.ProblemView, refusing.client.post("/download-models").json))
    answers.append((response_models.ModelsAbsent, refusing.client.get("/models/status").json))
    close_app(refusing.app)
    for kind, answer in answers:
        TypeAdapter(kind).validate_python(answer, extra="forbid")


def test_what_the_real_engine_tells_of_itself_is_described(tiny_pipeline: Pipeline, tiny_engine: Scheduler) -> None:
    info = {**tiny_pipeline.info(), "recordings": tiny_engine.recordings(), "max_songs": tiny_engine.limits.songs}
    response_models.EngineInfo.model_validate(info, extra="forbid")


def test_the_page_shows_the_whole_contract_and_asks_for_nothing_else(served: Served, document: Any) -> None:
    response = served.client.get("/docs")
    assert (response.status_code, response.mimetype) == (200, "text/html")
    page = response.get_data(as_text=True)
    for path in document["paths"]:
        assert f'<span class="path">{path}</span>' in page
    for name, schema in document["components"]["schemas"].items():
        assert f'id="{name}"' in page
        assert all(f"<code>{field}</code>" in page for field in schema["properties"])
    fetched = re.findall(r"""(?:src|srcset|href|action)=["']([^"'#]+)|url\(([^)]+)\)|@import""", page)
    assert {place for place, _ in fetched} == {"data:,", "openapi.json", "./"}
    assert "<script" not in page
    named = {link for link in re.findall(r'href="#([^"]+)"', page)}
    assert named <= set(re.findall(r'id="([^"]+)"', page))
