"""Turns the score's tables into the weights of the two language models.

Stage 1 computes which state follows which; stage 2 copies a code along the codebooks. Independent of how states sound.

Stage 1 interleaves the tracks, so the token before the one that is fed belongs to the track that comes next:

    … v0 i0 v1 i1    the next token is v2. It follows from v1, one back, and from i1, which is fed.

Every embedding holds what its token knows of the next one (`NEXT`), and a message for the one after it (`MESSAGE`).
Layer 0 looks one position back and adds that token's message to `NEXT`. Layer 1 looks for marks: the section's tag,
which decides between verse and chorus, and the end of a reference, whose notes the melody prefers. The output
multiplies `NEXT` with the features of each state: the logits.

    embedding    constant | NEXT | MESSAGE | flags
                              ^       |
                              '-------'  layer 0, from one position back
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from inference.tiny import score
from inference.tiny.layers import llama_shapes
from inference.tiny.score import BandState, VocalState
from inference.vocabulary import CODEBOOK_SIZE, EOA_ID, N_CODEBOOKS, TEXT_VOCABULARY_SIZE, XCODEC_ID, code_ids

Tensors = dict[str, torch.Tensor]


def _blocks(first: int, **widths: int) -> tuple[dict[str, slice], int]:
    """Consecutive slices of the hidden state from entry `first` on, and the entry after them."""
    blocks = {}
    for name, width in widths.items():
        blocks[name] = slice(first, first + width)
        first += width
    return blocks, first


# -- the hidden state of stage 1 (64,)

CONSTANT = 0
NEXT, _end = _blocks(1, track=1, age=4, end=1, pitch=score.N_PITCHES, held=1, eighth=2, chord=len(score.CHORDS))
MESSAGE, _end = _blocks(_end, pitch=score.N_PITCHES, held=1, eighth=2, chord=len(score.CHORDS), mark=1)
MARK, TAG = _end, _end + 1

# The constant dwarfs all else, so every norm is the same and RMSNorm divides by a constant.
LARGE = 64.0
NATS = 16.0  # entries of NEXT and MESSAGE are logits, divided by this
TRACK_WEIGHT = 8.0  # so large that no guidance, which amplifies the other weights, makes one track's code the other's
TAG_WEIGHT = 0.4
REFERENCE_WEIGHT = 0.7  # of a pitch that is heard all the time
IMPOSSIBLE = -40.0  # the logit of every token that is no code of codebook 0

# -- the pieces of the tiny tokenizer that matter

OPENING_BRACKET = "\u2581["  # of a section's tag and of markers such as [start_of_segment], but not within a text
NO_TAGS = ("start", "end")  # of those markers
REFERENCE = "reference"  # of [end_of_reference]
CHORUS_TAGS = ("chorus", "C", "outro", "Ou")  # the first pieces of [chorus] and [outro], which both end at home


def stage_1(config: Mapping[str, Any], piece_id: Callable[[str], int]) -> Tensors:
    """The weights of stage 1. `piece_id` is the tokenizer's."""
    hidden, head_dim = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    assert hidden == TAG + 1, f"the blocks take {TAG + 1} entries, not {hidden}"
    tensors = _empty(config, norm=LARGE / math.sqrt(hidden))  # undoes the division
    _look_one_back(tensors, head_dim, config)
    _average_what_was_heard(tensors, head_dim)
    _look_for_marks(tensors, head_dim, config)
    tensors["model.embed_tokens.weight"] = torch.from_numpy(_embeddings(config["vocab_size"], hidden, piece_id))
    tensors["lm_head.weight"] = torch.from_numpy(_output(config["vocab_size"], hidden))
    return tensors


