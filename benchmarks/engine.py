"""Times the whole engine with 1, 2, 4, 8 and 16 songs together, beside the published way, in one run.

    python -m benchmarks.engine                 # two CPU cores, minutes
    python -m benchmarks.engine --size full     # the real networks' sizes; needs a GPU
    python -m benchmarks.engine --songs 1,8     # only these numbers of songs

The server is not part of it. Weights are fabricated on the device, nothing is downloaded; the work is the same for any
weights. On a GPU the steps are compiled and recorded before the clock starts, in minutes where that has never been
done on the machine. The published way runs the same networks for a few tokens and frames; its time is scaled.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch

from benchmarks import published
from benchmarks.sizes import SCALED_TO_SECONDS, SIZES, Size
from inference.engine.cuda_graphs import GraphRecorder
from inference.engine.pipeline import DECODERS, Pipeline, resolve, set_up
from inference.engine.scheduler import Limits, Scheduler, measured_limits
from inference.errors import YueError
from inference.models import vocoder
from inference.models.codec import Codec
from inference.models.llama import BLOCK_TOKENS, Llama
from inference.models.llama_network import LlamaConfig, LlamaNetwork
from inference.song import Progress, Song, SongPart, SongRequest
from inference.text.tokenizer import Tokenizer
from inference.tiny import checkpoints, tokenizer
from inference.vocabulary import CODEBOOK_SIZE, EOA_ID, FRAME_RATE_HZ, N_CODEBOOKS, PIECE_FRAMES, TRACKS

VOCABULARY = checkpoints.MODEL_VOCABULARY_SIZE
COPIED_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}
COPIES = 5
LYRICS = "[verse]\nThe kettle hums, the window glows\nA slow train over the hill\n"


@dataclass(frozen=True)
class Measurement:
    """One run of the engine; seconds are from the first song's arrival."""

    songs: int
    audio_s: float
    total_s: float
    stage1_s: float
    stage2_s: float
    decode_s: float
    first_audio_s: float
    floor_s: float  # lower bound: the time to read the weights and the live caches once a step
    memory_gb: float
    steps: str  # how they were taken: "plain" where none are recorded, "recorded", or what came in between

    @property
    def row(self) -> str:
        """A line of the table."""
        tokens = self.audio_s * FRAME_RATE_HZ * len(TRACKS)
        frames = self.audio_s * FRAME_RATE_HZ * len(TRACKS)
        cells = (
            f"{self.songs}",
            f"{self.total_s / self.audio_s * SCALED_TO_SECONDS:.1f}",
            f"{self.audio_s / self.total_s:.2f}",
            f"{tokens / self.stage1_s:.0f}",
            f"{frames / self.stage2_s:.0f}",
            f"{self.stage1_s:.1f} / {self.stage2_s:.1f} / {self.decode_s:.1f}",
            f"{self.first_audio_s:.1f}",
            f"{self.floor_s / self.total_s:.0%}",
            f"{self.memory_gb:.1f}",
            self.steps,
        )
        return f"| {' | '.join(cells)} |"


HEADINGS = (
    "songs",
    "s per 30 s of audio",
    "audio s per s",
    "stage-1 tokens/s",
    "stage-2 frames/s",
    "s in stage 1 / stage 2 / codec",
    "first 6 s after, s",
    "of the bandwidth floor",
    "peak memory, GB",
    "steps",
)


