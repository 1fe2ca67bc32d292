"""Reads the settings with which lm-evaluation-harness asks for continuations, its `gen_kwargs`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]

from lm.errors import UserError
from lm.generation.sample import SamplingParams

_MAX_NEW_TOKENS = 256  # where the harness does not say how many
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_KNOWN = ("until", "max_gen_toks", "do_sample", *_SAMPLING, "seed")
# Settings that are not supported, but have no effect at this value.
_NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}


class GenKwargs(NamedTuple):
    """Settings of generation.

    Attributes:
      max_new_tokens: the longest continuation.
      stops: texts before which a continuation ends.
      sampling: temperature 0 for greedy decoding.
      seed: of sampling.
    """

    max_new_tokens: int
    stops: tuple[str, ...]
    sampling: SamplingParams
    seed: int


def read_gen_kwargs(given: Mapping[str, Any], positions: int) -> GenKwargs:
    """Parses the settings of one request with the harness's own `normalize_gen_kwargs`, which reads
    the synonyms of "max_gen_toks", and "do_sample".

    Without "do_sample" a temperature above 0 samples; with it the default temperature is 1. The
    default length is 256 tokens, or half of the positions. Empty stop strings are left out.

    Args:
      given: the settings.
      positions: positions of the model, for a context and its continuation.

    Raises:
      UserError: a setting is unknown, or its value is out of range.
    """
    named = {name: value for name, value in given.items() if value is not None}
    try:
        longest = min(_MAX_NEW_TOKENS, positions // 2)
        found: dict[str, Any] = dict(normalize_gen_kwargs(named, longest))
        numbers: dict[str, Any] = {name: float(found[name]) for name in _SAMPLING if name in found}
        samples, seed, tokens = found["do_sample"], int(found.get("seed", 0)), found["max_gen_toks"]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"the generation settings {dict(given)} cannot be read: {error}") from None
    for name, value in found.items():
        if name not in _KNOWN and value != _NEUTRAL.get(name, ...):
            raise UserError(
                f"the generation setting {name} = {value!r} is not supported; leave it out, or use "
                f"{', '.join(_KNOWN)}"
            )
    stops = found["until"]
    if not all(isinstance(stop, str) for stop in stops) or samples not in (False, True):
        raise UserError(
            f"of the generation settings, until = {stops} must be texts, and do_sample = "
            f"{samples!r} true or false"
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
    sampling = SamplingParams(**numbers)
    greedy = SamplingParams(temperature=0.0)
    return GenKwargs(tokens, tuple(filter(None, stops)), sampling if samples else greedy, seed)