def stage_2(config: Mapping[str, Any]) -> Tensors:
    """The weights of stage 2, which finds each code again in the next codebook.

    Code c has the same random direction in all codebooks, as a token that is fed and as one that may come next.
    """
    tensors = _empty(config, norm=1.0)
    directions = np.random.default_rng(0).standard_normal((CODEBOOK_SIZE, config["hidden_size"]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for codebook in range(N_CODEBOOKS):
        ids = code_ids(codebook)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name][ids.start : ids.stop] = torch.from_numpy(directions)
    return tensors


def _empty(config: Mapping[str, Any], norm: float) -> Tensors:
    """Layers that write nothing: all weights are 0, those of the norms `norm`."""
    shapes = llama_shapes(config)
    return {name: torch.full(shape, norm if "norm" in name else 0.0) for name, shape in shapes.items()}


# -- attention


def _look_one_back(tensors: Tensors, head_dim: int, config: Mapping[str, Any]) -> None:
    """Layer 0: copy the message of the token before.

    Rotary embeddings turn the pair i of a query at position m by θᵢ m, and that of a key at n by θᵢ n. With keys that
    are turned by one position more, the score is S Σ cos θᵢ (m - n - 1), which is largest at n = m - 1.
    """
    sharpness = 80.0
    query, key, value, output = (tensors[f"model.layers.0.self_attn.{each}_proj.weight"] for each in "qkvo")
    angles = config["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)  # radians for each position
    turned = torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)])).float()
    group = config["num_attention_heads"] // config["num_key_value_heads"]  # of query heads share one of keys
    copied = _copied()
    for head in range(config["num_key_value_heads"]):
        row, query_row = head * head_dim, head * group * head_dim
        query[query_row : query_row + head_dim // 2, CONSTANT] = sharpness / LARGE
        key[row : row + head_dim, CONSTANT] = turned / LARGE
        for i, (source, target) in enumerate(copied[row : row + head_dim]):
            value[row + i, source] = 1.0
            output[target, query_row + i] = 1.0


def _average_what_was_heard(tensors: Tensors, head_dim: int) -> None:
    """Layer 0, head 1: how often each pitch was heard up to here.

    It shares the keys and values of head 0, whose values are pitches. Its query is 0, so it averages all tokens. The
    result takes the place of a message, which has been read by then.
    """
    for i, pitch in enumerate(range(MESSAGE["pitch"].start, MESSAGE["pitch"].stop)):
        tensors["model.layers.0.self_attn.o_proj.weight"][pitch, head_dim + i] = 1.0


def _look_for_marks(tensors: Tensors, head_dim: int, config: Mapping[str, Any]) -> None:
    """Layer 1: the latest tag prefers the chords of its section; a reference prefers its own pitches.

    The slowest pair of a head falls over the whole context window, so the latest of equal marks wins.
    """
    strength, lag = 400.0, 0.3  # the lag in radians: without it, near positions would all score alike
    query, key, value, output = (tensors[f"model.layers.1.self_attn.{each}_proj.weight"] for each in "qkvo")
    slowest, half = head_dim // 2 - 1, head_dim // 2
    group = config["num_attention_heads"] // config["num_key_value_heads"]
    turned = torch.tensor([math.cos(lag), math.sin(lag)]) * strength / LARGE
    for head, sign in ((0, 1.0), (1, -1.0)):
        first = head * group * head_dim
        query[[first + slowest, first + slowest + half], CONSTANT] = turned
        key[head * head_dim + slowest, MARK] = sign
    value[0, TAG] = 1.0
    output[NEXT["chord"], 0] = torch.tensor([-TAG_WEIGHT] * len(score.VERSE) + [TAG_WEIGHT] * len(score.CHORUS))
    value[head_dim:, MESSAGE["pitch"]] = torch.eye(score.N_PITCHES)
    columns = slice(group * head_dim, group * head_dim + score.N_PITCHES)
    output[NEXT["pitch"], columns] = REFERENCE_WEIGHT * torch.eye(score.N_PITCHES)


def _copied() -> list[tuple[int, int]]:
    """The entries that attention copies: from a message to what comes next."""
    pairs: list[tuple[int, int]] = []
    for name, source in MESSAGE.items():
        target = NEXT[name] if name in NEXT else slice(MARK, MARK + 1)
        pairs += zip(range(source.start, source.stop), range(target.start, target.stop), strict=True)
    return pairs


# -- embeddings


def _embeddings(vocabulary_size: int, hidden: int, piece_id: Callable[[str], int]) -> np.ndarray:
    """The embedding of every token (V, H)."""
    table = np.zeros((vocabulary_size, hidden), dtype=np.float32)
    table[:, CONSTANT] = LARGE
    table[:TEXT_VOCABULARY_SIZE, TAG] = -1.0  # whatever is no chorus is a verse
    table[[piece_id(piece) for piece in CHORUS_TAGS], TAG] = 1.0
    table[piece_id(OPENING_BRACKET), MESSAGE["mark"]] = 1.0  # for the first piece of a tag
    table[[piece_id(piece) for piece in NO_TAGS], MARK] = -1.0  # takes it away
    table[piece_id(REFERENCE), MARK] = -1.0
    table[XCODEC_ID, MARK] = -0.5  # what was heard before the section, where there is no reference
    _start(table[XCODEC_ID])
    for state, row in zip(score.STATES, table[code_ids(0).start :], strict=False):
        if isinstance(state, VocalState):
            _vocal(row, state)
        else:
            _band(row, state)
    return table


def _start(row: np.ndarray) -> None:
    """`<xcodec>` comes right before the first frame: a first note, then the first chord of a verse or chorus."""
    row[NEXT["track"]] = -TRACK_WEIGHT
    row[NEXT["age"]] = _binary(0, 4)
    row[NEXT["held"]] = -0.5
    row[NEXT["pitch"]] = 1.0 + (score.fit_to(0, 0) + score.steps_from(score.REST)) / NATS
    row[MESSAGE["eighth"]] = _binary(0, 2)
    row[MESSAGE["chord"]][[0, len(score.VERSE)]] = 1.0


def _vocal(row: np.ndarray, state: VocalState) -> None:
    """The band plays the same frame next; its chord is not known here. The message is about the next vocal frame."""
    row[NEXT["track"]] = TRACK_WEIGHT
    row[NEXT["age"]] = _binary(state.age, 4)
    if state.age < score.EIGHTH_FRAMES - 1:
        row[MESSAGE["pitch"]][state.pitch] = 1.0
        row[MESSAGE["held"]] = 0.5 if state.held else -0.5
    else:
        rests = state.pitch == score.REST  # and what follows a rest begins anew
        row[MESSAGE["held"]] = -0.5 if rests else 0.0
        row[MESSAGE["pitch"]] = (1.0 if rests else 1.5) + score.steps_from(state.pitch) / NATS


def _band(row: np.ndarray, state: BandState) -> None:
    """The vocal's next frame is next: where a note may begin, it should fit. The message is the band's next frame."""
    row[NEXT["track"]] = -TRACK_WEIGHT
    age, eighth, chord = (state.age + 1) % score.EIGHTH_FRAMES, state.eighth, state.chord
    row[NEXT["age"]] = _binary(age, 4)
    if age == 0:
        eighth = (eighth + 1) % score.N_EIGHTHS
        if eighth == 0:
            chord = score.next_chord(chord)
            row[NEXT["end"]] = (score.END - IMPOSSIBLE) / NATS if score.is_last_bar(state.chord) else 0.0
        row[NEXT["pitch"]] = score.fit_to(chord, eighth) / NATS
        row[NEXT["held"]] = 0.5 * math.log(score.held_ratio(chord, eighth)) / NATS
    row[MESSAGE["eighth"]] = _binary(eighth, 2)
    row[MESSAGE["chord"]][chord] = 1.0


def _binary(number: int, digits: int) -> np.ndarray:
    """The binary digits of a number, as ±0.5."""
    return np.array([number >> digit & 1 for digit in range(digits)]) - 0.5


# -- output


def _output(vocabulary_size: int, hidden: int) -> np.ndarray:
    """The output row of every token (V, H). A state whose features are all right has the logit 0."""
    table = np.zeros((vocabulary_size, hidden), dtype=np.float32)
    table[:, CONSTANT] = IMPOSSIBLE / LARGE
    table[EOA_ID, NEXT["end"]] = NATS
    for state, row in zip(score.STATES, table[code_ids(0).start :], strict=False):
        digits = {"age": _binary(state.age, 4)}
        if isinstance(state, VocalState):
            row[NEXT["track"]], row[NEXT["pitch"]][state.pitch] = -NATS, NATS
            digits["held"] = _binary(int(state.held), 1)
        else:
            row[NEXT["track"]], row[NEXT["chord"]][state.chord] = NATS, NATS
            digits["eighth"] = _binary(state.eighth, 2)
        for name, values in digits.items():
            row[NEXT[name]] = 2 * values * NATS
        row[CONSTANT] = -(TRACK_WEIGHT + 1.0 + 0.5 * sum(map(len, digits.values()))) * NATS / LARGE
    return table
