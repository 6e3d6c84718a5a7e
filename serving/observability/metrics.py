"""The server's Prometheus metrics.

Gauges ask their objects for the value when they are scraped. A scrape waits for no long-held lock and reads no
storage. Every name begins with `yue_`. Every label has few values: route templates (never paths), states, stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inference.song import STAGES
from serving.jobs.job import FINISHED, SUCCEEDED, Job
from serving.jobs.queue import JobQueue
from serving.models.states import DOWNLOADING, ERROR, LOADING, NOT_LOADED, READY, Attempt, LoadedModel, ObservedModels

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OTHER = "other"  # the label of any unlisted value
_REQUEST_BUCKETS_S = (0.005, 0.025, 0.1, 0.5, 2.5, 10, 30, 60, 120, 300, 600, 1_200, 3_600)
_SONG_BUCKETS_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_200, 3_600)
_FACTOR_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 4, 8, 16, 32)
_RATE_BUCKETS = (1, 5, 10, 25, 50, 75, 100, 150, 200, 300, 500, 1_000)


class Metrics:
    """The metrics of one app, in their own registry."""

    def __init__(
        self, manager: ObservedModels, queue: JobQueue, slots_taken: Callable[[], int], max_slots: int
    ) -> None:
        disable_created_metrics()  # no creation time for each series
        self.registry = CollectorRegistry()
        self.requests = RequestMetrics.on(self.registry)
        self.songs = SongMetrics.on(self.registry)
        self.registry.register(_Models(manager))
        self.registry.register(_JobQueue(queue, slots_taken, max_slots))
        ProcessCollector(namespace="yue", registry=self.registry)
        queue.on_end = self.songs.note


@dataclass(frozen=True)
class RequestMetrics:
    """Counts and durations of requests."""

    count: Counter
    seconds: Histogram
    streams: Gauge

    @classmethod
    def on(cls, registry: CollectorRegistry) -> RequestMetrics:
        """Create the metrics in the registry."""
        route = ("route", "method")
        return cls(
            Counter("yue_http_requests", "Requests that were answered", (*route, "status_class"), registry=registry),
            Histogram(
                "yue_http_request_seconds",
                "From a request to the start of its answer",
                route,
                buckets=_REQUEST_BUCKETS_S,
                registry=registry,
            ),
            Gauge("yue_event_streams", "Event streams that are open", registry=registry),
        )

    def note(self, route: str, method: str, status: int, seconds: float) -> None:
        """Record an answered request; `route` is a template."""
        method = method if method in METHODS else OTHER
        self.count.labels(route, method, f"{status // 100}xx").inc()
        self.seconds.labels(route, method).observe(seconds)


@dataclass(frozen=True)
class SongMetrics:
    """Metrics of songs that have ended. A stage's time ends where the next one's begins."""

    ended: Counter
    waiting: Histogram
    stages: Histogram
    tokens: Counter
    audio: Counter
    token_rate: Histogram
    factor: Histogram

    @classmethod
    def on(cls, registry: CollectorRegistry) -> SongMetrics:
        """Create the metrics in the registry."""

        def histogram(name: str, about: str, buckets: Iterable[float], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(name, about, labels, buckets=tuple(buckets), registry=registry)

        songs = cls(
            Counter("yue_jobs_ended", "Jobs whose end was written here", ("state",), registry=registry),
            histogram("yue_job_waiting_seconds", "From a job's creation to its last start", _SONG_BUCKETS_S),
            histogram("yue_song_stage_seconds", "Stage durations of finished songs", _SONG_BUCKETS_S, ("stage",)),
            Counter("yue_stage1_tokens", "Stage 1 tokens of finished songs", registry=registry),
            Counter("yue_audio_seconds", "Audio of finished songs", registry=registry),
            histogram("yue_stage1_tokens_per_second", "Stage 1 tokens per second of a song", _RATE_BUCKETS),
            histogram("yue_real_time_factor", "Seconds of audio per second of generation", _FACTOR_BUCKETS),
        )
        for state in FINISHED:
            songs.ended.labels(state)
        for stage in STAGES:
            songs.stages.labels(stage)
        return songs

    def note(self, job: Job) -> None:
        """Record a job that has ended."""
        self.ended.labels(job.state).inc()
        if job.started_at:
            self.waiting.observe(max(0.0, (job.started_at - job.created_at).total_seconds()))
        if job.state == SUCCEEDED and job.song:
            self._note_song(job, job.song.timings, job.song.duration_seconds)

    def _note_song(self, job: Job, timings: dict[str, float], audio_s: float) -> None:
        for stage in STAGES:
            if stage in timings:
                self.stages.labels(stage).observe(timings[stage])
        self.audio.inc(audio_s)
        if generation_s := sum(timings.values()):
            self.factor.observe(audio_s / generation_s)
        tokens = job.progress.tokens if job.progress else 0
        self.tokens.inc(tokens)
        if tokens and timings.get("stage1"):
            self.token_rate.observe(tokens / timings["stage1"])


class _Models(Collector):
    """The state of the models."""

    def __init__(self, manager: ObservedModels) -> None:
        self._manager = manager

    def collect(self) -> Iterator[Metric]:
        state, loaded, attempt = self._manager.snapshot()
        states = GaugeMetricFamily("yue_models_state", "1 for the models' current state", labels=("state",))
        for each in (NOT_LOADED, DOWNLOADING, LOADING, READY, ERROR):
            states.add_metric((each,), each == state)
        yield states
        yield GaugeMetricFamily("yue_engine_ready", "1 if an engine is ready to generate songs", loaded is not None)
        yield from self._engine(loaded)
        yield from _download(attempt)
        counters = self._manager.counters
        yield CounterMetricFamily("yue_engine_starts", "Engines that became ready", counters.engine_starts)
        yield CounterMetricFamily("yue_engine_crashes", "Engines that ended unexpectedly", counters.engine_crashes)
        yield CounterMetricFamily("yue_models_failures", "Failed attempts to load a model", counters.failed_attempts)

    def _engine(self, loaded: LoadedModel | None) -> Iterator[Metric]:
        labels = ("model", "device", "dtype", "quantization")
        about = GaugeMetricFamily("yue_engine_info", "1, labelled with the model and its device", labels=labels)
        memory = GaugeMetricFamily("yue_gpu_memory_bytes", "GPU memory in use when the models were ready", labels=())
        if loaded:
            info = loaded.engine.info()
            about.add_metric((loaded.model.name, *(str(info.get(name, "")) for name in labels[1:])), 1)
            memory_bytes = info.get("memory_bytes")
            if isinstance(memory_bytes, int):
                memory.add_metric((), memory_bytes)
        yield about
        yield memory


class _JobQueue(Collector):
    """Waiting and running jobs."""

    def __init__(self, queue: JobQueue, slots_taken: Callable[[], int], max_slots: int) -> None:
        self._queue, self._slots_taken, self._max_slots = queue, slots_taken, max_slots

    def collect(self) -> Iterator[Metric]:
        counts = self._queue.counts()
        yield GaugeMetricFamily("yue_jobs_queued", "Jobs that wait", counts.queued)
        yield GaugeMetricFamily("yue_jobs_running", "Jobs that run", counts.running)
        yield GaugeMetricFamily("yue_jobs_unsaved", "Finished jobs whose result cannot be stored yet", counts.unsaved)
        yield GaugeMetricFamily("yue_seats_taken", "Requests that wait for a song or for models", self._slots_taken())
        yield GaugeMetricFamily("yue_seats", "Requests that may wait at once", self._max_slots)


def _download(attempt: Attempt | None) -> Iterator[Metric]:
    progress = attempt.download if attempt else {}
    for ours, theirs, what in (("done", "bytes_done", "are complete"), ("wanted", "bytes_total", "are needed")):
        value = progress.get(theirs)
        known = float(value) if isinstance(value, int | float) else 0.0
        yield GaugeMetricFamily(f"yue_download_{ours}_bytes", f"Bytes of the current download that {what}", known)
