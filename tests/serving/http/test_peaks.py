"""The shape of a song: what there is of it while it is generated, and all of it afterwards."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import soundfile

from tests.serving.http.test_streams import begun, finish, send
from tests.support.fakes import Served, problem


def peaks(served: Served, job_id: str, track: str = "mix") -> Any:
    response = served.client.get(f"/jobs/{job_id}/peaks/{track}.json")
    assert response.status_code == 200
    return response.get_json()


def test_peaks_grow_with_the_song_and_are_complete_at_its_end(held: Served) -> None:
    job_id = begun(held)
    assert peaks(held, job_id) == {
        "track": "mix",
        "seconds": 0.0,
        "per_second": 20,
        "complete": False,
        "peaks": [],
        "sections": [],
    }
    for n_parts in (1, 2):
        send(held, job_id)
        told = peaks(held, job_id)
        assert (told["seconds"], len(told["peaks"]), told["complete"]) == (n_parts, 20 * n_parts, False)
        assert told["sections"] == [{"tag": "verse", "start_seconds": 0.0, "end_seconds": n_parts}]
    finish(held, job_id)
    told = peaks(held, job_id)
    assert (told["seconds"], len(told["peaks"]), told["complete"]) == (2.0, 40, True)
    assert told["sections"] == [{"tag": "verse", "start_seconds": 0.0, "end_seconds": 1.5}]
    assert all(abs(peak - 0.5) < 0.01 for peak in told["peaks"]), "the tones of the fake engine"


def test_a_song_without_parts_has_the_peaks_of_its_file(held: Served) -> None:
    loud = np.concatenate([np.full(22_050, 0.25), np.full(22_051, -0.75)])
    file = io.BytesIO()
    soundfile.write(file, loud, 44_100, format="WAV")
    held.models.engine.audio = file.getvalue()
    job_id = begun(held, format="wav")
    finish(held, job_id)
    told = peaks(held, job_id)
    assert told["peaks"] == [0.25] * 10 + [0.75] * 11
    assert told["complete"] and told["seconds"] == 1.0


def test_a_file_that_cannot_be_read_is_a_problem(held: Served) -> None:
    job_id = begun(held)
    finish(held, job_id)  # the fake engine's files are no audio
    assert "cannot be read" in problem(held.client.get(f"/jobs/{job_id}/peaks/mix.json"), 503)["detail"]


def test_tracks_that_are_not_there_are_named(held: Served) -> None:
    job_id = begun(held)
    assert problem(held.client.get(f"/jobs/{job_id}/peaks/vocal.json"), 404)["allowed"] == ["mix"]


def test_a_cancelled_song_has_no_peaks(held: Served) -> None:
    job_id = begun(held, 1)
    held.client.post(f"/jobs/{job_id}/cancel")
    held.wait_for(job_id)
    assert "ended as cancelled" in problem(held.client.get(f"/jobs/{job_id}/peaks/mix.json"), 404)["detail"]
