"""Builds the Transformer of a config for its data, its task and its devices."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from lm.config import Config, chosen_options
from lm.data.objectives import OBJECTIVES
from lm.devices import sharding
from lm.errors import UserError
from lm.finetuning.adapted import AdaptedTransformer
from lm.model.config import OutputSpace
from lm.model.transformer import Transformer
from lm.output import OUTPUTS
from lm.output.sharded import output_shards
from lm.tasks import build_task
from lm.tasks.layout import Layout
from lm.training.config import resolve
from lm.training.regularization import noises


def build_model(
    config: Config,
    vocab_size: int,
    counts: tuple[int, ...] | None = None,
    mesh: Mesh | None = None,
    layout: Layout | None = None,
) -> Transformer:
    """The Transformer that a config describes.

    Args:
      config: every key.
      vocab_size: V.
      counts: of the vocabulary's tokens in the training text, [V], for heads that ask.
      mesh: the devices that share the work of the output head; None: one has it all.
      layout: of a task's rows; None: the rows are text.

    Raises:
      UserError: an option of the head names more tokens or labels than there are.
    """
    outputs = OutputSpace(
        num_classes=layout.num_classes if layout else 0,
        real_targets=layout is not None and build_task(config).real_targets,
        readout=build_task(config).readout if layout else "all_positions",
        target_fraction=OBJECTIVES[config.objective].share(chosen_options(config.corruption, ())),
        counts=counts if OUTPUTS[config.output.head].needs_counts else None,
        shards=None if mesh is None else output_shards(mesh),
    )
    settings = resolve(config)
    model, adapters = settings.model, settings.finetuning.adapters
    _check_num_classes(dict(model.head.options), outputs.num_classes, vocab_size)
    if interceptors := noises(settings.regularization) + adapters:
        return AdaptedTransformer(model, vocab_size, outputs, interceptors=interceptors)
    return Transformer(model, vocab_size, outputs)


def check_devices(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config, over all devices or those given, once batch, positions and heads are
    known to divide over it.

    Raises:
      UserError: where they do not.
    """
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    sharding.check_batch(mesh, config.batch_size, config.grad_accum_steps)
    sharding.check_positions(mesh, config.data.seq_len)
    attention = resolve(config).model.stack.block.attention
    sharding.check_heads(mesh, attention.num_heads, attention.num_kv_heads)
    return mesh


def _check_num_classes(options: Mapping[str, Any], num_classes: int, vocab_size: int) -> None:
    """Raises UserError where options of the head name more words or labels than there are."""
    number, kind = num_classes or vocab_size, "labels" if num_classes else "words"
    weights, cutoffs = options.get("class_weights"), options.get("cutoffs") or ()
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
        if options.get(name) is not None and options[name] > number:
            raise UserError(
                f"config.output.{name} = {options[name]} is more than the {number} {kind}; use at "
                "most as many"
            )
