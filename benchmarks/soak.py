"""Runs many songs on two servers with one folder, kills the servers all the while, and counts the ends of the songs.

    python -m benchmarks.soak --minutes 10 --songs 200 --seed 1

Of the servers' work it knows only the names of the files that they leave behind. Clients disconnect, ask again at the
other server, and cancel. Any broken promise is a violation, and the exit code is 1. For the last quarter of the songs
one server is spared: its memory must not grow. With a seed the clients and the killer draw the same numbers again;
their order depends on the machine.
"""

from __future__ import annotations

import argparse
import base64
import os
import queue
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.soak_audit import audit_folder, audit_places, audit_process
from benchmarks.soak_clients import ASK_SECONDS, WAIT_SECONDS, Client, Found, Json, ServerSlot
from tests.support.light_engine import audio_of
from tests.support.real_server import descendants, until

LIGHT_APP = "tests.support.light_engine:light_app()"
CLIENTS = 6
ENDED = ("succeeded", "failed", "cancelled", "interrupted")
SPARED_SHARE = 4  # of so many songs, the last one runs while a server is spared
MEMORY_FACTOR = 1.1  # of that server's memory in the end, over that in the beginning


class Killer(threading.Thread):
    """Ends servers in every way, one after the other, and starts them again, but for those that are spared."""

    def __init__(self, slots: Sequence[ServerSlot], found: Found, seed: int, pause: tuple[float, float]) -> None:
        super().__init__(name="killer")
        self._slots, self._found, self._pause = list(slots), found, pause
        self._busy = threading.Lock()
        self._draw = random.Random(f"{seed}-killer")
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(self._draw.uniform(*self._pause)):
            with self._busy:
                slot = self._draw.choice(self._slots)
                way = self._draw.choice((self.kill, self.kill_worker, self.stop, self.stop, self.kill_engine))
                try:
                    way(slot)
                    self._found.count(f"kills: {way.__name__}")
                except Exception as error:
                    self._found.violation(f"{way.__name__}: {error!r}\n{slot.server.log()[-2_000:]}")
                    return

    def spare(self, slot: ServerSlot) -> None:
        """Leave that server running from now on."""
        with self._busy:
            self._slots.remove(slot)

    def finish(self) -> None:
        self._done.set()
        self.join()

    def kill(self, slot: ServerSlot) -> None:
        slot.server.kill()
        slot.leave()
        slot.start()

    def kill_worker(self, slot: ServerSlot) -> None:
        _signal(slot.worker, signal.SIGKILL)
        slot.server.wait_until_answered()

    def kill_engine(self, slot: ServerSlot) -> None:
        for pid in slot.engines:
            _signal(pid, signal.SIGKILL)

    def stop(self, slot: ServerSlot) -> None:
        left = descendants(slot.server.process.pid)
        code = slot.server.end()
        if code != 0:
            self._found.violation(f"SIGTERM ended the server with code {code}")
        if any(Path(f"/proc/{pid}").exists() for pid in left):
            until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left), ASK_SECONDS)
        slot.leave()
        slot.start()


def soak(folder: Path, songs: int, seconds: float, seed: int, tiny: bool = False) -> Found:
    """Run so many songs, requested over that time; return what was found."""
    found = Found()
    data = folder / "data"
    settings = {"YUE_DATA": str(data), "XDG_CACHE_HOME": str(folder), "YUE_WAIT_SECONDS": "5", "YUE_DEVICE": "cpu"}
    app = None if tiny else LIGHT_APP
    temporary = folder / "tmp"
    temporary.mkdir()
    slots = [
        ServerSlot(name, {**settings, "TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch")}, app)
        for name in ("one", "other")
    ]
    try:
        began = time.monotonic()
        spared_from = songs - songs // SPARED_SHARE
        with _troubled(slots, found, seed, (8.0, 20.0) if tiny else (0.5, 2.5)) as killer:
            _send(slots, found, range(spared_from), seconds / songs, seed)
            killer.spare(slots[0])
            with weighed(slots[0], found):
                _send(slots, found, range(spared_from, songs), seconds / songs, seed)
        print(f"  all songs were sent after {time.monotonic() - began:.0f} s", flush=True)
        _judge(slots, found, data, songs, seed, tiny)
    finally:
        for slot in slots:
            if slot.server.process.poll() is None and slot.server.end() != 0:
                found.violation("a server did not end well")
            slot.leave()
    _judge_leavings(slots, found, temporary)
    return found


@contextmanager
def _troubled(slots: Sequence[ServerSlot], found: Found, seed: int, pause: tuple[float, float]) -> Iterator[Killer]:
    killer = Killer(slots, found, seed, pause)
    killer.start()
    try:
        yield killer
    finally:
        killer.finish()


