"""Which Transformer does a config describe? Its groups, made into the model's own."""

from typing import Any

from jax.sharding import Mesh

from lm.attention import ATTENTIONS
from lm.config import Config, attention_groups, chosen_options
from lm.data.objectives import OBJECTIVES
from lm.errors import UserError
from lm.finetuning import build_finetuning
from lm.finetuning.adapted import AdaptedTransformer
from lm.model.transformer import Transformer
from lm.output import OUTPUTS
from lm.output.sharded import output_shards
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.training.regularization import noises


def build_model(
    config: Config,
    vocab_size: int,
    counts: Any = None,
    mesh: Mesh | None = None,
    layout: Layout | None = None,
) -> Transformer:
    """The Transformer that a config describes, for V words with these counts, [V], in training.

    With a mesh, its devices share the work of the output head. `layout` is of a task's rows.
    """
    groups: dict[str, Any] = {
        name: _attention(group, config.model.max_seq_len)
        for name, group in attention_groups(config).items()
    }
    output = {"head": config.output.head, "tied": config.output.tied}
    for name, value in chosen_options(config.output, ("head", "tied")).items():
        output[name] = tuple(value) if isinstance(value, list) else value
    if OUTPUTS[config.output.head].needs_counts:
        output["counts"] = counts
    _check_num_classes(output, layout.num_classes if layout else 0, vocab_size)
    share = OBJECTIVES[config.objective].share(chosen_options(config.corruption, ()))
    output |= {"share": share} if share < 1.0 else {}
    output["shards"] = None if mesh is None else output_shards(mesh)
    groups |= {"output": output, **config.model}
    if layout is not None:
        groups |= {"readout": build_task(config).readout, "num_classes": layout.num_classes}
    if interceptors := noises(config.regularization) + build_finetuning(config).adapters:
        return AdaptedTransformer(vocab_size=vocab_size, interceptors=interceptors, **groups)
    return Transformer(vocab_size=vocab_size, **groups)


def _check_num_classes(output: dict[str, Any], num_classes: int, vocab_size: int) -> None:
    """Raises UserError where options of the head name more words or labels than there are, or
    weights are not one for each; gathering would not.
    """
    number, kind = num_classes or vocab_size, "labels" if num_classes else "words"
    weights, cutoffs = output.get("class_weights"), output.get("cutoffs") or ()
    if weights is not None and len(weights) != number:
        raise UserError(
            f"config.output.class_weights has {len(weights)} numbers for {number} {kind}; give one "
            "for each"
        )
    if cutoffs and cutoffs[-1] >= number:
        raise UserError(
            f"config.output.cutoffs = {cutoffs}: tail clusters begin below the {number} {kind}; "
            "lower them, or leave them out to have them chosen"
        )
    for name in ("samples", "classes"):
        if output.get(name) is not None and output[name] > number:
            raise UserError(
                f"config.output.{name} = {output[name]} is more than the {number} {kind}; use at "
                "most as many"
            )


def _attention(group: Config, horizon: int) -> dict[str, Any]:
    """A group of attention's knobs as the model takes them."""
    fixed = ("mechanism", "weighting", "query_chunk_size", "learn", "anneal")
    attention = {name: group[name] for name in fixed}
    chosen = chosen_options(group, fixed)
    own = ATTENTIONS[group.mechanism].own_options()
    if "horizon" in own:
        attention["horizon"] = horizon
    attention |= {name: chosen.pop(name) for name in own & set(chosen)}
    attention["options"] = chosen
    return attention