class TimedEngine(Scheduler):
    """The engine, with a clock on each kind of its work."""

    def __init__(self, pipeline: Pipeline, limits: Limits) -> None:
        device = pipeline.stage1.device
        super().__init__(pipeline, limits, GraphRecorder.on(device) if device.type == "cuda" else None)
        self.seconds = {"stage1": 0.0, "stage2": 0.0, "decode": 0.0}
        self.first_part_at: float | None = None

    def prepare(self) -> None:
        """Record the steps of songs that start and end together, as these do."""
        fewest = {"stage1": self.limits.songs, "stage2": min(len(TRACKS) * self.limits.songs, self.limits.rows)}
        for stage, step in self._recorded_steps.items():
            for batch_size in step.recordings.missing:
                if batch_size >= fewest[stage]:
                    step.prepare(batch_size)

    def steps(self, missing_before: int) -> str:
        """How the steps ran, where so many were not recorded before the songs started."""
        every = [step.recordings for step in self._recorded_steps.values()]
        if any(recordings.failure or recordings.skipped for recordings in every):
            return "eager"
        if not every:
            return "plain"
        return "recorded" if self.missing_steps == missing_before else "recorded, some on the way"

    def _run_stage1(self) -> None:
        self._clocked("stage1", super()._run_stage1)

    def _run_stage2(self) -> None:
        self._clocked("stage2", super()._run_stage2)

    def _decode_one_part(self) -> None:
        decodes = any(song.can_decode for song in self._songs.values())
        self._clocked("decode", super()._decode_one_part)
        if decodes and self.first_part_at is None:
            self.first_part_at = time.perf_counter()

    def _clocked(self, work: str, do: Callable[[], None]) -> None:
        began = time.perf_counter()
        do()
        if self._pipeline.stage1.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[work] += time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    options = _parser().parse_args()
    size = SIZES[options.size]
    if options.threads:
        torch.set_num_threads(options.threads)
    device, dtype = resolve(options.device, "auto")
    set_up(device)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = fabricated(size, device, dtype, Path(folder))
    print(f"{date.today()}, {_machine(device)}, {dtype}, torch {torch.__version__}, size {options.size}\n")
    print(f"| {' | '.join(HEADINGS)} |\n|{'---:|' * len(HEADINGS)}")
    measurements = []
    if device.type == "cuda":
        pipeline.stage1.compile()
        pipeline.stage2.compile()
    bytes_per_second = bandwidth(device)
    measure(pipeline, replace(size, seconds=2.0), 1, bytes_per_second, options.listen)  # warm up
    for songs in options.songs or size.songs:
        try:
            measurements.append(measure(pipeline, size, songs, bytes_per_second, options.listen))
        except (YueError, torch.OutOfMemoryError) as error:
            print(f"| {songs} | failed: {str(error).splitlines()[0]} |{' |' * (len(HEADINGS) - 2)}", flush=True)
        else:
            print(measurements[-1].row, flush=True)
    print(f"\nMemory is read at {bytes_per_second / 1e9:.0f} GB/s, as a large copy shows.", flush=True)
    if options.plot:
        plot(measurements, options.plot)
    _free_memory()
    stage1_s, stage2_s = published_seconds(pipeline, size)
    print(f"The published way, scaled from {size.published_tokens} tokens and {size.published_frames} frames to")
    print(f"{size.seconds:g} s of audio: stage 1 {stage1_s:.1f} s, stage 2 {stage2_s:.1f} s.")
    for one in (measurement for measurement in measurements if measurement.songs == 1):
        print(f"That is {stage1_s / one.stage1_s:.1f} × and {stage2_s / one.stage2_s:.1f} × ours.")


def fabricated(size: Size, device: torch.device, dtype: torch.dtype, folder: Path) -> Pipeline:
    """Networks of that size with made-up weights, on the device."""
    checkpoints.write_codec(folder, size.codec, size.vocos)
    (folder / "tokenizer.model").write_bytes(tokenizer.tokenizer_model())
    return Pipeline(
        "fabricated",
        Tokenizer(folder / "tokenizer.model"),
        Llama(_network(size.stage1, device, dtype)),
        Llama(_network(size.stage2, device, dtype)),
        Codec.load(folder, device),
        [vocoder.load(folder / "decoders" / name, device) for name in DECODERS],
    )


def measure(pipeline: Pipeline, size: Size, songs: int, bytes_per_second: float, listen: bool = False) -> Measurement:
    """`songs` songs of `size.seconds` each, all there from the start; with `listen`, somebody listens to each."""
    _free_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    limits = measured_limits(pipeline.stage1, pipeline.stage2)
    limits = Limits(min(songs, limits.songs), min(len(TRACKS) * _pieces(size) * songs, limits.rows))
    engine = TimedEngine(pipeline, limits)
    engine.prepare()
    missing = engine.missing_steps
    tokens = round(size.seconds * FRAME_RATE_HZ * len(TRACKS))
    began = time.perf_counter()
    for seed in range(songs):
        request = SongRequest("folk calm", LYRICS, seed, max_new_tokens=tokens, tracks=("mix",))
        engine.add(str(seed), request, _ignore, _ignore_part)
        if listen:
            engine.listen(str(seed))
    audio_s = 0.0
    while not engine.idle:
        for outcome in engine.step():
            if not isinstance(outcome.result, Song):
                raise outcome.result
            audio_s += outcome.result.duration_seconds
    total_s = time.perf_counter() - began
    assert engine.first_part_at is not None, "no song was decoded"
    return Measurement(
        songs,
        audio_s,
        total_s,
        stage1_s=engine.seconds["stage1"],
        stage2_s=engine.seconds["stage2"],
        decode_s=engine.seconds["decode"],
        first_audio_s=engine.first_part_at - began,
        floor_s=bytes_read(pipeline, size, songs, limits) / bytes_per_second,
        memory_gb=_peak_memory_bytes() / 1e9,
        steps=engine.steps(missing),
    )


