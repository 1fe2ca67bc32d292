"""What a client asks of a model that writes text, as requests for the engine: prompts and
conversations become token ids, and their lengths are checked.
"""

import dataclasses
import secrets
from collections.abc import Mapping, Sequence

import numpy as np

from lm.generation.prompts import add_opening_tokens, prompt_ids
from lm.generation.sample import SamplingParams, count_repeats, request_bytes
from lm.serving.generation import Failure, Request
from lm.serving.service import Service

Prompt = str | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Wish:
    """How continuations are wanted.

    Attributes:
      sampling: of the draws.
      seed: of the draws; None: another one each time.
      max_new_tokens: tokens to draw, at most; None: as many as fit.
      stops: texts before which a continuation ends.
      number: continuations of each prompt.
      num_log_probs: likeliest tokens to report of each draw; None: no log-probabilities.
      streams: whether text is wanted as it comes.
    """

    sampling: SamplingParams
    seed: int | None
    max_new_tokens: int | None
    stops: Sequence[str]
    number: int = 1
    num_log_probs: int | None = None
    streams: bool = False


def continue_prompts(service: Service, prompts: Sequence[Prompt], wish: Wish) -> list[Request]:
    """Requests for `wish.number` continuations of each prompt, in the order of the prompts, as
    `run.py generate` would continue them.

    Args:
      service: whose model; an encoder-decoder reads the prompts in its encoder.
      prompts: texts, or token ids that are taken as they are.
      wish: how.

    Raises:
      Failure: a prompt does not fit, or is no token of the vocabulary.
      UserError: a text cannot be encoded.
    """
    run = service.run
    if run.config.model.architecture == "encoder_decoder":
        sources = [_encoder_input(service, prompt) for prompt in prompts]
        return _requests(service, [run.frame.decoder_start()] * len(prompts), wish, sources)
    ids = [
        prompt_ids(run.tokenizer, [prompt], run.opens)[0]
        if isinstance(prompt, str)
        else add_opening_tokens(run.tokenizer, _checked_ids(service, prompt), ())
        for prompt in prompts
    ]
    return _requests(service, ids, wish)


def answer_messages(
    service: Service, messages: Sequence[Mapping[str, str]], wish: Wish
) -> list[Request]:
    """Requests for the assistant's next answer in a conversation, as the run's chat template has
    it.

    Raises:
      Failure: the conversation does not fit.
      UserError: the template cannot write it.
    """
    chat = service.run.chat
    wish = dataclasses.replace(wish, stops=[*wish.stops, *chat.stops])
    return _requests(service, [chat.encode_prompt(messages)], wish)


def _requests(
    service: Service,
    prompts: Sequence[np.ndarray],
    wish: Wish,
    sources: Sequence[np.ndarray] | None = None,
) -> list[Request]:
    seed = secrets.randbits(31) if wish.seed is None else wish.seed
    each = [i for i in range(len(prompts)) for _ in range(wish.number)]
    given = [[prompts[i]] if sources is None else [prompts[i], sources[i]] for i in each]
    repeats = count_repeats(map(request_bytes, given))
    requests = []
    for arrays, repeat in zip(given, repeats, strict=True):
        prompt = arrays[0]
        room = service.length - len(prompt)
        new = wish.max_new_tokens or room
        if new > room or room < 1:
            raise too_long(service, len(prompt), new)
        requests.append(
            Request(
                prompt=prompt,
                sampling=wish.sampling,
                seed=seed,
                repeat=repeat,
                max_new_tokens=new,
                stops=wish.stops,
                num_log_probs=wish.num_log_probs,
                source=None if sources is None else arrays[1],
                streams=wish.streams,
            )
        )
    return requests


def _encoder_input(service: Service, prompt: Prompt) -> np.ndarray:
    """What an encoder reads of a prompt."""
    if isinstance(prompt, str):
        ids = service.run.tokenizer.encode_batch([prompt])[0].ids
    else:
        ids = _checked_ids(service, prompt)
    source = service.run.frame.encoder_input(ids)
    if len(source) > service.length:
        raise too_long(service, len(source), 0)
    return source


def _checked_ids(service: Service, ids: Sequence[int]) -> np.ndarray:
    size = service.run.tokenizer.vocab_size
    if wrong := [token for token in ids if not 0 <= token < size]:
        raise Failure(
            400,
            "invalid_token",
            f"token {wrong[0]} is not in the vocabulary; use ids from 0 to {size - 1}",
        )
    return np.array(ids, np.int32)


def too_long(service: Service, prompt: int, new: int) -> Failure:
    """Why a prompt of so many tokens and so many new ones is refused."""
    return Failure(
        400,
        "context_length_exceeded",
        f"{prompt} tokens of the prompt and {new} new ones are more than the {service.length} "
        "positions of this server; shorten the prompt, or ask for fewer tokens",
    )
