"""The parts that leave the engine while a song is generated are the song."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from inference.audio import encoding
from inference.engine.pipeline import Pipeline
from inference.engine.scheduler import Scheduler
from inference.song import TRACK_NAMES, Song, SongPart
from inference.vocabulary import VOCODER_RATE_HZ
from tests.support.scheduling import ignore, run
from tests.support.songs import request

pytestmark = pytest.mark.slow

SHORT_PIECE = 40  # frames: a song of two seconds has several parts


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.engine.pipeline.PIECE_FRAMES", SHORT_PIECE)


def samples(file: bytes) -> np.ndarray:
    return np.asarray(soundfile.read(io.BytesIO(file), dtype="int32")[0])


def generate(pipeline: Pipeline, **changes: object) -> tuple[Song, list[SongPart]]:
    engine, parts = Scheduler(pipeline), list[SongPart]()
    engine.add("song", request(format="flac", segments=1, **changes), ignore, parts.append)
    engine.listen("song")
    result = run(engine)["song"].result
    assert isinstance(result, Song)
    return result, parts


@pytest.mark.usefixtures("short_pieces")
def test_the_parts_of_a_stem_are_its_file_to_the_sample(tiny_pipeline: Pipeline) -> None:
    song, parts = generate(tiny_pipeline, tracks=("vocal", "instrumental"), max_new_tokens=200)
    assert [part.index for part in parts] == [0, 1, 2, 3] == list(range(song.parts))
    assert parts[-1].end_seconds == song.duration_seconds
    assert [part.sections[0].end_seconds for part in parts] == [part.end_seconds for part in parts]
    assert parts[-1].sections == song.segments
    for track, file in song.audio.items():
        streamed = np.concatenate([samples(part.audio[track]) for part in parts])
        np.testing.assert_array_equal(streamed, samples(file))


@pytest.mark.usefixtures("short_pieces")
def test_the_parts_of_the_mix_are_as_long_as_its_file_and_hold_what_was_asked_for(tiny_pipeline: Pipeline) -> None:
    song, parts = generate(tiny_pipeline, tracks=TRACK_NAMES, max_new_tokens=200)
    assert all(list(part.audio) == list(TRACK_NAMES) for part in parts)
    streamed = np.concatenate([samples(part.audio["mix"]) for part in parts]) / 2**31
    file = samples(song.audio["mix"]) / 2**31
    assert streamed.shape == file.shape == (2 * VOCODER_RATE_HZ,)
    assert np.corrcoef(streamed, file)[0, 1] > 0.9


@pytest.mark.usefixtures("short_pieces")
def test_a_part_that_cannot_be_encoded_ends_the_parts_and_not_the_song(
    tiny_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = encoding.encode, []

    def encode(*given: object) -> bytes:
        calls.append(given)
        if len(calls) == 2:
            raise ValueError("no room")
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding, "encode", encode)
    song, parts = generate(tiny_pipeline, max_new_tokens=200)
    assert [part.index for part in parts] == [0]
    assert song.audio["mix"] and song.parts == 4
