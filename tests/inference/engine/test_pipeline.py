"""A whole song, from words to a file that plays: nothing of it is lost, and the seed decides it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from inference.catalog import ModelFiles
from inference.engine.pipeline import Pipeline
from inference.engine.scheduler import Scheduler
from inference.errors import Cancelled, DeviceMissing, InvalidField
from inference.options import EngineOptions
from inference.song import STAGES, Progress, Reference
from inference.vocabulary import VOCODER_RATE_HZ
from tests.support.songs import hear, request, tone

pytestmark = pytest.mark.slow


def test_a_device_that_is_not_there_is_named_and_never_tried_again(tiny_files: ModelFiles) -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(DeviceMissing, match=f"YUE_DEVICE: got {missing}; allowed: auto or cpu") as caught:
        Pipeline.load(tiny_files, EngineOptions(missing, "float32"))
    assert caught.value.permanent


def test_three_sections_give_three_sections_of_audio_the_last_included(tiny_engine: Scheduler) -> None:
    song = tiny_engine.generate(request())
    assert [span.tag for span in song.segments] == ["verse", "chorus", "outro"]
    assert [(span.start_seconds, span.end_seconds) for span in song.segments] == [(0, 1), (1, 2), (2, 3)]
    heard = hear(song.audio["mix"])
    assert heard.rate_hz == song.sample_rate == VOCODER_RATE_HZ
    assert heard.waveform.shape == (3 * VOCODER_RATE_HZ, 1)
    assert song.duration_seconds == 3.0
    for second in np.split(heard.waveform, 3):
        assert np.abs(second).max() > 0.001


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny_engine: Scheduler) -> None:
    first, again, other = (tiny_engine.generate(request(seed=seed, segments=1)) for seed in (3, 3, 4))
    assert first.audio == again.audio
    assert first.audio != other.audio
    assert first.seed == 3


def test_only_the_sections_asked_for_are_generated(tiny_engine: Scheduler) -> None:
    song = tiny_engine.generate(request(segments=2))
    assert [span.tag for span in song.segments] == ["verse", "chorus"]
    assert hear(song.audio["mix"]).seconds == 2.0


def test_more_sections_than_there_are_is_all_of_them(tiny_engine: Scheduler) -> None:
    seen: list[Progress] = []
    song = tiny_engine.generate(request(lyrics="[verse]\nla", segments=9), seen.append)
    assert [span.tag for span in song.segments] == ["verse"]
    assert {progress.sections for progress in seen} == {1}


def test_every_track_asked_for_is_a_file_of_its_own(tiny_engine: Scheduler) -> None:
    song = tiny_engine.generate(request(tracks=("vocal", "mix", "instrumental"), segments=1))
    assert list(song.audio) == ["vocal", "mix", "instrumental"]
    waveforms = [hear(file).waveform for file in song.audio.values()]
    assert len({waveform.shape for waveform in waveforms}) == 1
    assert not np.array_equal(waveforms[0], waveforms[2])


@pytest.mark.parametrize("format", ["mp3", "wav", "flac", "ogg"])
def test_every_format_holds_the_whole_song(tiny_engine: Scheduler, format: str) -> None:
    song = tiny_engine.generate(request(format=format, segments=1))
    assert hear(song.audio["mix"]).seconds == 1.0


def test_a_reference_changes_the_song(tiny_engine: Scheduler) -> None:
    plain = tiny_engine.generate(request(seed=8, segments=1))
    one = tiny_engine.generate(request(seed=8, segments=1, reference=Reference(mix=tone(2.0))))
    two = Reference(vocal=tone(2.0), instrumental=tone(3.1, frequency_hz=90.0))
    both = tiny_engine.generate(request(seed=8, segments=1, reference=two))
    assert len({song.audio["mix"] for song in (plain, one, both)}) == 3


def test_progress_goes_through_every_stage_and_never_falls(tiny_engine: Scheduler) -> None:
    seen: list[Progress] = []
    song = tiny_engine.generate(request(), seen.append)
    stages = [progress.stage for progress in seen]
    assert list(dict.fromkeys(stages)) == list(STAGES) == list(song.timings)
    assert all(later.fraction >= earlier.fraction for earlier, later in pairwise(seen))
    assert {progress.section for progress in seen if progress.stage == "stage1"} >= {1, 2, 3}
    assert max(progress.rows for progress in seen) == 2
    assert max(progress.frames for progress in seen) == 2 * 150
    assert (seen[-1].fraction, seen[-1].seconds_left) == (1.0, 0.0)
    assert seen[-1].frames == 2 * 150


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_song_stops_where_its_observer_raises(tiny_engine: Scheduler, stage: str) -> None:
    seen: list[str] = []

    def cancel(progress: Progress) -> None:
        seen.append(progress.stage)
        if seen.count(stage) == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        tiny_engine.generate(request(), cancel)
    assert seen[-1] == stage


def test_warnings_of_the_lyrics_reach_the_song(tiny_engine: Scheduler) -> None:
    song = tiny_engine.generate(request(lyrics="[intro]\nla la\n[whistling]\nla\n", segments=1))
    (warning,) = song.warnings
    assert "intro" in warning


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lyrics": "no tag here"}, "lyrics"),
        ({"genres": "  "}, "genres"),
        ({"segments": 0}, "segments"),
        ({"reference": Reference(mix=b"not audio")}, "reference.audio"),
    ],
)
def test_what_cannot_be_generated_is_refused_by_name(
    tiny_engine: Scheduler, changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidField) as refusal:
        tiny_engine.generate(request(**changes))
    assert refusal.value.field == field
