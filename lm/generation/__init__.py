"""How does a model go on with a text? `generate` draws token by token, `search` finds likely
continuations by beams, both over cached keys; `stream` turns tokens into text.
"""

from lm.generation.beam import search, search_steps
from lm.generation.decode import generate
from lm.generation.prompts import prompt_batch
from lm.generation.sample import sample
from lm.generation.speed import Speed
from lm.generation.text import Continuation, cut, prompt_ids, stream

__all__ = [
    "Continuation",
    "Speed",
    "cut",
    "generate",
    "prompt_batch",
    "prompt_ids",
    "sample",
    "search",
    "search_steps",
    "stream",
]
