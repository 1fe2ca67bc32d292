"""Continues texts by a run's model, drawing or searching, from prompts to printable pieces."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lm.checkpoints.restore import Restored
from lm.errors import UserError
from lm.generation.beam import check_search, search_steps
from lm.generation.decode import generate
from lm.generation.sample import Choice
from lm.generation.speed import Speed
from lm.generation.text import prompt_ids, stream


class Search(NamedTuple):
    """How a continuation is searched for; of width 1 it is drawn.

    Attributes:
      width: beams that are kept.
      length_penalty: more prefers longer texts; see `lm.generation.beam`.
    """

    width: int = 1
    length_penalty: float = 0.0


def check_request(
    prompts: Sequence[str], tokens: int, search: Search, draws: Mapping[str, Any], stops: Any
) -> None:
    """Raises UserError where no model can do what is asked; arguments as of `continue_texts`."""
    Choice(**{name: value for name, value in draws.items() if name != "seed"})
    check_search(search.width, search.length_penalty, tokens)
    if not prompts:
        raise UserError("generate needs --prompt=TEXT; it may be given several times")
    if "" in stops:
        raise UserError("--stop= stops before any text; give it some, or leave it out")
    if search.width == 1 and search.length_penalty:
        raise UserError("--length_penalty is of a search; give --beams=4 or so")


def continue_texts(
    run: Restored,
    texts: Sequence[str],
    *,
    tokens: int,
    search: Search,
    draws: Mapping[str, Any],
    stops: Sequence[str] = (),
    chat: bool = False,
) -> tuple[Iterator[str], Speed]:
    """Printable pieces of every text and its continuation, the first as it grows; and their speed.

    Args:
      run: as `Restored.decoding` gives it.
      texts: what is continued; of an encoder-decoder, what is answered.
      tokens: how many follow at most.
      search: for the likeliest continuations, where it is wider than 1.
      draws: else, options of `lm.generation.generate` by name: temperature, top_k, top_p, min_p and
        seed.
      stops: texts before which a continuation ends.
      chat: the texts are what a user says, written out by the run's conversation template.

    Raises:
      UserError: more beams than the vocabulary has tokens, or a text that does not fit.
    """
    tokenizer = run.tokenizer
    if search.width > tokenizer.vocab_size:
        raise UserError(
            f"--beams={search.width} is more than the {tokenizer.vocab_size} tokens of the "
            "vocabulary; use fewer, such as --beams=4"
        )
    ids, sources = prompt_ids(tokenizer, texts, run.opens), None
    shown, stops, end = list(texts), list(stops), tokenizer.end
    if chat:
        ids = [run.chat.asked([{"role": "user", "content": text}]) for text in texts]
        stops, end = [*stops, *run.chat.stops], run.chat.closes
    if run.config.model.architecture == "encoder_decoder":
        sources = [run.frame.read(each.ids) for each in tokenizer.encode_batch(texts)]
        ids = [run.frame.begun()] * len(texts)
    if chat or sources is not None:  # an answer begins on a line of its own
        shown = [f"{text}\n" for text in texts]
    prefix = run.config.objective == "prefix"
    prompts = {"prompts": ids, "sources": sources, "tokens": tokens, "prefix": prefix}
    model, params = run.program.model, run.params
    if search.width > 1:
        steps = search_steps(model, params, end=end, **prompts, **search._asdict())
        speed = Speed(steps, compiling=tokens)
    else:
        speed = Speed(generate(model, params, **prompts, **draws))
    return stream(tokenizer, shown, ids, speed, stops), speed