@contextmanager
def weighed(slot: ServerSlot, found: Found) -> Iterator[None]:
    """Until the end of `with` the server must live, and its memory must not grow."""
    worker = slot.worker
    begin_bytes = resident_bytes(worker)
    yield
    end_bytes = resident_bytes(worker)
    if not end_bytes or slot.worker != worker:
        found.violation("the server that was spared has ended by itself")
    found.counts["MB of the spared server, in the beginning"] = round(begin_bytes / 1e6)
    found.counts["MB of the spared server, in the end"] = round(end_bytes / 1e6)
    if end_bytes > MEMORY_FACTOR * begin_bytes:
        found.violation(f"the spared server's memory grew from {begin_bytes / 1e6:.0f} to {end_bytes / 1e6:.0f} MB")


def _send(slots: Sequence[ServerSlot], found: Found, songs: Iterable[int], pause_s: float, seed: int) -> None:
    """Request the songs, one in each pause, by clients that each follow theirs."""
    numbers: queue.Queue[int | None] = queue.Queue()
    client = Client(slots, found, seed)
    threads = [threading.Thread(target=client.take_all, args=(numbers,)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for number in songs:
        numbers.put(number)
        time.sleep(pause_s)
    for _ in threads:
        numbers.put(None)
    for thread in threads:
        thread.join()


def _judge(slots: Sequence[ServerSlot], found: Found, data: Path, songs: int, seed: int, tiny: bool) -> None:
    """Read every song from both servers, and check what is left."""
    client = Client(slots, found, seed)
    acknowledged = set(found.jobs)
    states: dict[str, str] = {}
    for number in range(songs):
        try:
            state = _same_at_both(client, slots, number, tiny)
        except Exception as error:
            found.violation(f"song {number}: {error!r}")
            continue
        states[found.jobs[number]] = state
        found.count(f"ended {state}")
    found.counts["accepted under the servers' deaths"] = len(acknowledged)
    if len(set(found.jobs.values())) != len(found.jobs):
        found.violation("two keys have the same job")
    found.violations += audit_folder(data, states, servers=len(slots))
    for slot in slots:
        found.violations += audit_places(slot.server)
        found.violations += audit_process(slot.server, slot.worker)


def _same_at_both(client: Client, slots: Sequence[ServerSlot], number: int, tiny: bool) -> str:
    """The state in which the song ended. Both servers must return the same, with the same audio."""

    def ended() -> Json | None:
        known = client.submit(number, slots[0], WAIT_SECONDS)
        job = slots[0].server.ask(f"/jobs/{known['job_id']}")[1]
        return job if job["status"] in ENDED else None

    job: Json = until(ended)
    job_id = job["job_id"]
    other = slots[1].server.ask(f"/jobs/{job_id}")[1]
    assert other == job, f"one server says {job}, the other {other}"
    assert client.submit(number, slots[1], 0)["job_id"] == job_id
    answers = [slot.server.generate(job_id=job_id, operation="result") for slot in slots]
    assert answers[0][0] == answers[1][0], f"one server says {answers[0]}, the other {answers[1]}"
    if job["status"] == "succeeded":
        one, two = (base64.b64decode(answer["audio"]) for _, answer in answers)
        assert one == two and one, "the servers have different audio"
        assert tiny or one == audio_of(number), "it is another song"
    else:
        assert job["error"]["detail"], "no reason is given"
    return str(job["status"])


def _judge_leavings(slots: Sequence[ServerSlot], found: Found, temporary: Path) -> None:
    """Check that nothing is left when all servers have ended, and no unexpected error in their logs."""
    left = sorted(path.name for path in temporary.iterdir())
    if left:
        found.violation(f"temporary files are left: {left}")
    for slot in slots:
        for log in slot.logs:
            for line in log.splitlines():
                if "unforeseen error" in line or "Exception in thread" in line or "AssertionError" in line:
                    found.violation(f"server {slot.name} logged: {line}")


def resident_bytes(pid: int) -> int:
    """The resident memory of a process; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        if pid:
            os.kill(pid, number)
    except ProcessLookupError:
        pass


def report(found: Found) -> str:
    """All that was counted, and what is wrong."""
    counts = [f"{found.counts[what]:6}  {what}" for what in sorted(found.counts)]
    return "\n".join(counts + ([f"VIOLATION: {what}" for what in found.violations] or ["no violation"]))


def main() -> int:
    """Run it, print what was counted, and fail where a promise was not kept."""
    parser = argparse.ArgumentParser(description="Songs on servers that are killed all the while.")
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long (default: 10)")
    parser.add_argument("--songs", type=int, default=200, help="how many songs (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="what clients and killer draw (default: 1)")
    parser.add_argument("--tiny", action="store_true", help="use the real engine and the tiny model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(Path(folder), given.songs, 60 * given.minutes, given.seed, given.tiny)
    print(report(found))
    return 1 if found.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
