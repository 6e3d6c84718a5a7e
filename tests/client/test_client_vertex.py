"""The command line against an endpoint of Vertex AI: the stand-in, over TLS, with tokens, and /predict alone or all."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

import client
from server import close_app
from tests.support.fakes import LYRICS, SECONDS, FakeClock, Served
from tests.support.threaded import answering
from tests.support.vertex import (
    DEDICATED,
    ENDPOINT_PATH,
    PREDICT_ROUTE,
    SHARED,
    Answer,
    Deployment,
    Endpoint,
    Limits,
    free_port,
)

NAME = ENDPOINT_PATH.removeprefix("/v1/")
SING = ["sing", "--genres", "pop", "--lyrics", LYRICS, "--seed", "7", "--endpoint", NAME]
SONG = b"mix of pop 7"


class AppDeployment:
    """A deployment whose container is an app in this process; some of its answers may be replaced."""

    routed = True

    def __init__(self, served: Served, invoked: bool = False) -> None:
        self.served, self.invoked = served, invoked
        self.first_answers: list[Answer | OSError] = []  # what the next requests get, though they reach the app
        self.asked: list[Any] = []

    def call(self, body: bytes, content_type: str, timeout_s: float, path: str = PREDICT_ROUTE) -> Answer:
        if path not in (PREDICT_ROUTE, "/predict"):
            response = self.served.client.post(path, data=body, content_type=content_type)
            return Answer(response.status_code, response.content_type, response.data)
        (instance,) = json.loads(body)["instances"]
        self.asked.append(instance)
        response = self.served.client.post("/predict", data=body, content_type=content_type)
        answer = self.changed(instance, Answer(response.status_code, response.content_type, response.data))
        if self.first_answers:
            answer_instead = self.first_answers.pop(0)
            if isinstance(answer_instead, OSError):
                raise answer_instead
            return answer_instead
        return answer

    def changed(self, instance: Any, answer: Answer) -> Answer:
        return answer


class LargeAudio(AppDeployment):
    """Keeps songs out of its answers, and gives them piece by piece, or names the address of a bucket."""

    audio = b"0123456789" * 250_000
    url = "/jobs/x/audio/mix.mp3"

    def changed(self, instance: Any, answer: Answer) -> Answer:
        if instance.get("operation") != "result":
            return answer
        if "offset" in instance:
            assert instance["track"] == "mix"
            end = min(instance["offset"] + instance["length"], len(self.audio))
            piece = base64.b64encode(self.audio[instance["offset"] : end]).decode()
            following = end if end < len(self.audio) else None
            found = {"audio": piece, "bytes": len(self.audio), "next_offset": following}
        else:
            found = {**json.loads(answer.body)["predictions"][0], "url": self.url}
            del found["audio"]
        return Answer(200, answer.content_type, json.dumps({"predictions": [found]}).encode())

    def call(self, body: bytes, content_type: str, timeout_s: float, path: str = PREDICT_ROUTE) -> Answer:
        instance = json.loads(body)["instances"][0]
        if "offset" not in instance:
            return super().call(body, content_type, timeout_s, path)
        self.asked.append(instance)
        return self.changed(instance, Answer(200, "application/json", b""))


class Bucket(ThreadingHTTPServer):
    """Where signed addresses lead to: answers all with that status, and a large song."""

    daemon_threads = True

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _BucketFile)
        self.status, self.asked = status, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/mix.mp3?signature=x"


class _BucketFile(BaseHTTPRequestHandler):
    server: Bucket

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(LargeAudio.audio)))
        self.end_headers()
        self.wfile.write(LargeAudio.audio)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


class Api(ThreadingHTTPServer):
    """Vertex AI's own address: it describes the endpoint to who has the token."""

    daemon_threads = True

    def __init__(self, description: dict[str, object], token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Description)
        self.description, self.token = description, token


