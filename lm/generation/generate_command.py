"""Runs `run.py generate`: continues texts by sampling or beam search and streams them."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax

from lm.checkpoints.restored import Restored
from lm.errors import UserError
from lm.generation.assisted import Assistant, AssistedDecoding
from lm.generation.beam import beam_search_steps, check_beam_search
from lm.generation.decode import generate
from lm.generation.prompts import prompt_ids
from lm.generation.sample import SamplingParams
from lm.generation.speed import Speed
from lm.generation.streaming import stream

# Options that a search has no use for.
_OF_SAMPLING = "temperature", "top_k", "top_p", "min_p", "seed", "assistant_model"


@dataclasses.dataclass(frozen=True)
class Request:
    """Texts to continue, and how.

    Attributes:
      prompts: the texts; for an encoder-decoder, the inputs of the encoder.
      max_new_tokens: the longest continuation.
      stop_strings: texts before which a continuation ends.
      sampling, seed: of sampling, where there is one beam.
      num_beams, length_penalty: of beam search, where there are more; see `beam_search`.
      num_assistant_tokens: how many tokens an assistant drafts at a time, where there is one.
      chat: prompts are user messages, formatted by the run's chat template.
      given: the names of those options, and of `assistant_model`, that the user has given.

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
    num_assistant_tokens: int = 4
    chat: bool = False
    given: Sequence[str] = ()

    def __post_init__(self):
        """Checks the options."""
        check_beam_search(self.num_beams, self.length_penalty, self.max_new_tokens)
        if not self.prompts:
            raise UserError("generate needs --prompt=TEXT; it may be given several times")
        if "" in self.stop_strings:
            raise UserError("--stop_strings= is empty; give it a text, or leave it out")
        assisted = "assistant_model" in self.given
        if self.num_beams > 1 and (others := [x for x in self.given if x in _OF_SAMPLING]):
            raise UserError(
                f"--num_beams={self.num_beams} does not sample; leave out --{others[0]}"
            )
        if "num_assistant_tokens" in self.given and not assisted:
            raise UserError("--num_assistant_tokens needs --assistant_model=WORKDIR; add it")
        if self.num_beams == 1 and self.length_penalty:
            raise UserError("--length_penalty needs beam search; add --num_beams=4, for example")


def generate_texts(
    run: Restored, request: Request, assistant: Restored | None = None
) -> tuple[Iterator[str], Speed]:
    """Printable pieces of every text and its continuation, the first as it grows; and their speed.

    Args:
      run: the model that continues them.
      request: what to continue, and how.
      assistant: a run that drafts for it; see `AssistedDecoding`.

    Raises:
      UserError: more beams than the vocabulary has tokens, a text that does not fit, or an
        assistant that cannot draft for this run.
    """
    tokenizer, texts = run.tokenizer, request.prompts
    if request.num_beams > tokenizer.vocab_size:
        raise UserError(
            f"--num_beams={request.num_beams} is more than the {tokenizer.vocab_size} tokens of "
            "the vocabulary; use fewer, such as --num_beams=4"
        )
    ids, sources = prompt_ids(tokenizer, texts, run.opens), None
    shown, stops, end = list(texts), list(request.stop_strings), tokenizer.end
    if request.chat:
        ids = [run.chat.encode_prompt([{"role": "user", "content": text}]) for text in texts]
        stops, end = [*stops, *run.chat.stops], run.chat.closes
    if run.config.model.architecture == "encoder_decoder":
        sources = [run.frame.encoder_input(each.ids) for each in tokenizer.encode_batch(texts)]
        ids = [run.frame.decoder_start()] * len(texts)
    if request.chat or sources is not None:  # an answer starts on a new line
        shown = [f"{text}\n" for text in texts]
    options = {"prompts": ids, "sources": sources, "max_new_tokens": request.max_new_tokens}
    options["prefix"] = run.config.objective == "prefix"
    model, params = run.program.model, run.params
    if request.num_beams > 1:
        options |= {"num_beams": request.num_beams, "length_penalty": request.length_penalty}
        steps = beam_search_steps(model, params, eos_token_id=end, **options)
        speed = Speed(steps, compiling=request.max_new_tokens)
    elif assistant is not None:
        _check_assistant(run, assistant)
        drafts = Assistant(assistant.program.model, assistant.params, request.num_assistant_tokens)
        options |= {"sampling": request.sampling, "seed": request.seed, "assistant": drafts}
        decoding = AssistedDecoding(model, params, **options)
        speed = Speed(decoding, details=decoding)
    else:
        options |= {**vars(request.sampling), "seed": request.seed}
        speed = Speed(generate(model, params, **options))
    return _in_mesh(run, stream(tokenizer, shown, ids, speed, stops)), speed


def _check_assistant(run: Restored, assistant: Restored) -> None:
    if run.tokenizer.hash != assistant.tokenizer.hash:
        raise UserError(
            f"the assistant's tokenizer ({assistant.tokenizer.name}) is not the model's "
            f"({run.tokenizer.name}); use an assistant that was trained with the same one"
        )
    devices, others = (each.program.mesh.devices.size for each in (run, assistant))
    if devices != others:
        raise UserError(
            f"the model is split over {devices} devices and the assistant over {others}; use an "
            "assistant whose config.mesh takes as many"
        )


def _in_mesh(run: Restored, pieces: Iterator[str]) -> Iterator[str]:
    with jax.set_mesh(run.program.mesh):
        yield from pieces