def bandwidth(device: torch.device) -> float:
    """Bytes a second that the device's memory gives, by the best of a few copies of a large tensor."""
    source = torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best_s = min(_timed(lambda: target.copy_(source)) for _ in range(COPIES))
    return 2 * len(source) / best_s  # read once, written once


def bytes_read(pipeline: Pipeline, size: Size, songs: int, limits: Limits) -> float:
    """What both stages have to read at the least: in each pass all weights, and of each row what it holds so far.

    The prompt is left out, and so is the codec.
    """
    tokens = size.seconds * FRAME_RATE_HZ * len(TRACKS)
    # Both rows of a song hold half of its tokens on average.
    stage1 = tokens * (_weight_bytes(pipeline.stage1) + songs * 2 * _token_bytes(pipeline.stage1) * tokens / 2)
    rows = len(TRACKS) * _pieces(size) * songs
    passes = (N_CODEBOOKS - 1) * min(PIECE_FRAMES, size.seconds * FRAME_RATE_HZ)
    head = pipeline.stage2.model.lm_head.weight
    weights = _weight_bytes(pipeline.stage2) - head.nbytes + head[:CODEBOOK_SIZE].nbytes
    held = _token_bytes(pipeline.stage2) * _read_tokens(0, PIECE_FRAMES)
    return stage1 + passes * (math.ceil(rows / limits.rows) * weights + rows * held)


def published_seconds(pipeline: Pipeline, size: Size) -> tuple[float, float]:
    """Seconds of stage 1 and stage 2 for one song's audio, scaled from a small part of each."""
    prompt = torch.randint(32_000, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    n_frames = size.seconds * FRAME_RATE_HZ
    n_rows = len(TRACKS) * math.ceil(n_frames / PIECE_FRAMES)
    rows = torch.randint(CODEBOOK_SIZE, (n_rows, PIECE_FRAMES), generator=torch.Generator().manual_seed(1))
    twins = [published.twin(llama.model) for llama in (pipeline.stage1, pipeline.stage2)]
    stage1_s = _timed(lambda: published.generate_section(twins[0], prompt, size.published_tokens))
    stage2_s = _timed(lambda: published.fill_in_rows(twins[1], rows, size.published_frames))
    tokens = n_frames * len(TRACKS)
    # A row that is read again for each frame grows by eight tokens a frame: the middle frame's length is the mean.
    shortest, mean = _read_tokens(0, size.published_frames), _read_tokens(0, PIECE_FRAMES)
    return stage1_s * tokens / size.published_tokens, stage2_s * PIECE_FRAMES / size.published_frames * mean / shortest


def plot(measurements: Sequence[Measurement], path: Path) -> None:
    """Throughput against songs, as a PNG."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.plot([m.songs for m in measurements], [m.audio_s / m.total_s for m in measurements], marker="o")
    axes.set(xlabel="songs together", ylabel="seconds of audio per second", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def _free_memory() -> None:
    """Free the previous engine and its caches."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _pieces(size: Size) -> int:
    return math.ceil(size.seconds * FRAME_RATE_HZ / PIECE_FRAMES)


def _weight_bytes(llama: Llama) -> int:
    """The bytes that one pass reads: all but the embeddings, of which it reads a row for each token."""
    network = llama.model
    return sum(tensor.nbytes for tensor in network.parameters()) - network.model.embed_tokens.weight.nbytes


def _token_bytes(llama: Llama) -> float:
    return llama.cache_bytes(BLOCK_TOKENS) / BLOCK_TOKENS


def _peak_memory_bytes() -> int:
    """Of the GPU since the last reset; without one, of this process since it began (Linux)."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _read_tokens(first_frame: int, last_frame: int) -> float:
    """How long a stage-2 row is on average between two frames."""
    return PIECE_FRAMES + N_CODEBOOKS * (first_frame + last_frame) / 2


def _network(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> LlamaNetwork:
    with torch.device("meta"):
        empty = LlamaNetwork(config)
    model = empty.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    model.lm_head.weight.data[EOA_ID] = 0.0  # so that a section never ends before its budget
    model.model.rotary.fill(device)
    return model.eval().requires_grad_(False)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _ignore(progress: Progress) -> None:
    """A progress callback that does nothing."""


def _ignore_part(part: SongPart) -> None:
    """A callback for parts that does nothing."""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--songs", type=_numbers, help="how many max_songs, such as 1,8; else as the size has it")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--listen", action="store_true", help="somebody listens to every song")
    parser.add_argument("--plot", type=Path, help="PNG file for a plot of throughput against songs")
    return parser


if __name__ == "__main__":
    main()
