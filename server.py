"""The HTTP routes: JSON in, songs out.

It knows nothing of how songs are made or models are loaded: `serving/jobs/service.py` and `model_manager.py` do.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from flask import Flask, Response, jsonify, request
from flask.typing import ResponseReturnValue

from inference import catalog, gpu
from inference.catalog import Model
from inference.process.engine_process import EngineSeries
from inference.song import MIME_TYPES, SongRequest
from inference.weights.download import DownloadProcess, cache_folder
from model_manager import ModelManager
from serving.http import accept, access, audio_files, events, openapi, request_models
from serving.http.job_query import read_query
from serving.http.json_body import read_json
from serving.http.open_views import OpenViews
from serving.http.predictions import Answers, Outcome, Pending
from serving.http.problems import RETRY_AFTER_SECONDS, Problem, no_wait_slot, problem_of
from serving.http.references import References, SharedReferences
from serving.http.request_models import Download, JobOperation, ModelsOperation
from serving.http.song_instances import SongInstance, read_song_instance
from serving.http.wait_slots import WaitSlots, is_gone
from serving.http.waiting import Waiting
from serving.jobs.job import Job
from serving.jobs.maintenance import Retention
from serving.jobs.service import Jobs
from serving.jobs.store import JobStore
from serving.models.states import ERROR, NOT_LOADED, READY, Fetch
from serving.observability import requests
from serving.settings import STARTUP, Settings, read_settings
from storage import Storage, StorageError, is_bucket

log = logging.getLogger(__name__)

SERVICES = "yue"  # where create_app leaves the Services in app.extensions
RETRY_LATER = {"Retry-After": str(RETRY_AFTER_SECONDS)}
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
STOPPABLE = "stoppable"  # where `serving/gunicorn/draining.py` looks for them


GUNICORN_HALT = 3  # the exit code of a worker that cannot work: gunicorn ends itself with it


def end_server(reason: str) -> NoReturn:
    """End this worker, and with it gunicorn: the platform sees the exit code, and the log why."""
    log.critical("the server ends: %s", reason)
    os._exit(GUNICORN_HALT)


def create_app(
    settings: Settings | None = None,
    manager: ModelManager | None = None,
    jobs: Jobs | None = None,
    give_up: Callable[[str], None] = end_server,
) -> Flask:
    """The server as a WSGI app. What is not passed in is made from the settings, and those from the environment.

    `give_up` is called where there is no place for jobs, and where a server on Vertex AI must be ready at startup and
    never can be: there a container that ends is noticed, one that stays unhealthy is paid for until the deployment
    times out.
    """
    settings = settings or read_settings()
    manager = manager or make_manager(settings)
    looks_after = jobs is None
    if jobs is None:
        try:
            jobs = make_jobs(settings, manager)
        except StorageError as error:
            give_up(f"YUE_DATA: {error}; allowed: a folder that can be written to, or a bucket's address")
            raise
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    app.url_map.merge_slashes = False  # it would answer with a page that redirects, and no problem
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions[SERVICES] = app.extensions[STOPPABLE] = services = Services(settings, manager, jobs, give_up)
    _add_routes(app, services)
    pages = openapi.install(app, settings.max_instances)
    requests.install(app, settings, manager, jobs, lambda: services.settings.max_waiters - services.wait_slots.free)
    opened = services.opened
    access.install(app, settings, {services.health, opened.livez, opened.readyz, opened.home, *pages})
    app.register_error_handler(Exception, _problem_response)
    if looks_after:
        jobs.start()  # only now, so that what its first round ends is counted
    if settings.loading == STARTUP:
        manager.start()
    return app


def close_app(app: Flask, seconds: float = 0.0) -> None:
    """End what the app has begun: its songs, which have so long to be done, its models, its threads."""
    app.extensions[SERVICES].close(seconds)


def make_jobs(settings: Settings, manager: ModelManager) -> Jobs:
    """The real ones, kept where the settings say. Raises StorageError."""
    retention = Retention(settings.keep_hours, settings.keep_bytes)
    return Jobs(manager, JobStore(Storage.at(settings.data)), settings.max_queue, retention)


def make_manager(settings: Settings) -> ModelManager:
    """The real one: downloads and the engine in processes of their own."""

    def fetch(model: Model, force: bool) -> Fetch:
        return DownloadProcess(model, cache_folder(), settings.weights, settings.device, force=force)

    start = EngineSeries(settings.engine_options).start
    return ModelManager(catalog.find(settings.model), fetch, start, has_gpu=not gpu.is_missing(settings.device))


View = Callable[..., ResponseReturnValue]
Wanted = SongInstance | JobOperation | ModelsOperation | Problem  # an instance, read


class Services:
    """What the routes work with, and the routes themselves."""

    def __init__(self, settings: Settings, manager: ModelManager, jobs: Jobs, give_up: Callable[[str], None]) -> None:
        self.settings, self.manager, self.jobs = settings, manager, jobs
        self._give_up = give_up
        self.wait_slots = WaitSlots(settings.max_waiters)
        self._waiting = Waiting(jobs, self.wait_slots)
        self.references = References(settings.reference_hosts, most_waiting=settings.max_waiters)
        self.opened = OpenViews(manager, jobs, settings.loading)
        self.answers = Answers(jobs, settings.max_response_bytes, is_bucket(settings.data))

    def drain(self) -> None:
        """Begin no song and load no models any more; what is sung is sung to its end, the rest is for other servers."""
        self.jobs.drain()
        self.manager.stop()

    @property
    def busy(self) -> bool:
        """Whether songs are sung."""
        return self.jobs.busy

    def close(self, seconds: float = 0.0) -> None:
        """End the songs, which have so long to be done, the models, the threads."""
        self.jobs.close(seconds)

    def health(self) -> ResponseReturnValue:
        """Whether requests may be sent here."""
        models = self.manager.status()
        if self.jobs.draining:
            return jsonify(status="draining", models=models), 503, RETRY_LATER
        last_error = models["last_error"]
        must_be_ready = self.settings.loading == STARTUP and self.settings.aip_mode
        if must_be_ready and models["status"] == ERROR and isinstance(last_error, dict) and last_error["permanent"]:
            self._give_up(last_error["detail"])
        if self.settings.loading == STARTUP and models["status"] in (NOT_LOADED, ERROR):
            self.manager.recover()
            models = self.manager.status()
        # A model that takes another's place is waited for by the songs; the server has shown that it can be ready.
        if self.settings.loading != STARTUP or models["status"] == READY or models.get("replaces"):
            return jsonify(status="healthy", models=models), 200
        failed = models["status"] in (NOT_LOADED, ERROR) or self.manager.crash_loop
        status = "unhealthy" if failed else "starting"
        return jsonify(status=status, models=models), 503

    def models_status(self) -> Response:
        """Where the models are."""
        return jsonify(self.manager.status())

    def download_models(self) -> tuple[Response, int]:
        """Get a model ready."""
        body, done = self._download(request_models.read(Download, read_json(empty={})), time.monotonic())
        return jsonify(body), 200 if done else 202

    def cancel_download(self) -> Response:
        """End what is being downloaded or loaded."""
        return jsonify(self._cancel_download())

    def predict(self) -> Response:
        """Sing each instance."""
        outcomes, as_audio, began = self._begun()
        self._waiting.for_songs(outcomes, began)
        if as_audio and isinstance(outcomes[0], Pending):
            return self.answers.audio(outcomes[0].job)
        return self.answers.predictions(outcomes)

    def _begun(self) -> tuple[list[Outcome], bool, float]:
        """Each instance, begun, whether the client wants audio, and since when it waits.

        The body, which may be megabytes, is let go of before that.
        """
        instances, parameters = request_models.read_body(read_json(), self.settings.max_instances)
        if len(instances) == 1:
            parameters = self._with_format(parameters)
        keys = request_models.read_keys(request.headers.get("Idempotency-Key"), len(instances))
        company = instances if keys[0] and len(instances) > 1 else None
        wanted = [self._read(instance, parameters, key, company) for instance, key in zip(instances, keys, strict=True)]
        as_audio = self._wants_audio(wanted)
        began = time.monotonic()
        references = SharedReferences(self.references, [each for each in wanted if isinstance(each, SongInstance)])
        begin = partial(self._begin, began=began, instances=len(wanted), references=references)
        outcomes = [begin(wanted[0])]
        if company and isinstance(outcomes[0], Problem) and outcomes[0].kind == "conflict":
            raise outcomes[0]  # the key stands for another request, so none of this one's songs is sung
        return [*outcomes, *map(begin, wanted[1:])], as_audio, began

    def list_jobs(self) -> Response:
        """All jobs, page by page: those that are not finished, then the others, each the newest first."""
        access.check_admin(self.settings)
        return jsonify(self.answers.job_list(self.jobs.page(read_query(request.args))))

    def show_job(self, job_id: str) -> Response:
        """One job."""
        return jsonify(self.answers.job_view(self.jobs.get(job_id)))

    def job_events(self, job_id: str) -> Response:
        """One job's way, as it happens."""
        job, last_id = self.jobs.get(job_id), request.headers.get("Last-Event-ID")
        if job.finished and last_id == events.end_id(job):
            return Response(status=204)  # which tells a browser not to come back
        if not self.wait_slots.take():
            raise no_wait_slot()
        told = events.stream(self.jobs, job, last_id, partial(is_gone, request.environ))
        response = Response(told, mimetype=events.EVENT_STREAM, headers=UNBUFFERED)
        response.call_on_close(self.wait_slots.give_back)
        return response

    def cancel_job(self, job_id: str) -> Response:
        """Cancel one job."""
        return jsonify(self.answers.job_view(self.jobs.cancel(job_id)))

    def delete_job(self, job_id: str) -> Response:
        """Forget one finished job; cancel one that is not finished."""
        return jsonify(self._delete(job_id))

    def job_audio(self, job_id: str, track: str, audio_format: str) -> Response:
        """One track of a finished song, or the range of it that was asked for."""
        return audio_files.named_track(self.jobs.get(job_id), track, audio_format)

    def _read(self, instance: object, parameters: dict[str, object], key: str | None, company: object) -> Wanted:
        try:
            if request_models.is_job_operation(instance):
                return request_models.read(JobOperation, instance)
            if request_models.is_models_operation(instance):
                return request_models.read(ModelsOperation, instance)
            return read_song_instance(instance, parameters, self.manager.model, key, company)
        except Exception as error:
            return problem_of(error)

    def _with_format(self, parameters: dict[str, object]) -> dict[str, object]:
        """With the format that the client accepts, for a song whose request names none."""
        best = accept.preferred(request.accept_mimetypes, list(MIME_TYPES))
        return {"format": best, **parameters} if best in MIME_TYPES and best != SongRequest.format else parameters

    def _wants_audio(self, wanted: list[Wanted]) -> bool:
        """Whether the client would rather have the song's bytes than JSON. Raises Problem where it can have neither."""
        formats: tuple[str, ...] = ()
        only = wanted[0]
        if len(wanted) == 1 and isinstance(only, SongInstance):
            formats = only.formats
        if len(wanted) == 1 and isinstance(only, JobOperation) and only.operation == "result" and not only.track:
            formats = (self.jobs.get(only.job_id).request.format,)
        if isinstance(only, Problem) and len(wanted) == 1:  # it is answered as a problem, whatever was accepted
            return False
        best = accept.preferred(request.accept_mimetypes, formats)
        if best is None:
            offered = accept.offered(formats)
            alone = "" if len(wanted) == 1 else " (audio for a request with one song)"
            detail = f"Accept: got {request.headers['Accept']}; allowed: {', '.join(offered)}{alone}"
            raise Problem(406, "not-acceptable", detail, {"allowed": offered})
        return best != accept.JSON_ANSWER

    def _begin(self, wanted: Wanted, began: float, instances: int, references: SharedReferences) -> Outcome:
        """Do what one of so many instances asks for, as far as it can be done without waiting for a song."""
        try:
            match wanted:
                case SongInstance():
                    return self._submit(wanted, instances, references)
                case JobOperation(operation="result"):
                    return Pending(self.jobs.get(wanted.job_id), 0, piece=wanted if wanted.track else None)
                case JobOperation(operation="status"):
                    return self.answers.job_view(self.jobs.get(wanted.job_id))
                case JobOperation(operation="cancel"):
                    return self.answers.job_view(self.jobs.cancel(wanted.job_id))
                case JobOperation(operation="delete"):
                    return self._delete(wanted.job_id)
                case ModelsOperation(operation=request_models.MODELS_STATUS):
                    return self.manager.status()
                case ModelsOperation(operation=request_models.CANCEL_DOWNLOAD):
                    return self._cancel_download()
                case ModelsOperation():
                    return self._download(wanted, began)[0]
                case Problem():
                    return wanted
        except Exception as error:
            return problem_of(error)
        raise AssertionError(f"no answer to {wanted!r}")

    def _submit(self, order: SongInstance, instances: int, references: SharedReferences) -> Pending:
        model = self.manager.model.name
        wait_seconds = self.settings.wait_seconds if order.wait_seconds is None else order.wait_seconds
        can_be_fetched = bool(order.request_id) or not wait_seconds
        warnings = order.warnings + self.answers.foresee(order.request, can_be_fetched, instances)
        job = Job(order.request, model, warnings, order.request_id, order.fingerprint, order.model)
        job.told_reference, job.deadline_seconds = order.told_reference, order.deadline_seconds
        if order.deadline_seconds is not None:
            job.deadline = time.monotonic() + order.deadline_seconds
        goes_on = bool(self.settings.aip_mode or order.request_id or order.wait_seconds is not None)
        return Pending(self.jobs.submit(job, references.completing(order)), wait_seconds, goes_on)

    def _delete(self, job_id: str) -> dict[str, object]:
        job, deleted = self.jobs.delete(job_id)
        return self.answers.job_view(job, deleted)

    def _download(self, wanted: Download, began: float) -> tuple[dict[str, object], bool]:
        """The answer to a download that was asked for at `began`, and whether the model is ready."""
        as_a_song = self._is_set_up(wanted)  # which would load it too
        if not as_a_song:
            access.check_admin(self.settings)
        at_once = self.settings.may_administer
        outcome = self.manager.load(wanted.model, wanted.revision, wanted.force, at_once)
        if wanted.wait and not outcome.done():
            self._waiting.for_models(outcome, began, self.settings.wait_seconds)
        if not outcome.done():
            message = "Models are being downloaded and loaded; /models/status tells how far they are"
            return {"status": "accepted", "message": message, "models": self.manager.status()}, False
        outcome.result()
        return {
            "status": "success",
            "message": "Models downloaded and loaded",
            "models": self.manager.status(),
        }, True

    def _is_set_up(self, wanted: Download) -> bool:
        """Whether a download makes no other model ready than the next song would."""
        model = self.manager.model
        if wanted.force or wanted.model not in (None, model.name):
            return False
        named = wanted.model or wanted.revision
        return not named or catalog.find(model.name, wanted.revision) == model

    def _cancel_download(self) -> dict[str, object]:
        access.check_admin(self.settings)
        model = self.manager.cancel()
        status = "cancelled" if model else "nothing_to_cancel"
        message = f"The download of {model.name} was cancelled" if model else "Nothing is being downloaded or loaded"
        return {"status": status, "message": message, "models": self.manager.status()}


