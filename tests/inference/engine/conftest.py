"""What the tests of the engine share."""

from __future__ import annotations

import pytest

from inference.engine.pipeline import Pipeline
from tests.support.language_models import small_llama


@pytest.fixture(scope="module")
def small(tiny_pipeline: Pipeline) -> Pipeline:
    """The tiny model with smaller language models."""
    tiny = tiny_pipeline
    composer, upsampler = small_llama("stage1"), small_llama("stage2")
    return Pipeline("small", tiny.tokenizer, composer, upsampler, tiny.codec, tiny.vocoders)
