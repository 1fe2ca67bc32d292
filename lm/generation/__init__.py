"""Generates text: sampling or beam search over cached keys, and tokens streamed as text."""

from lm.generation.assisted import Assistant, AssistedDecoding
from lm.generation.beam import beam_search, beam_search_steps
from lm.generation.decode import generate
from lm.generation.prompts import prompt_batch, prompt_ids
from lm.generation.sample import SamplingParams, sample
from lm.generation.speed import Speed
from lm.generation.streaming import Continuation, cut_at_stop, stream

__all__ = [
    "Assistant",
    "AssistedDecoding",
    "Continuation",
    "SamplingParams",
    "Speed",
    "beam_search",
    "beam_search_steps",
    "cut_at_stop",
    "generate",
    "prompt_batch",
    "prompt_ids",
    "sample",
    "stream",
]
