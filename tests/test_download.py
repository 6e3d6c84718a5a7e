"""Getting a model's files, from a small stand-in for the Hub, in a real process of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from inference import catalog
from inference.catalog import CODEC, STAGE_2, Model, ModelFiles
from inference.download import DownloadProcess, cache_folder, fetch
from inference.errors import DownloadError

STAGE_1 = "m-a-p/YuE-s1-7B-anneal-zh-cot"  # not pinned: its default branch is resolved
COMMIT = "ab" * 20
LANGUAGE_MODEL = {"config.json": b"{}", "tokenizer.model": b"pieces", "model.safetensors": b"w" * 5_000}
ZH_COT = catalog.find("zh-cot")


class Hub(ThreadingHTTPServer):
    """Answers what `huggingface_hub` asks. `refusals`: repository -> status and error code."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, dict[str, bytes]] = {
            STAGE_1: LANGUAGE_MODEL | {"README.md": b"not asked for"},
            STAGE_2.name: LANGUAGE_MODEL,
            CODEC.name: {name: name.encode() for name in catalog.CODEC_FILES},
        }
        self.refusals: dict[str, tuple[int, str]] = {}
        self.requests: list[str] = []
        self.released = threading.Event()  # unset: the weights' bytes are held back
        self.released.set()
        self.holding = threading.Event()  # set: somebody waits for them

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        path = self.path.split("?")[0].strip("/")
        repository = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if repository in self.server.refusals:
            status, code = self.server.refusals[repository]
            self.reply(status, b"", {"X-Error-Code": code} if code else {})
        elif repository not in self.server.files:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "/resolve/" in path:
            self.send_file(repository, *path.split("/resolve/")[1].split("/", 1))
        elif "/tree/" in path:
            files = self.server.files[repository].items()
            listing = [{"type": "file", "path": name, "size": len(body), "oid": etag(body)} for name, body in files]
            self.reply(200, json.dumps(listing).encode())
        else:
            self.reply(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": []}).encode())

    def send_file(self, repository: str, commit: str, name: str) -> None:
        body = self.server.files[repository][name]
        if self.command == "GET" and name.endswith(".safetensors"):
            if not self.server.released.is_set():
                self.server.holding.set()
            self.server.released.wait()
        self.reply(200, body, {"ETag": f'"{etag(body)}"', "X-Repo-Commit": commit})

    def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that the processes started by the test use, with an empty cache."""
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def refusal(model: Model, cache: Path, local: Path | None = None) -> str:
    with pytest.raises(DownloadError) as caught:
        DownloadProcess(model, cache, local).run()
    return str(caught.value)


class Progress:
    """Notes what is reported."""

    def __init__(self) -> None:
        self.events: list[dict[str, object]] = []

    def __call__(self, event: Mapping[str, object]) -> None:
        self.events.append(dict(event))

    def done_bytes(self, repository: str) -> list[object]:
        return [event["bytes_done"] for event in self.events if event["repository"] == repository]


# -- from the Hub


def test_three_repositories_are_fetched_as_they_are(hub: Hub, tmp_path: Path) -> None:
    files = DownloadProcess(ZH_COT, tmp_path).run()
    assert (files.model, files.revision) == ("zh-cot", COMMIT)
    assert {path.name: path.read_bytes() for path in files.stage1.iterdir()} == LANGUAGE_MODEL  # no README.md
    assert {path.name: path.read_bytes() for path in files.stage2.iterdir()} == LANGUAGE_MODEL
    assert all((files.codec / name).read_bytes() == name.encode() for name in catalog.CODEC_FILES)
    assert (files.stage2.name, files.codec.name) == (STAGE_2.revision, CODEC.revision)


def test_progress_in_bytes_ends_at_the_total(hub: Hub, tmp_path: Path) -> None:
    progress = Progress()
    DownloadProcess(ZH_COT, tmp_path).run(progress)
    for repository in (STAGE_1, STAGE_2.name):
        done = progress.done_bytes(repository)
        assert done[0] == 0 and done[-1] == sum(map(len, LANGUAGE_MODEL.values()))
        assert done == sorted(done)
    assert {event["bytes_total"] for event in progress.events if event["repository"] == STAGE_1} == {done[-1]}


def test_what_is_pinned_and_here_is_not_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    model = catalog.find("zh-cot", COMMIT)
    first = DownloadProcess(model, tmp_path).run()
    hub.requests.clear()
    assert DownloadProcess(model, tmp_path).run() == first
    assert [request for request in hub.requests if "m-a-p" in request] == []


def test_a_complete_cache_works_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = DownloadProcess(ZH_COT, tmp_path).run()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert DownloadProcess(ZH_COT, tmp_path).run() == first


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "GatedRepo", "is gated: accept its terms"),
        (404, "RepoNotFound", "does not exist, or is private"),
        (404, "RevisionNotFound", "has no such revision"),
        (500, "", "the Hub answered 500"),
    ],
)
def test_a_refusal_says_what_to_do(hub: Hub, tmp_path: Path, status: int, code: str, advice: str) -> None:
    hub.refusals[STAGE_1] = (status, code)
    message = refusal(ZH_COT, tmp_path)
    assert STAGE_1 in message and advice in message


def test_an_empty_cache_without_a_network_says_what_to_do(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refusal(ZH_COT, tmp_path)
    assert "HF_HUB_OFFLINE" in message and "YUE_WEIGHTS" in message


def test_a_hub_that_is_not_there_says_what_to_do(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "cannot be fetched" in refusal(ZH_COT, tmp_path)


def test_a_repository_of_something_else_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files[STAGE_1] = {"README.md": b"a data set"}
    assert "holds none of the files of a model" in refusal(ZH_COT, tmp_path)


def test_a_model_larger_than_the_disk_is_refused_before_it_is_fetched(hub: Hub, tmp_path: Path) -> None:
    class Endless(bytes):
        def __len__(self) -> int:
            return 10**18

    hub.files[STAGE_1] = LANGUAGE_MODEL | {"model.safetensors": Endless()}
    message = refusal(ZH_COT, tmp_path)
    assert "needs 1,000,000,000,000,000," in message and "are free" in message


# -- the process


def test_a_cancelled_download_ends_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.released.clear()
    process = DownloadProcess(ZH_COT, tmp_path)
    errors: list[DownloadError] = []

    def run() -> None:
        try:
            process.run()
        except DownloadError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert hub.holding.wait(60)  # in the middle of a file
    process.cancel()
    thread.join(60)
    assert [str(error) for error in errors] == ["the download was cancelled"]


def test_a_download_cancelled_before_it_began_does_not_begin(hub: Hub, tmp_path: Path) -> None:
    process = DownloadProcess(ZH_COT, tmp_path)
    process.cancel()
    with pytest.raises(DownloadError, match="cancelled"):
        process.run()
    assert hub.requests == []


def test_the_process_ends_when_its_parent_is_gone(hub: Hub, tmp_path: Path) -> None:
    hub.released.clear()
    command = [sys.executable, "-m", "inference.download", "--end-with-stdin", "--model", "zh-cot"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--cache", str(tmp_path)], stdin=pipe, stdout=pipe) as child:
        assert hub.holding.wait(60)
        assert child.stdin is not None
        child.stdin.close()  # what the system does for a parent that died
        assert child.wait(60) == 1


def run_module(*arguments: str) -> tuple[int, list[dict[str, object]]]:
    """Exit code, and every line of standard output as JSON."""
    command = [sys.executable, "-m", "inference.download", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_every_line_is_json_and_the_last_names_the_files(hub: Hub, tmp_path: Path) -> None:
    code, events = run_module("--model", "zh-cot", "--cache", str(tmp_path))
    assert code == 0
    assert {event["event"] for event in events[:-1]} == {"progress"}
    files = events[-1]["files"]
    assert isinstance(files, dict) and sorted(files) == ["codec", "model", "revision", "stage1", "stage2"]


def test_an_error_is_a_line_and_an_exit_code(hub: Hub, tmp_path: Path) -> None:
    code, events = run_module("--model", "nobody/nothing", "--cache", str(tmp_path))
    assert code == 1
    assert (events[-1]["event"], events[-1]["error"]) == ("error", "DownloadError")
    code, events = run_module("--model", "nonsense", "--cache", str(tmp_path))
    assert (code, events[-1]["error"]) == (1, "UnknownModel")


def test_importing_it_imports_neither_torch_nor_the_hub() -> None:
    program = "import sys, inference.download; sys.exit('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# -- without the Hub


def test_the_tiny_model_is_made_in_the_cache(tmp_path: Path) -> None:
    files = DownloadProcess(catalog.find("tiny"), tmp_path).run()
    assert files.model == "tiny" and files.stage1.is_relative_to(tmp_path)
    assert files == fetch(catalog.find("tiny"), tmp_path)


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(catalog.find("tiny"), tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    "folders",
    [("stage1", "stage2", "codec"), ("YuE-s1-7B-anneal-zh-cot", "YuE-s2-1B-general", "xcodec_mini_infer")],
)
def test_local_weights_are_used_where_they_lie(tmp_path: Path, folders: tuple[str, str, str]) -> None:
    stage1, stage2, codec = (tmp_path / name for name in folders)
    for folder in (stage1, stage2, codec):
        folder.mkdir()
    files = DownloadProcess(ZH_COT, tmp_path / "cache", local=tmp_path).run()
    assert files == ModelFiles("zh-cot", "local", stage1, stage2, codec)


def test_a_missing_local_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "stage1").mkdir()
    message = refusal(ZH_COT, tmp_path, local=tmp_path)
    assert "'YuE-s2-1B-general' or 'stage2'" in message


class TestCacheFolder:
    HOME: ClassVar = Path("/home/someone")

    @pytest.fixture(autouse=True)
    def home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(self.HOME))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def test_is_in_the_home_folder(self) -> None:
        assert cache_folder() == self.HOME / ".cache" / "yue-server"

    def test_follows_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert cache_folder() == Path("/somewhere/yue-server")

    def test_ignores_a_relative_path_as_the_standard_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "here")
        assert cache_folder() == self.HOME / ".cache" / "yue-server"
