"""How does a model go on with a text? `generate` draws token by token, `search` finds likely
continuations by beams, both over cached keys; `stream` turns tokens into text.
"""

from lm.generate.beam import search, search_steps
from lm.generate.decode import generate
from lm.generate.prompts import prompt_batch
from lm.generate.sample import sample
from lm.generate.speed import Speed
from lm.generate.text import Continuation, cut, prompt_ids, stream

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
