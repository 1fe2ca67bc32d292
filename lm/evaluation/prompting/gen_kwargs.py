"""Reads the settings with which lm-evaluation-harness asks for continuations, its `gen_kwargs`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]

from lm.errors import UserError
from lm.generation.sample import Choice

_TOKENS = 256  # of a continuation, where the harness does not say how many
_CHOICE = ("temperature", "top_k", "top_p", "min_p")
_KNOWN = ("until", "max_gen_toks", "do_sample", *_CHOICE, "seed")
# What is not known here, but changes nothing at this value.
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}


class GenKwargs(NamedTuple):
    """How continuations are asked for.

    Attributes:
      tokens: of a continuation, at most.
      stops: it ends before the first of these texts.
      choice: of each token; temperature 0 where nothing is drawn.
      seed: of the draws.
    """

    tokens: int
    stops: tuple[str, ...]
    choice: Choice
    seed: int


def read_gen_kwargs(given: Mapping[str, Any], positions: int) -> GenKwargs:
    """What the harness's settings ask for, as its own `normalize_gen_kwargs` reads them: the other
    names of "max_gen_toks", and "do_sample".

    Without "do_sample" a temperature above 0 draws; with it, and without a temperature, that is 1.
    Where the harness does not say how many tokens, there are 256, or as many as half of the
    positions. Empty stop strings are left out.

    Args:
      given: of one request.
      positions: of the model, for a context and its continuation.

    Raises:
      UserError: a setting is not known here, or its value is out of range.
    """
    named = {name: value for name, value in given.items() if value is not None}
    try:
        found: dict[str, Any] = dict(normalize_gen_kwargs(named, min(_TOKENS, positions // 2)))
        numbers = {name: float(found[name]) for name in _CHOICE if name in found}
        drawn, seed, tokens = found["do_sample"], int(found.get("seed", 0)), found["max_gen_toks"]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"the generation settings {dict(given)} cannot be read: {error}") from None
    for name, value in found.items():
        if name not in _KNOWN and value != _NEUTRAL.get(name, ...):
            raise UserError(
                f"the generation setting {name} = {value!r} is not supported; leave it out, or use "
                f"{', '.join(_KNOWN)}"
            )
    stops = found["until"]
    if not all(isinstance(stop, str) for stop in stops) or drawn not in (False, True):
        raise UserError(
            f"of the generation settings, until = {stops} must be texts, and do_sample = {drawn!r} "
            "true or false"
        )
    if not 1 <= tokens < positions:
        raise UserError(
            f"max_gen_toks = {tokens}, but the model has {positions} positions for a context and "
            f"its continuation; use 1 to {positions - 1}"
        )
    if not 0 <= seed < 2**31:
        raise UserError(f"seed = {seed} must be from 0 to {2**31 - 1}")
    if (top_k := numbers.get("top_k", 0.0)).is_integer():
        numbers["top_k"] = int(top_k)
    options: Any = numbers
    choice = Choice(**options)
    greedy = Choice(temperature=0.0)
    return GenKwargs(tokens, tuple(filter(None, stops)), choice if drawn else greedy, seed)
