"""One song, from request to encoded audio: the only place that knows the order of the steps.

It does not know how any step works, who asked for the song, or in which process it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference import audio, checkpoints, lyrics, prompt, stage1, stage2, vocoder
from inference.catalog import ModelFiles
from inference.codec import Codec
from inference.llama import Llama
from inference.lyrics import Lyrics
from inference.progress import Meter
from inference.prompt import Prompt
from inference.sampling import Sampling
from inference.song import MIX, Progress, Reference, SectionSpan, Song, SongRequest
from inference.stage1 import Composition, Stage1Settings
from inference.tokenizer import Tokenizer
from inference.vocabulary import FRAME_RATE_HZ, TRACKS, VOCODER_RATE_HZ
from inference.vocoder import Vocos

DECODERS = ("decoder_131000.pth", "decoder_151000.pth")  # in the order of TRACKS
SHORTENED = "the song is longer than the model's memory: its later sections were sung without the earliest ones"


@dataclass(frozen=True)
class Voices:
    """The waveforms (samples,) of one track: two siblings of the same codes."""

    codec: np.ndarray  # 16 kHz
    vocoder: np.ndarray  # 44.1 kHz


class Pipeline:
    """Every network of one model, loaded, and the road of a song through them."""

    def __init__(
        self, model: str, tokenizer: Tokenizer, composer: Llama, upsampler: Llama, codec: Codec, vocoders: list[Vocos]
    ) -> None:
        self._name = model
        self._tokenizer = tokenizer
        self._composer = composer
        self._upsampler = upsampler
        self._codec = codec
        self._vocoders = vocoders  # in the order of TRACKS
        self._loading_seconds = 0.0

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        device: str = "auto",
        dtype: str = "auto",
        on_loading: Callable[[str], None] = lambda part: None,
    ) -> Pipeline:
        """Load `files`; `on_loading` hears each part's name before it. Raises CheckpointError."""
        began = time.monotonic()
        # The codec and the vocoders work in float32 wherever they run; cuDNN would round to fewer bits unasked.
        torch.backends.cudnn.allow_tf32 = False
        place, number = resolve(device, dtype)
        on_loading("tokenizer")
        tokenizer = Tokenizer(files.stage1 / "tokenizer.model")
        on_loading("stage 1")
        composer = Llama(checkpoints.load_llama(files.stage1, place, number))
        on_loading("stage 2")
        upsampler = Llama(checkpoints.load_llama(files.stage2, place, number))
        on_loading("codec")
        codec = Codec.load(files.codec, place)
        on_loading("vocoders")
        vocoders = [vocoder.load(files.codec / "decoders" / name, place) for name in DECODERS]
        pipeline = cls(files.model, tokenizer, composer, upsampler, codec, vocoders)
        pipeline._loading_seconds = time.monotonic() - began
        return pipeline

    def sing(self, request: SongRequest, observe: Callable[[Progress], None] = lambda progress: None) -> Song:
        """One song. `observe` hears of its progress every few tokens or frames; what it raises ends the song.

        Raises InvalidField for a request that cannot be sung.
        """
        words = lyrics.parse(request.lyrics)
        meter = Meter(request.segments or len(words.sections), request.max_new_tokens, observe)
        with meter.stage("prompt"):
            song_prompt = self._prompt(request, words)
        with meter.stage("stage1"):
            composition = self._compose(request, song_prompt, meter)
        vocal, instrumental, frames = stage1.tracks(composition.sections)
        with meter.stage("stage2"):
            codes = stage2.upsample(
                self._upsampler, (vocal, instrumental), lambda rows, done: meter.upsampled(rows, done, 2 * len(vocal))
            )
        with meter.stage("decode"):
            voices = [self._voices(track, row) for track, row in enumerate(codes)]
        with meter.stage("encode"):
            files = self._files(request, voices)
        return Song(
            audio=files,
            format=request.format,
            sample_rate=VOCODER_RATE_HZ,
            duration_seconds=sum(frames) / FRAME_RATE_HZ,
            seed=request.seed,
            segments=_spans(words, frames),
            timings=meter.timings,
            warnings=(*words.warnings, *([SHORTENED] if composition.shortened else [])),
        )

    def info(self) -> dict[str, object]:
        """Where and how the model is loaded."""
        device = self._composer.device
        memory = torch.cuda.memory_allocated(device) if device.type == "cuda" else None
        return {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "dtype": str(self._composer.dtype).removeprefix("torch."),
            "memory_bytes": memory,
            "loading_seconds": round(self._loading_seconds, 3),
        }

    def _prompt(self, request: SongRequest, words: Lyrics) -> Prompt:
        reference_ids = self._reference_ids(request.reference) if request.reference else []
        return prompt.build(self._tokenizer.encode, request.genres, words.sections, request.segments, reference_ids)

    def _reference_ids(self, reference: Reference) -> list[int]:
        waveforms = audio.read_reference(reference)
        return stage1.interleave([self._codec.encode(torch.from_numpy(waveform)) for waveform in waveforms])

    def _compose(self, request: SongRequest, song_prompt: Prompt, meter: Meter) -> Composition:
        sampling = Sampling(request.temperature, request.top_k, request.top_p, request.repetition_penalty)
        settings = Stage1Settings(sampling, request.guidance_scale, request.max_new_tokens)
        composition = Composition(song_prompt, settings, request.seed, self._composer.context)
        stage1.compose(self._composer, composition, meter.sung)
        return composition

    def _voices(self, track: int, codes: Tensor) -> Voices:
        codec, voice = self._codec.decode(codes), self._vocoders[track](self._codec.embed(codes))
        return Voices(codec.cpu().numpy(), voice.cpu().numpy())

    def _files(self, request: SongRequest, voices: Sequence[Voices]) -> dict[str, bytes]:
        by_track = dict(zip(TRACKS, voices, strict=True))
        tags = _tags(self._name, request.seed)
        files = {}
        for name in request.tracks:
            waveform = _mixed(voices) if name == MIX else by_track[name].vocoder
            files[name] = audio.encode(waveform, VOCODER_RATE_HZ, request.format, tags)
        return files


def resolve(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and dtype meant; "auto" is a GPU and bfloat16 where there is one, else the CPU and float32."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    return torch.device(device), getattr(torch, dtype)


def _tags(model: str, seed: int) -> dict[str, str]:
    origin = f"AI-generated with YuE, model {model}, seed {seed}"
    return {"title": "YuE song", "comment": origin, "software": "yue-server"}


def _mixed(voices: Sequence[Voices]) -> np.ndarray:
    vocal, instrumental = voices
    return audio.merge_bands(vocal.codec, instrumental.codec, vocal.vocoder, instrumental.vocoder)


def _spans(words: Lyrics, frames: Sequence[int]) -> tuple[SectionSpan, ...]:
    ends = np.cumsum(frames) / FRAME_RATE_HZ
    starts = [0.0, *ends[:-1]]
    sung = words.sections[: len(frames)]
    return tuple(
        SectionSpan(section.tag, float(start), float(end))
        for section, start, end in zip(sung, starts, ends, strict=True)
    )
