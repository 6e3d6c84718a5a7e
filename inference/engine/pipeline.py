"""Takes one song from the request to encoded audio. The order of the steps is defined here alone.

Independent of other songs: `inference/engine/scheduler.py` decides when each step runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from inference.audio import encoding, mixing
from inference.audio.reading import read_reference
from inference.audio.stream_mixing import StreamMixer
from inference.catalog import ModelFiles
from inference.engine.progress import ProgressTracker, TailRatio, expected_tokens
from inference.engine.sampling import Sampling
from inference.engine.stage1 import Composition, Stage1Settings, deinterleave, interleave
from inference.engine.stage2 import Piece, pieces
from inference.errors import DeviceMissing
from inference.models import checkpoints, quantization, vocoder
from inference.models.codec import Codec
from inference.models.llama import Llama
from inference.models.vocoder import Vocos
from inference.options import EngineOptions
from inference.song import MIX, Progress, Reference, SectionSpan, Song, SongPart, SongRequest
from inference.text import lyrics, lyrics_warnings, prompt
from inference.text.tokenizer import Tokenizer
from inference.vocabulary import FRAME_RATE_HZ, PIECE_FRAMES, TRACKS, VOCODER_RATE_HZ, exact_div

log = logging.getLogger(__name__)

DECODERS = ("decoder_131000.pth", "decoder_151000.pth")  # in the order of TRACKS
SHORTENED = "the song is longer than the context window: its later sections were generated without the earliest ones"
# The receptive fields of the codec and the vocoder extend 11 and 29 frames to either side. With this many frames of
# context, a part of a track decodes to the same samples as within the whole track.
CONTEXT_FRAMES = 32
# Seconds after stage 1 per second of stage 1, until a song has been measured: on a GPU stage 2 runs many rows at once.
TAIL_RATIO = {"cuda": 0.15, "cpu": 0.8}


class Pipeline:
    """Every network of one model, loaded."""

    def __init__(
        self, model: str, tokenizer: Tokenizer, stage1: Llama, stage2: Llama, codec: Codec, vocoders: list[Vocos]
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.stage1 = stage1
        self.stage2 = stage2
        self.codec = codec
        self.vocoders = vocoders  # in the order of TRACKS
        self.loading_seconds = 0.0
        self.tail_ratio = TailRatio(TAIL_RATIO["cuda" if stage1.device.type == "cuda" else "cpu"])

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        options: EngineOptions,
        on_loading: Callable[[str], None] = lambda part: None,
    ) -> Pipeline:
        """Load `files`. `on_loading` is called with the name of each part before it loads. Raises CheckpointError."""
        started = time.monotonic()
        device, dtype = resolve(options.device, options.dtype)
        set_up(device)
        on_loading("tokenizer")
        tokenizer = Tokenizer(files.stage1 / "tokenizer.model")
        on_loading("stage 1")
        stage1 = Llama(checkpoints.load_llama(files.stage1, device, dtype, options.quantization))
        on_loading("stage 2")
        stage2 = Llama(checkpoints.load_llama(files.stage2, device, dtype))
        on_loading("codec")
        codec = Codec.load(files.codec, device)
        on_loading("vocoders")
        vocoders = [vocoder.load(files.codec / "decoders" / name, device) for name in DECODERS]
        pipeline = cls(files.model, tokenizer, stage1, stage2, codec, vocoders)
        pipeline.loading_seconds = time.monotonic() - started
        return pipeline

    def info(self) -> dict[str, object]:
        """Device, dtype, quantization, memory and loading time."""
        device = self.stage1.device
        memory = torch.cuda.memory_allocated(device) if device.type == "cuda" else None
        return {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "dtype": str(self.stage1.dtype).removeprefix("torch."),
            "quantization": quantization.quantization_of(self.stage1.model),
            "memory_bytes": memory,
            "loading_seconds": round(self.loading_seconds, 3),
        }


class SongInProgress:
    """The state of one song: what the models have computed for it, and what it needs next.

        prompt -> composition (stage 1) -> pieces (stage 2) -> waveforms (codec, vocoder) -> files

    A piece enters stage 2 as soon as stage 1 has generated its frames, and is decoded while stage 1 continues.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        request: SongRequest,
        observe: Callable[[Progress], None],
        on_part: Callable[[SongPart], None] | None = None,
    ) -> None:
        """Parse the request. Raises InvalidField if no song can be generated from it.

        `on_part` is called with each decoded part, from another thread.
        """
        self.request = request
        self.listened = False  # somebody listens while the song is generated
        self._on_part = on_part
        self._mixer: StreamMixer | None = None  # from the first part to the last
        self.lyrics = lyrics.parse(request.lyrics)
        seconds = [section.words_seconds for section in self.lyrics.sections[: request.segments]]
        lengths = [expected_tokens(each, request.max_new_tokens) for each in seconds]
        self.progress = ProgressTracker(lengths, request.max_new_tokens, observe, pipeline.tail_ratio)
        self.progress.enter("prompt")
        self._pipeline = pipeline
        self.composition = self._composition()
        self.pieces: dict[str, list[Piece]] = {track: [] for track in TRACKS}
        self._codec_parts: dict[str, list[np.ndarray]] = {track: [] for track in TRACKS}  # (samples,), 16 kHz
        self._vocoder_parts: dict[str, list[np.ndarray]] = {track: [] for track in TRACKS}  # (samples,), 44.1 kHz
        self._decoded_frames = 0
        self.progress.enter("stage1")

    @property
    def in_stage_2(self) -> bool:
        """True while stage 2 has pieces of this song."""
        return any(not piece.done for track in self.pieces.values() for piece in track)

    @property
    def waits_for_stage_2(self) -> bool:
        """True while pieces of this song wait for a row in stage 2."""
        return any(piece.row is None and not piece.done for track in self.pieces.values() for piece in track)

    @property
    def awaits_first_piece(self) -> bool:
        """True while somebody listens, stage 2 has pieces of this song, and none of them is done."""
        return self.listened and self.in_stage_2 and not self._stage2_frames

    @property
    def runs_dry(self) -> bool:
        """True while somebody listens and stage 2 computes nothing that could be heard next."""
        running = any(piece.row is not None for track in self.pieces.values() for piece in track)
        return self.listened and not running

    @property
    def stage2_done(self) -> bool:
        """True once stage 2 is done with this song."""
        return self.composition.finished and self._stage2_frames == self._piece_frames == self.composition.n_frames

    @property
    def fully_decoded(self) -> bool:
        """True once every frame is decoded."""
        return self.stage2_done and self._decoded_frames == self.composition.n_frames

    @property
    def can_decode(self) -> bool:
        """True if the next part has all the codes that its waveform depends on."""
        end = self._next_part_end()
        return self._decoded_frames < end and (self.stage2_done or self._stage2_frames >= end + CONTEXT_FRAMES)

    def new_pieces(self) -> list[Piece]:
        """The pieces of both tracks that stage 1 has completed since the last call."""
        available = self.composition.n_frames
        if not self.composition.finished:
            available -= available % PIECE_FRAMES
        first = self._piece_frames
        if available == first:
            return []
        new = []
        for track, codes in zip(TRACKS, deinterleave(self.composition.sections), strict=True):
            new_pieces = pieces(codes[first:available])
            self.pieces[track] += new_pieces
            new += new_pieces
        return new

    def report_progress(self) -> None:
        """Report the progress to the observer."""
        if not self.composition.finished:
            self.progress.note_stage1(len(self.composition.sections), self.composition.n_tokens)
        every = [piece for track in self.pieces.values() for piece in track]
        frames = sum(piece.n_done for piece in every)
        finished = self.composition.finished
        expected = len(TRACKS) * self.composition.n_frames if finished else self.progress.expected_tokens
        self.progress.note_stage2(sum(piece.done for piece in every), frames, frames / expected)
        self.progress.note_decoded(len(TRACKS) * self._decoded_frames / expected)

    def decode_part(self) -> None:
        """Decode the next part of both tracks.

            decoded         part end
        |-- done --|---- this part ----|- context -|

        Raises FloatingPointError if the networks compute NaN or infinite samples.
        """
        if self.stage2_done and self.progress.stage == "stage2":
            self.progress.enter("decode")
        first, end = self._decoded_frames, self._next_part_end()
        left, right = max(0, first - CONTEXT_FRAMES), min(end + CONTEXT_FRAMES, self._stage2_frames)
        for track, vocos in zip(TRACKS, self._pipeline.vocoders, strict=True):
            codes = torch.cat([piece.codes for piece in self.pieces[track] if piece.done], dim=1)[:, left:right]
            for parts, waveform in (
                (self._codec_parts, self._pipeline.codec.decode(codes)),
                (self._vocoder_parts, vocos(self._pipeline.codec.embed(codes))),
            ):
                if not waveform.isfinite().all():
                    raise FloatingPointError("the codec or a vocoder computed non-finite samples (NaN or Inf)")
                hop = exact_div(len(waveform), right - left)
                parts[track].append(waveform[(first - left) * hop : (end - left) * hop].cpu().numpy())
        self._decoded_frames = end

    @property
    def n_parts(self) -> int:
        """The number of decoded parts."""
        return len(self._codec_parts[TRACKS[0]])

    def send_part(self, index: int, last: bool) -> None:
        """Mix and encode a decoded part, and pass it to the observer. Call it for each part in order, in one thread.

        An error ends the parts of this song, not the song.
        """
        if self._on_part is None:
            return
        try:
            waveforms = {track: self._vocoder_parts[track][index] for track in TRACKS}
            if MIX in self.request.tracks:
                codec = [self._codec_parts[track][index] for track in TRACKS]
                mixer = self._mixer or StreamMixer()
                waveforms[MIX] = mixer.mix(*codec, *waveforms.values(), last=last)
                self._mixer = None if last else mixer
            files = {
                name: encoding.encode(waveforms[name], VOCODER_RATE_HZ, "flac", {}) for name in self.request.tracks
            }
            end_seconds = sum(map(len, self._vocoder_parts[TRACKS[0]][: index + 1])) / VOCODER_RATE_HZ
            begun = [each for each in self._spans(self.composition.section_frames) if each.start_seconds < end_seconds]
            sections = [replace(each, end_seconds=min(each.end_seconds, end_seconds)) for each in begun]
            self._on_part(SongPart(index, end_seconds, files, tuple(sections)))
        except Exception:
            log.exception("part %d of a song could not be sent; the song cannot be streamed any further", index)
            self._on_part = self._mixer = None

    def encode(self) -> dict[str, bytes]:
        """Mix and encode the decoded parts: one file for each requested track. Callable from any thread."""
        codec = [np.concatenate(self._codec_parts[track]) for track in TRACKS]
        stems = {track: np.concatenate(self._vocoder_parts[track]) for track in TRACKS}
        tags = encoding.song_tags(self._pipeline.model, self.request.seed)
        files = {}
        for name in self.request.tracks:
            waveform = mixing.merge_bands(*codec, *stems.values()) if name == MIX else stems[name]
            files[name] = encoding.encode(waveform, VOCODER_RATE_HZ, self.request.format, tags)
        return files

    def result(self, files: dict[str, bytes]) -> Song:
        """The finished song with these files."""
        self.progress.finish()
        frames = self.composition.section_frames
        return Song(
            audio=files,
            format=self.request.format,
            sample_rate=VOCODER_RATE_HZ,
            duration_seconds=sum(frames) / FRAME_RATE_HZ,
            seed=self.request.seed,
            segments=self._spans(frames),
            timings=self.progress.timings,
            parts=self.n_parts,
            warnings=(*self._warnings(), *([SHORTENED] if self.composition.shortened else [])),
        )

    @property
    def _piece_frames(self) -> int:
        return sum(piece.n_frames for piece in self.pieces[TRACKS[0]])

    @property
    def _stage2_frames(self) -> int:
        """The number of leading frames that have all eight codes in both tracks."""
        return min(_leading_frames(pieces) for pieces in self.pieces.values())

    def _next_part_end(self) -> int:
        """The frame where the next part ends. These frames are fixed, so the order of the pieces affects no sample."""
        end = (self.n_parts + 1) * PIECE_FRAMES - CONTEXT_FRAMES
        return min(end, self.composition.n_frames) if self.composition.finished else end

    def _composition(self) -> Composition:
        request = self.request
        reference_ids = self._reference_ids(request.reference) if request.reference else []
        encode = self._pipeline.tokenizer.encode
        song_prompt = prompt.build(encode, request.genres, self.lyrics.sections, request.segments, reference_ids)
        sampling = Sampling(request.temperature, request.top_k, request.top_p, request.repetition_penalty)
        settings = Stage1Settings(sampling, request.guidance_scale, request.max_new_tokens)
        return Composition(song_prompt, settings, request.seed, self._pipeline.stage1.context)

    def _warnings(self) -> tuple[str, ...]:
        request = self.request
        return lyrics_warnings.warnings(self.lyrics, self._pipeline.model, request.max_new_tokens, request.segments)

    def _reference_ids(self, reference: Reference) -> list[int]:
        waveforms = read_reference(reference)
        codes = [self._pipeline.codec.encode(torch.from_numpy(waveform)).cpu() for waveform in waveforms]
        return interleave(codes)

    def _spans(self, frames: Sequence[int]) -> tuple[SectionSpan, ...]:
        ends = np.cumsum(frames) / FRAME_RATE_HZ
        starts = [0.0, *ends[:-1]]
        sections = self.lyrics.sections[: len(frames)]
        return tuple(
            SectionSpan(section.tag, float(start), float(end))
            for section, start, end in zip(sections, starts, ends, strict=True)
        )


def resolve(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and dtype. "auto" is a GPU and bfloat16 if there is one, else the CPU and float32."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    return torch.device(device), getattr(torch, dtype)


def set_up(device: torch.device) -> None:
    """Set the process-wide torch options for the device. Raises DeviceMissing."""
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceMissing(f"YUE_DEVICE: got {device}; allowed: auto or cpu, or a GPU that this machine has")
    # The codec and the vocoders compute in float32 everywhere. By default the libraries would use TF32.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.type == "cuda":
        if device.index is not None:  # else it is the current device
            torch.cuda.set_device(device)  # graphs are captured on the current device, wherever their tensors are
        # On recent cards torch prefers cuDNN's attention, which takes 0.4 s to plan each new shape. Every eager
        # step has a new shape.
        torch.backends.cuda.enable_cudnn_sdp(False)


def _leading_frames(pieces: Sequence[Piece]) -> int:
    frames = 0
    for piece in pieces:
        if not piece.done:
            break
        frames += piece.n_frames
    return frames
