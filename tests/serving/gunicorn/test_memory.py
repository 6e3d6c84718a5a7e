"""What a burst of reference audio leaves in the memory of the real server's HTTP process."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.fakes import INSTANCE
from tests.support.real_server import RealServer, command_line, descendants

pytestmark = pytest.mark.slow

AT_ONCE = 16
SECONDS, RATE_HZ = 120, 192_000  # the most that a reference may have
LEFT_BYTES = 100_000_000


@pytest.fixture(scope="module")
def packed() -> str:
    """Few bytes that unpack to a hundred million, as base64."""
    file = io.BytesIO()
    second = np.sign(np.sin(np.arange(RATE_HZ) * 0.01)).astype(np.float32) / 2
    with soundfile.SoundFile(file, "w", samplerate=RATE_HZ, channels=1, format="FLAC") as flac:
        for _ in range(SECONDS):
            flac.write(second)
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def server() -> Iterator[RealServer]:
    with RealServer({}, "tests.support.light_engine:light_app()") as server:
        server.wait_until_answered()
        assert server.generate(**INSTANCE)[0] == 200
        yield server


def resident_bytes(server: RealServer) -> int:
    """Of gunicorn's worker."""
    (worker,) = [pid for pid in descendants(server.process.pid) if "gunicorn" in command_line(pid)]
    (line,) = [line for line in Path(f"/proc/{worker}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1_024


def test_a_burst_of_reference_audio_leaves_little_memory_behind(server: RealServer, packed: str) -> None:
    before = resident_bytes(server)
    reference = {"audio": packed, "end_seconds": SECONDS}

    def ask(_: int) -> int:
        return server.generate(**INSTANCE, reference=reference, wait_seconds=0)[0]

    with ThreadPoolExecutor(AT_ONCE) as clients:
        assert set(clients.map(ask, range(AT_ONCE))) == {200}
    body = {"instances": [{**INSTANCE, "wait_seconds": 0}] * 8, "parameters": {"reference": reference}}
    status, answer = server.ask("/predict", body)
    assert status == 200 and all("job_id" in song for song in answer["predictions"])
    assert resident_bytes(server) - before < LEFT_BYTES
