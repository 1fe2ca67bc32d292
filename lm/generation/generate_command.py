"""Runs `run.py generate`: continues texts by sampling or beam search and streams them."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax

from lm.checkpoints.restored import Restored
from lm.errors import UserError
from lm.generation.beam import beam_search_steps, check_beam_search
from lm.generation.decode import generate
from lm.generation.prompts import prompt_ids
from lm.generation.sample import SamplingParams
from lm.generation.speed import Speed
from lm.generation.streaming import stream


@dataclasses.dataclass(frozen=True)
class Request:
    """Texts to continue, and how.

    Attributes:
      prompts: the texts; for an encoder-decoder, the inputs of the encoder.
      max_new_tokens: the longest continuation.
      stop_strings: texts before which a continuation ends.
      sampling, seed: of sampling, where there is one beam.
      num_beams, length_penalty: of beam search, where there are more; see `beam_search`.

    Raises:
      UserError: for a request that no model can serve.
    """

    prompts: Sequence[str]
    max_new_tokens: int
    stop_strings: Sequence[str]
    sampling: SamplingParams
    seed: int
    num_beams: int
    length_penalty: float

    def __post_init__(self):
        """Checks the options."""
        check_beam_search(self.num_beams, self.length_penalty, self.max_new_tokens)
        if not self.prompts:
            raise UserError("generate needs --prompt=TEXT; it may be given several times")
        if "" in self.stop_strings:
            raise UserError("--stop_strings= is empty; give it a text, or leave it out")
        if self.num_beams == 1 and self.length_penalty:
            raise UserError("--length_penalty needs beam search; add --num_beams=4, for example")


def generate_texts(
    run: Restored, request: Request, chat: bool = False
) -> tuple[Iterator[str], Speed]:
    """Printable pieces of every text and its continuation, the first as it grows; and their speed.

    With `chat`, prompts are user messages, formatted by the run's chat template.

    Raises:
      UserError: more beams than the vocabulary has tokens, or a text that does not fit.
    """
    tokenizer, texts = run.tokenizer, request.prompts
    if request.num_beams > tokenizer.vocab_size:
        raise UserError(
            f"--num_beams={request.num_beams} is more than the {tokenizer.vocab_size} tokens of "
            "the vocabulary; use fewer, such as --num_beams=4"
        )
    ids, sources = prompt_ids(tokenizer, texts, run.opens), None
    shown, stops, end = list(texts), list(request.stop_strings), tokenizer.end
    if chat:
        ids = [run.chat.encode_prompt([{"role": "user", "content": text}]) for text in texts]
        stops, end = [*stops, *run.chat.stops], run.chat.closes
    if run.config.model.architecture == "encoder_decoder":
        sources = [run.frame.encoder_input(each.ids) for each in tokenizer.encode_batch(texts)]
        ids = [run.frame.decoder_start()] * len(texts)
    if chat or sources is not None:  # an answer starts on a new line
        shown = [f"{text}\n" for text in texts]
    options = {"prompts": ids, "sources": sources, "max_new_tokens": request.max_new_tokens}
    options["prefix"] = run.config.objective == "prefix"
    model, params = run.program.model, run.params
    if request.num_beams > 1:
        options |= {"num_beams": request.num_beams, "length_penalty": request.length_penalty}
        steps = beam_search_steps(model, params, eos_token_id=end, **options)
        speed = Speed(steps, compiling=request.max_new_tokens)
    else:
        options |= {**vars(request.sampling), "seed": request.seed}
        speed = Speed(generate(model, params, **options))
    return _in_mesh(run, stream(tokenizer, shown, ids, speed, stops)), speed


def _in_mesh(run: Restored, pieces: Iterator[str]) -> Iterator[str]:
    with jax.set_mesh(run.program.mesh):
        yield from pieces
