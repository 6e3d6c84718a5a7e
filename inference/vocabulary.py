"""Defines YuE's token ids and rates, and everything derived from them.

Source: the published YuE v1 vocabulary (83,968 tokens).
"""

from __future__ import annotations

# Ids below are LLaMA's text tokens; ids from here on are control and code tokens.
TEXT_VOCABULARY_SIZE = 32_000

EOD_ID = 32_000
SOA_ID = 32_001  # start of audio
EOA_ID = 32_002  # end of audio
STAGE_1_ID = 32_013
XCODEC_ID = 32_016
STAGE_2_ID = 32_017

CODEBOOK_SIZE = 1_024
N_CODEBOOKS = 8  # the codebooks that YuE generates; X-Codec has 12
XCODEC_CODEBOOKS = 12
FIRST_CODE_ID = 45_334  # codebook 0, code 0

# These markers are tokenised as plain text.
START_OF_SEGMENT = "[start_of_segment]"
END_OF_SEGMENT = "[end_of_segment]"
START_OF_REFERENCE = "[start_of_reference]"
END_OF_REFERENCE = "[end_of_reference]"

TRACKS = ("vocal", "instrumental")  # the order in which stage 1 interleaves them


def exact_div(dividend: int, divisor: int) -> int:
    """`dividend / divisor`, which must leave no remainder."""
    assert dividend % divisor == 0, f"{dividend} is no multiple of {divisor}"
    return dividend // divisor


FRAME_RATE_HZ = 50
CODEC_RATE_HZ = 16_000
VOCODER_RATE_HZ = 44_100
CODEC_HOP = exact_div(CODEC_RATE_HZ, FRAME_RATE_HZ)  # 320 samples a frame
VOCODER_HOP = exact_div(VOCODER_RATE_HZ, FRAME_RATE_HZ)  # 882 samples a frame
TOKENS_PER_SECOND = FRAME_RATE_HZ * len(TRACKS)  # 100 tokens of stage 1 for a second of audio
PIECE_SECONDS = 6
PIECE_FRAMES = PIECE_SECONDS * FRAME_RATE_HZ  # 300 frames, one row of stage 2


def code_ids(codebook: int) -> range:
    """The ids of the 1,024 codes of one X-Codec codebook."""
    first = FIRST_CODE_ID + CODEBOOK_SIZE * codebook
    return range(first, first + CODEBOOK_SIZE)