def _add_routes(app: Flask, services: Services) -> None:
    """Each path and method once. Vertex AI names paths of its own, which may be ours already, or each other."""
    settings = services.settings
    either = ("GET", "POST")
    table: list[tuple[str | None, tuple[str, ...], View]] = [
        ("/predict", ("POST",), services.predict),
        (settings.predict_route, ("POST",), services.predict),
        ("/health", either, services.health),
        (settings.health_route, either, services.health),
        ("/livez", either, services.opened.livez),
        ("/readyz", either, services.opened.readyz),
        ("/models/status", either, services.models_status),
        ("/download-models", ("POST",), services.download_models),
        ("/download-models", ("DELETE",), services.cancel_download),
        ("/download-models/cancel", ("POST",), services.cancel_download),
        ("/jobs", either, services.list_jobs),
        ("/jobs/<job_id>", either, services.show_job),
        ("/jobs/<job_id>", ("DELETE",), services.delete_job),
        ("/jobs/<job_id>/cancel", ("POST",), services.cancel_job),
        ("/jobs/<job_id>/events", either, services.job_events),
        ("/jobs/<job_id>/audio/<track>.<audio_format>", either, services.job_audio),
        ("/", ("GET",), services.opened.home),
    ]
    views: dict[tuple[str, str], View] = {}
    for path, methods, view in table:
        for method in methods if path else ():
            views.setdefault((str(path), method), view)
    for (path, method), view in views.items():
        app.add_url_rule(path, f"{method} {path}", view, methods=[method])


def _problem_response(error: Exception) -> Response:
    problem = problem_of(error)
    place = str(problem.members.get("instance", ""))
    return problem.having(instance=request.path + place.removeprefix(request.path)).response()