class _Description(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        let_in = self.headers.get("Authorization") == f"Bearer {self.server.token}" and self.path == ENDPOINT_PATH
        body = json.dumps(self.server.description if let_in else {"error": {"code": 403, "message": "denied"}}).encode()
        self.send_response(200 if let_in else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    options = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=vertex", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(path.with_name("key.pem")), "-out", str(path.with_name("certificate.pem"))]
    subprocess.run(["openssl", "req", "-x509", *options, *files], check=True, capture_output=True)
    path.write_text("".join(path.with_name(name).read_text() for name in ("key.pem", "certificate.pem")))
    return path


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the gcloud of this machine prints next: one token a line, the last one for ever."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (tokens := folder / "tokens").write_text("secret\n")
    gcloud = folder / "gcloud"
    only = '[ "$*" = "auth print-access-token" ] || exit 9'
    gcloud.write_text(f"#!/bin/sh\n{only}\nhead -n 1 {tokens}\n[ $(wc -l <{tokens}) = 1 ] || sed -i 1d {tokens}\n")
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return tokens


@contextmanager
def vertex(
    deployment: AppDeployment, certificate: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits = DEDICATED
) -> Iterator[Endpoint]:
    """The stand-in behind TLS, and Google's address, which names it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    endpoint = Endpoint(cast(Deployment, deployment), limits)
    endpoint.token = "secret"
    endpoint.socket = context.wrap_socket(endpoint.socket, server_side=True)
    host = f"127.0.0.1:{endpoint.server_address[1]}"
    api = Api({"name": NAME, "dedicatedEndpointEnabled": True, "dedicatedEndpointDns": host}, "secret")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM", f"http://127.0.0.1:{api.server_address[1]}/")
    try:
        with answering(endpoint), answering(api):
            yield endpoint
    finally:
        close_app(deployment.served.app)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "song.mp3"


@pytest.mark.usefixtures("token_file")
def test_a_song_is_generated_behind_vertex(out: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with vertex(AppDeployment(Served()), certificate, monkeypatch, SHARED):
        assert client.main([*SING, "--tracks", "mix", "vocal", "--out", str(out)], FakeClock()) == 0
    assert (out.read_bytes(), out.with_name("song-vocal.mp3").read_bytes()) == (SONG, b"vocal of pop 7")


@pytest.mark.usefixtures("token_file")
def test_a_song_that_the_platform_cuts_off_is_generated_once(
    out: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = AppDeployment(Served())
    deployment.first_answers = [TimeoutError(), ConnectionResetError(), Answer(429, "text/plain", b"no machine")]
    with vertex(deployment, certificate, monkeypatch):
        assert client.main([*SING, "--wait-seconds", "50", "--out", str(out)], FakeClock()) == 0
        assert len(deployment.served.client.get("/jobs").json["jobs"]) == 1  # type: ignore[index]
    songs = [asked for asked in deployment.asked if "genres" in asked]
    assert [song["wait_seconds"] for song in songs] == [50, 0, 0, 0]
    assert len({song["request_id"] for song in songs}) == 1
    assert out.read_bytes() == SONG


@pytest.mark.usefixtures("token_file")
def test_a_large_song_comes_piece_by_piece(out: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = LargeAudio(Served())
    with vertex(deployment, certificate, monkeypatch, SHARED):
        assert client.main([*SING, "--out", str(out)], FakeClock()) == 0
    assert out.read_bytes() == LargeAudio.audio
    assert [asked["offset"] for asked in deployment.asked if "offset" in asked] == [0, 1_000_000, 2_000_000]


@pytest.mark.usefixtures("token_file")
@pytest.mark.parametrize(("status", "pieces"), [(200, 0), (403, 3), (503, 3)])
def test_a_signed_address_is_asked_once_before_the_pieces(
    status: int, pieces: int, out: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = LargeAudio(Served())
    with answering(Bucket(status)) as bucket, vertex(deployment, certificate, monkeypatch):
        deployment.url = bucket.url
        assert client.main([*SING, "--out", str(out)], FakeClock()) == 0
    assert out.read_bytes() == LargeAudio.audio
    assert bucket.asked == 1
    assert len([asked for asked in deployment.asked if "offset" in asked]) == pieces


@pytest.mark.usefixtures("token_file")
def test_a_signed_address_that_cannot_be_reached_is_not_waited_for(
    out: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = Served()
    job_id = served.one(seed=7)["job_id"]
    deployment = LargeAudio(served)
    deployment.url = f"http://127.0.0.1:{free_port()}/mix.mp3?signature=x"
    clock = FakeClock()
    with vertex(deployment, certificate, monkeypatch):
        assert client.main(["result", job_id, "--endpoint", NAME, "--out", str(out)], clock) == 0
    assert out.read_bytes() == LargeAudio.audio
    assert (clock.slept, "no answer" in capsys.readouterr().err) == ([], False)


def test_a_token_that_is_too_old_is_fetched_anew(
    out: Path, certificate: Path, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_file.write_text("old\nsecret\n")
    with vertex(AppDeployment(Served()), certificate, monkeypatch):
        assert client.main([*SING, "--out", str(out)], FakeClock()) == 0
    assert out.read_bytes() == SONG


def test_a_token_that_opens_nothing_is_code_5(
    certificate: Path, token_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token_file.write_text("wrong\n")
    with vertex(AppDeployment(Served()), certificate, monkeypatch):
        assert client.main(["models", "--endpoint", NAME], FakeClock()) == 5
    assert "denied\nhint: the account needs the role" in capsys.readouterr().err


def test_no_login_is_code_5(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/none")
    assert client.main(["models", "--endpoint", NAME], FakeClock()) == 5
    assert "gcloud auth login" in capsys.readouterr().err


@pytest.mark.usefixtures("token_file")
def test_the_servers_own_words_reach_through_google_s(
    out: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with vertex(AppDeployment(Served()), certificate, monkeypatch):
        assert client.main([*SING, "--segments", "0", "--out", str(out), "--json"], FakeClock()) == 4
    assert json.loads(capsys.readouterr().out)["error"]["field"] == "segments"


@pytest.mark.usefixtures("token_file")
def test_status_result_and_cancel_go_through_predict(
    out: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = Served()
    job_id = served.one(seed=7)["job_id"]
    short = ["--endpoint", "4211", "--project", "123456", "--region", "here"]
    with vertex(AppDeployment(served), certificate, monkeypatch):
        assert client.main(["status", job_id, *short], FakeClock()) == 0
        assert capsys.readouterr().out == f"job {job_id}: 100%, succeeded\n"
        assert client.main(["result", job_id, *short, "--out", str(out)], FakeClock()) == 0
        assert client.main(["cancel", job_id, *short], FakeClock()) == 0
        assert client.main(["status", "none", *short], FakeClock()) == 4
    assert out.read_bytes() == SONG


def posted(endpoint: Endpoint, certificate: Path, method: str) -> tuple[int, bytes]:
    """The status and the body of an answer to a POST of nothing, sent with the token."""
    context = ssl.create_default_context(cafile=str(certificate))
    connection = http.client.HTTPSConnection("127.0.0.1", endpoint.server_address[1], context=context, timeout=SECONDS)
    try:
        connection.request("POST", ENDPOINT_PATH + method, b"", {"Authorization": "Bearer secret"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.usefixtures("token_file")
def test_every_path_is_reached_by_post_where_the_endpoint_invokes(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(may_generate=False, aip_mode="PREDICTION")
    generated, cancelled = (served.one(seed=seed, wait_seconds=0)["job_id"] for seed in (7, 8))
    with vertex(AppDeployment(served, invoked=True), certificate, monkeypatch) as endpoint:

        def asked(path: str) -> Any:
            status, body = posted(endpoint, certificate, f"/invoke{path}")
            assert status == 200, body
            return json.loads(body)

        assert {job["job_id"] for job in asked("/jobs")["jobs"]} == {generated, cancelled}
        assert asked("/models/status")["model"] == "tiny"
        asked(f"/jobs/{cancelled}/cancel")
        assert asked(f"/jobs/{cancelled}")["status"] == "cancelled"
        served.manager.load().result(SECONDS)
        served.models.engine.release()
        served.wait_for(generated)
        assert asked(f"/jobs/{generated}")["status"] == "succeeded"
        assert posted(endpoint, certificate, f"/invoke/jobs/{generated}/audio/mix.mp3") == (200, SONG)
        refused = ["/invoke", "/invoke/", ":predict", ":rawPredict", "/invoke/nowhere", "/jobs"]
        assert {posted(endpoint, certificate, method)[0] for method in refused} == {404}


@pytest.mark.usefixtures("token_file")
@pytest.mark.parametrize("name", [[f"{NAME}/invoke"], ["4211/invoke", "--project", "123456", "--region", "here"]])
def test_the_command_line_generates_where_the_endpoint_invokes(
    name: list[str], out: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(aip_mode="PREDICTION")
    job_id = served.one(seed=7)["job_id"]
    with vertex(AppDeployment(served, invoked=True), certificate, monkeypatch):
        assert client.main([*SING, "--endpoint", *name, "--out", str(out)], FakeClock()) == 0
        assert out.read_bytes() == SONG
        assert client.main(["result", job_id, "--endpoint", *name, "--out", str(out), "--force"], FakeClock()) == 0
        assert client.main(["cancel", job_id, "--endpoint", *name], FakeClock()) == 0
        assert client.main(["models", "--endpoint", NAME], FakeClock()) == 4
    assert out.read_bytes() == SONG


def test_an_id_alone_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(["models", "--endpoint", "4211"], FakeClock()) == 2
    assert "--project and --region" in capsys.readouterr().err
