"""Checks options: they must belong to the chosen mechanism, weighting, head and methods, and suit
the model around them.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from lm.attention import ATTENTIONS, Mechanism
from lm.config import Config, chosen_options, frozen
from lm.data.objectives import OBJECTIVES
from lm.errors import UserError, one_of
from lm.finetuning import METHODS, NO_OPTIONS, max_text_len, method_names
from lm.model.config import POSITIONS
from lm.model.resolve import attention_groups, attention_options, model_config
from lm.output import OUTPUTS
from lm.output.base import Head
from lm.softmax import WEIGHTINGS
from lm.training.regularization.check import check_regularization


def check_options(config: Config) -> None:
    """Options must belong to the chosen objective, mechanisms, their weightings, and head."""
    chosen = chosen_options(config.corruption, ())
    own = OBJECTIVES[config.objective].own_options()
    _belong(chosen, own, "corruption", f"objective {config.objective}")
    if config.model.architecture != "encoder_decoder":
        for name in ("encoder_attention", "cross_attention"):
            if chosen_options(config[name], ()):
                raise UserError(
                    f"config.{name} is set, but config.model.architecture = "
                    f"{config.model.architecture!r} has config.attention only"
                )
    for name, attention in attention_groups(config).items():
        _check_attention(config, name, attention)
        _check_mechanism(config, name, attention)
    _check_output(config)
    _check_tune(config)
    check_regularization(config)


def _check_attention(config: Config, group: str, attention: Config) -> None:
    weighting, name = attention.weighting, attention.mechanism
    mechanism = ATTENTIONS[name]
    chosen = attention_options(attention)
    own, owner = mechanism.own_options(), f"mechanism {name}"
    if not mechanism.owns_weights:
        owner = f"weighting {weighting}" + (f" with {owner}" if name != "scores" else "")
        record = WEIGHTINGS[weighting]
        _belong(chosen, own | {*record.options, *record.learned}, group, owner)
        _check_weighting(group, attention, chosen)
        if attention.anneal:
            _check_anneal(group, attention, chosen)
    elif weighting != "softmax" or attention.learn or attention.anneal:
        learned = "learn" if attention.learn else "anneal"
        key = learned if weighting == "softmax" else "weighting"
        raise UserError(
            f"config.{group}.{key} = {frozen(attention[key])!r} is not used by {owner}, which has "
            "weights of its own; leave it out"
        )
    else:
        _belong(chosen, own, group, owner)


def _check_output(config: Config) -> None:
    chosen = chosen_options(config.output, ("head", "tied", "token_chunk_size"))
    name, head = config.output.head, OUTPUTS[config.output.head]
    own = set(head.__dataclass_fields__) - {*Head.__dataclass_fields__, "counts"}
    _belong(chosen, own, "output", name)
    if config.output.tied and not head.tieable:
        raise UserError(f"head {name} has no table of tokens to tie; use config.output.tied=False")
    if head.sequence_level and config.model.architecture != "encoder":
        raise UserError(f"head {name} sees a row's later tokens; it suits no causal objective")
    mixtures = chosen.get("mixtures", 2)
    if name == "mixtape" and mixtures & (mixtures - 1):
        raise UserError(f"config.output.mixtures = {mixtures}: mixtape needs 1, 2, 4, 8, ...")
    cutoffs = [0, *chosen.get("cutoffs", ()), config.data.vocab_size or math.inf]
    if any(low >= high for low, high in itertools.pairwise(cutoffs)):
        raise UserError(
            f"config.output.cutoffs = {tuple(chosen['cutoffs'])}: must rise, from at least 1 to "
            f"below the {config.data.vocab_size or 'number of'} tokens"
        )


def _check_mechanism(config: Config, group: str, attention: Config) -> None:
    """Architecture, positions and sizes must suit the chosen mechanism."""
    model = config.model
    name, mechanism = attention.mechanism, ATTENTIONS[attention.mechanism]
    if mechanism.causal_only and (group != "attention" or model.architecture == "encoder"):
        raise UserError(
            f"config.{group}.mechanism = {name!r} is causal only, but "
            f"config.model.architecture = {model.architecture!r} sees both sides; use a decoder"
        )
    if mechanism.self_only and group == "cross_attention":
        raise UserError(
            f"config.{group}.mechanism = {name!r} is of a position's own key and value, which "
            "cross-attention does not have; use scores, gated or laser there"
        )
    if mechanism.causal_only and config.objective == "prefix":
        raise UserError(
            f"config.{group}.mechanism = {name!r} is causal only, but objective prefix sees both "
            "sides of a prefix; use objective causal"
        )
    shaping = Mechanism.position_embeddings if group != "cross_attention" else ()
    if (
        model.position_embedding in shaping
        and model.position_embedding not in mechanism.position_embeddings
    ):
        others = [p for p in POSITIONS if p not in shaping or p in mechanism.position_embeddings]
        raise UserError(
            f"config.model.position_embedding = {model.position_embedding!r} shape scores that "
            f"mechanism {name} does not have; use {', '.join(others[:-1])} or {others[-1]}"
        )
    if attention.horizon is not None and attention.horizon < model.max_seq_len:
        raise UserError(
            f"config.{group}.horizon = {attention.horizon} is below config.model.max_seq_len = "
            f"{model.max_seq_len}, and weights beyond it are negative; raise it or lower "
            f"max_seq_len"
        )
    unit = 4 if model.position_embedding == "rotary" else 2
    head_dim = model_config(config).stack.block.attention.head_dim
    if name == "differential" and head_dim % unit:
        raise UserError(
            f"mechanism differential splits each head in two, but with {model.position_embedding} "
            f"positions the head size {head_dim} is no multiple of {unit}; use one"
        )


def _check_weighting(group: str, attention: Config, chosen: Mapping[str, Any]) -> None:
    """What is learned can be, and starts inside its range; fixed options lie in theirs."""
    weighting = attention.weighting
    record = WEIGHTINGS[weighting]
    for name in attention.learn:
        if name not in record.learnable:
            can = ", ".join(record.learnable) or "none"
            raise UserError(
                f"config.{group}.learn has {name!r}, but weighting {weighting} can learn: {can}"
            )
        limits, start = record.learnable[name], {**record.options, **chosen}[name]
        if start is None:
            raise UserError(
                f"config.{group}.learn has {name!r}, which needs a number to start from; set "
                f"config.{group}.{name}"
            )
        if not limits.low < start < limits.high:
            raise UserError(
                f"config.{group}.{name} = {start} cannot be learned from there; start above "
                f"{limits.low:g} and below {limits.high:g}"
            )
    alpha = attention.alpha
    if alpha is None:
        return
    if weighting in ("entmax", "asentmax"):
        if alpha <= 0:
            raise UserError(f"config.{group}.alpha = {alpha}: must be above 0")
    elif not 1.001 <= alpha <= (2.0 if weighting == "alpha_relu" else math.inf):
        most = "to 2" if weighting == "alpha_relu" else "up"
        raise UserError(f"config.{group}.alpha = {alpha}: must be from 1.001 {most}")


def _check_anneal(group: str, attention: Config, chosen: Mapping[str, Any]) -> None:
    """What is annealed can be learned, is not, and stays in its range."""
    ranges = WEIGHTINGS[attention.weighting].learnable
    schedule, what = tuple(attention.anneal), f"config.{group}.anneal"
    try:
        name, first, last, steps = schedule
        numbers = [float(first), float(last), float(steps)]
    except (TypeError, ValueError):
        raise UserError(
            f"{what} = {schedule}: must be an option, two values and steps, such as "
            '("alpha", 1.0, 1.5, 1000)'
        ) from None
    if name not in ranges:
        can = ", ".join(ranges) or "none"
        raise UserError(f"{what} has {name!r}, but weighting {attention.weighting} can move: {can}")
    if name in attention.learn or name in chosen:
        raise UserError(f"{what} moves {name}, which is also set or learned; leave one out")
    low, high = ranges[name].low, ranges[name].high
    # Entmax has its ends, softmax and sparsemax; a cap of 0 and a temperature of 0 do not exist.
    ends = (low, high) if name == "alpha" else ()
    if numbers[2] < 1 or not all(low < value < high or value in ends for value in numbers[:2]):
        raise UserError(
            f"{what} = {schedule}: values must be between {low:g} and {high:g}, steps at least 1"
        )


def _check_tune(config: Config) -> None:
    """Methods must exist, fit together, own the options that are set, and have a base."""
    method, names = config.finetuning.method, method_names(config)
    for name in names:
        one_of("finetuning.method", name, METHODS)
    added = [METHODS[name].adapter.name for name in names if METHODS[name].adapter is not None]
    if len(set(names)) < len(names) or len(set(added)) < len(added):
        raise UserError(
            f"config.finetuning.method = {method!r} adds the same twice; take one of them"
        )
    if "dora" in names and "ia3" in names[names.index("dora") :]:
        raise UserError(
            f"config.finetuning.method = {method!r}: dora measures the matrix, which ia3 has "
            "scaled already; name ia3 before dora"
        )
    own = {option for name in names for option in METHODS[name].options}
    _belong(chosen_options(config.finetuning, NO_OPTIONS), own, "finetuning", f"method {method}")
    trained, layers = config.finetuning.num_layers, config.model.num_layers
    if trained is not None and trained > layers:
        raise UserError(
            f"config.finetuning.num_layers = {trained} is more than config.model.num_layers = "
            f"{layers}; use at most as many"
        )
    mechanism = ATTENTIONS[config.attention.mechanism]
    alone = mechanism.owns_weights or mechanism.causal_only or mechanism.self_only
    if "prefix" in names and alone:
        raise UserError(
            f"method prefix adds keys and values only, but mechanism {config.attention.mechanism} "
            "needs more of a position; use prompt or lora, or mechanism scores"
        )
    if "prompt" in names and config.data.seq_len > (most := max_text_len(config)):
        raise UserError(
            f"config.data.seq_len = {config.data.seq_len} is longer than the {most} positions that "
            f"the prompt leaves of config.model.max_seq_len = {config.model.max_seq_len}; "
            f"shorten it"
        )
    if "full" not in names and not config.init_from:
        raise UserError(
            f"config.finetuning.method = {method!r} tunes a base that is trained already; give its "
            "folder as config.init_from, or use method full"
        )


def check_packed(config: Config) -> None:
    """Raises UserError where texts that share rows would share what each should have of its own.

    A learned prompt that reads the text, in an encoder or before a prefix that is seen whole,
    would have to be there once for each text.
    """
    reads = config.model.architecture != "decoder" or config.objective == "prefix"
    if "prompt" in method_names(config) and reads and not config.task.name:
        raise UserError(
            f"method prompt reads the text of a row, but objective {config.objective} packs "
            "several texts into a row; use prefix or lora, or a task (config.task.name), whose "
            "rows hold one text each"
        )


def _belong(chosen: Iterable[str], own: Iterable[str], group: str, owner: str) -> None:
    for key in chosen:
        if key not in own:
            options = ", ".join(sorted(own)) or "none"
            raise UserError(f"config.{group}.{key} is set, but {owner} has the options: {options}")
