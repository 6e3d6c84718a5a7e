"""How far a song is never falls, and how long it still takes never rises, whatever its sections and stages turn out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest

from inference.engine.progress import MEASURED_S, ProgressTracker, TailRatio, counted_down, expected_tokens, tokens_left
from inference.song import Progress
from tests.support.fakes import FakeClock
from yue_client.progress import job_words, models_words

BUDGET = 3_000
TOKENS_A_STEP = 16
FIRST_PIECE = 600  # tokens: stage 1 pauses there until stage 2 has filled them in


@dataclass
class Run:
    """A song as an engine makes it, by a clock of its own: sections of these tokens, so many tokens a second.

    `rest` is how long everything behind stage 1 takes for each second of it, `piece` how much of that the first piece
    takes, `slower_from` the share of stage 1 from which on other songs run beside it.
    """

    sections: Sequence[int]
    rate: float = 100.0
    rest: float = 0.2
    piece: float = 0.2
    learned: float | None = None  # what earlier songs took
    words: float = 8.0  # expected seconds of each section's words
    slower_from: float = 2.0
    waits: float = 0.0  # seconds for a place

    def shown(self) -> list[tuple[float, Progress]]:
        """What was shown, each with its time."""
        clock, shown = FakeClock(), []
        lengths = [expected_tokens(self.words, BUDGET)] * len(self.sections)
        share = TailRatio(self.rest if self.learned is None else self.learned)
        progress = ProgressTracker(lengths, BUDGET, lambda progress: shown.append((clock(), progress)), share, clock)
        progress.enter("prompt")
        clock.advance(0.5)
        progress.enter("stage1")
        for _ in range(int(self.waits)):
            clock.advance(1)
            progress.note_stage1(1, 0)
        self._sing(progress, clock)
        progress.enter("stage2")
        rest_s = self.rest * sum(self.sections) / self.rate
        self._fill_in(progress, clock, rest_s * 0.9 * (1 - self._first), self._first)
        progress.enter("decode")
        clock.advance(rest_s * 0.1)
        progress.enter("encode")
        progress.finish()
        return shown

    @property
    def _first(self) -> float:
        return FIRST_PIECE / sum(self.sections) * self.piece if sum(self.sections) > FIRST_PIECE else 0.0

    def _sing(self, progress: ProgressTracker, clock: FakeClock) -> None:
        total, generated, paused = sum(self.sections), 0, False
        for number, section in enumerate(self.sections, start=1):
            for inside in range(TOKENS_A_STEP, section + TOKENS_A_STEP, TOKENS_A_STEP):
                tokens = generated + min(inside, section)
                clock.advance(TOKENS_A_STEP / self.rate * (2 if tokens > self.slower_from * total else 1))
                progress.note_stage1(number, tokens)
                progress.note_stage2(0, 0, 0)
                if tokens >= FIRST_PIECE and not paused:
                    paused = True
                    for step in range(1, 11):
                        clock.advance(self.rest * total / self.rate * self._first / 10)
                        progress.note_stage1(number, tokens)
                        progress.note_stage2(
                            0, step, step / 10 * FIRST_PIECE / max(progress.expected_tokens, FIRST_PIECE)
                        )
            generated += section

    def _fill_in(self, progress: ProgressTracker, clock: FakeClock, seconds: float, first: float) -> None:
        frames = sum(self.sections)
        done = FIRST_PIECE if frames > FIRST_PIECE else 0
        for step in range(41):
            progress.note_stage2(2, done + step, (done + (frames - done) * step / 40) / frames)
            clock.advance(seconds / 40)


LIFE = [
    Run([2_400, 2_100, 2_600, 1_900, 2_500]),
    Run([3_000] * 6),
    Run([700, 650, 800, 600]),
    Run([900, 3_000, 700, 3_000], words=4),
    Run([3_000, 400, 3_000], words=25),
    Run([1_500], rest=0.1),
    Run([100], rate=20, rest=1.4),
    Run([2_000] * 4, rate=54, rest=1.4, piece=1.0),
    Run([2_000] * 4, rest=0.05, learned=1.4),
    Run([2_000] * 4, rest=1.4, learned=0.15, piece=1.0),
    Run([2_500] * 5, slower_from=0.4),
    Run([2_500] * 5, waits=60),
    Run([2_000] * 30, words=2),
]


@pytest.mark.parametrize("run", LIFE, ids=range(len(LIFE)))
def test_a_countdown_falls_and_the_bar_moves(run: Run) -> None:
    check(run.shown())


@pytest.mark.parametrize("seed", range(100))
def test_in_random_songs_the_countdown_never_rises(seed: int) -> None:
    chance = random.Random(seed)
    sections = [chance.randrange(100, BUDGET + 1) for _ in range(chance.randint(1, 12))]
    rest, piece = 10 ** chance.uniform(-1.5, 0.5), chance.choice([0.2, 1.0])
    run = Run(sections, 10 ** chance.uniform(0.5, 2.5), rest, piece, 10 ** chance.uniform(-1.5, 0.5))
    run.words, run.slower_from = chance.uniform(0, 40), chance.choice([0.3, 0.7, 2.0])
    check(run.shown())


def check(shown: list[tuple[float, Progress]]) -> None:
    end_s = shown[-1][0]
    fractions = [progress.fraction for _, progress in shown]
    assert all(later >= earlier for earlier, later in pairwise(fractions)) and fractions[-1] == 1
    assert all(fraction < 1 for fraction in fractions[:-1])
    told = [(now, progress.seconds_left) for now, progress in shown if progress.seconds_left is not None]
    left = [seconds for _, seconds in told]
    assert left[-1] == 0 and all(later <= earlier for earlier, later in pairwise(left))
    first_told = next(iter(told))[0]
    assert first_told >= min(end_s, MEASURED_S)
    assert all(seconds > 0 for now, seconds in told if now < end_s - 2)


@pytest.mark.parametrize(
    ("run", "within"),
    [(LIFE[0], 0.35), (LIFE[1], 0.35), (LIFE[7], 0.35), (LIFE[10], 0.6), (LIFE[11], 0.35)],
)
def test_what_is_told_is_near_what_it_takes(run: Run, within: float) -> None:
    """From a third of the song to the end of stage 1, with what earlier songs have shown."""
    shown = run.shown()
    end_s = shown[-1][0]
    for now, progress in shown:
        if run.waits + (end_s - run.waits) / 3 < now and progress.stage == "stage1":
            assert progress.seconds_left == pytest.approx(end_s - now, rel=within, abs=3)


def test_a_still_bar_beside_a_rising_countdown_is_not_shown() -> None:
    """Sections that end long before their budget: the bar moves on, and does not jump at their ends."""
    shown = Run([900, 900, 900, 900]).shown()
    steps = [later.fraction - earlier.fraction for (_, earlier), (_, later) in pairwise(shown)]
    assert max(steps[:-1]) < 0.12
    assert not [window for window in windows(shown, 5.0) if window[-1].fraction == window[0].fraction]


def windows(shown: list[tuple[float, Progress]], seconds: float) -> list[list[Progress]]:
    """What was shown in each stretch of so many seconds, while the song was generated."""
    generated = [(now, progress) for now, progress in shown if progress.stage == "stage1" and progress.tokens]
    return [
        inside
        for begin, _ in generated
        if begin + seconds <= generated[-1][0]
        and len(inside := [progress for now, progress in generated if begin <= now <= begin + seconds]) > 1
    ]


def test_sections_are_expected_as_their_words_and_the_sections_before_them_tell() -> None:
    assert expected_tokens(0, BUDGET) == 1_500 and expected_tokens(10, BUDGET) == 2_500
    assert expected_tokens(100, BUDGET) == BUDGET and expected_tokens(10, 100) == 100
    lengths = [2_000.0, 2_000.0, 2_000.0]
    assert tokens_left(lengths, 1, 0, 0, BUDGET) == 6_000
    assert tokens_left(lengths, 1, 0, 500, BUDGET) == 5_500
    assert tokens_left(lengths, 2, 1_000, 0, BUDGET) == 3_000  # shorter than expected, so others will be
    assert tokens_left(lengths, 2, 3_000, 0, BUDGET) == 5_000
    assert tokens_left(lengths, 3, 4_000, 2_500, BUDGET) == 100  # it overruns
    assert tokens_left(lengths, 3, 4_000, BUDGET, BUDGET) == 0


def test_a_countdown_follows_a_smaller_estimate_at_once_and_a_larger_one_slowly() -> None:
    assert counted_down(None, 0, 50) == 50
    assert counted_down(50, 1, 30) == 30
    assert counted_down(50, 1, 49) == pytest.approx(49)
    assert 49 < counted_down(50, 1, 99) < 50
    left, estimate = 50.0, 100.0
    while estimate > 0:
        estimate -= 1
        left = counted_down(left, 1, estimate)
        assert 0 <= left <= max(estimate, 0) or left < 50
    assert left == 0


def test_later_songs_know_how_long_the_rest_takes() -> None:
    share = TailRatio(1.4)
    for _ in range(5):
        share.note({"stage1": 100.0, "stage2": 10.0, "decode": 4.0, "encode": 1.0})
    assert share.value == pytest.approx(0.15, abs=0.05)
    share.note({})
    assert share.value == pytest.approx(0.15, abs=0.05)
    first, later = (Run([2_000] * 4, rest=0.15, learned=learned).shown()[100][1].fraction for learned in (1.4, 0.15))
    assert later > first


def test_the_command_line_does_not_say_that_the_demo_model_is_downloaded() -> None:
    models = {"status": "downloading", "model": "tiny", "download": {"bytes_done": 1, "bytes_total": 2}}
    assert models_words(models)[0] == "making the demo model 50%"
    assert models_words({**models, "model": "en-cot"})[0] == "downloading 50%"


def test_the_command_line_counts_minutes_where_there_are_many_seconds() -> None:
    def words(seconds_left: float | None) -> str:
        progress = {"stage": "stage1", "section": 1, "sections": 2, "fraction": 0.5, "seconds_left": seconds_left}
        return job_words({"status": "running", "progress": progress}, {})[0]

    assert words(None) == "generating section 1 of 2"
    assert words(99.2).endswith(", 99 s left") and words(290).endswith(", 5 min left")
