"""The stream of a song that the demo model has generated is its file."""

from __future__ import annotations

import numpy as np
import pytest

from inference.engine.pipeline import Pipeline
from inference.engine.scheduler import Scheduler
from inference.song import Song, SongPart
from serving.http.song_streams import SongStream
from serving.jobs import records
from serving.jobs.job import Job
from serving.jobs.service import Jobs
from tests.support.fakes import FakeModels
from tests.support.jobs import new_store
from tests.support.scheduling import ignore, run
from tests.support.songs import request
from tests.support.waveforms import decoded

pytestmark = pytest.mark.slow

ONE_STEP = 1.5 / 2**15  # of 16 bits: a stream's samples are rounded to 24 bits before


def test_a_stream_is_the_file_of_its_track(tiny_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.engine.pipeline.PIECE_FRAMES", 40)  # so that it has several parts
    wanted = request(tracks=("vocal", "mix"), segments=1, max_new_tokens=200)
    scheduler, parts = Scheduler(tiny_pipeline), list[SongPart]()
    scheduler.add("song", wanted, ignore, parts.append)
    song = run(scheduler)["song"].result
    assert isinstance(song, Song) and len(parts) == song.parts > 3
    store, job = new_store(), Job(wanted, "tiny")
    assert store.create(job)
    for part in parts:
        store.parts.write(job.id, job.claim, part)
    assert store.end(job, records.succeeded(song))
    jobs = Jobs(FakeModels().manager(), store, max_queue=1)
    heard = {}
    for track in wanted.tracks:
        stream = SongStream(jobs, jobs.get(job.id), track, "wav", lambda: False)
        heard[track] = decoded(b"".join(stream))
        stream.close()
    jobs.close()
    np.testing.assert_allclose(heard["vocal"], decoded(song.audio["vocal"]), rtol=0, atol=ONE_STEP)
    mix = decoded(song.audio["mix"])
    assert heard["mix"].shape == mix.shape
    assert np.corrcoef(heard["mix"], mix)[0, 1] > 0.9, "but for the gain of the low band"
