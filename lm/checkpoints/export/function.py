"""A run's model as one pure function of arrays, with its parameters bound: what every format of
another runtime is made of.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import export
from jax.extend import core

from lm.checkpoints.compression import dequantized_params, quantized_params
from lm.checkpoints.layer_layout import named_leaves, params_in_layout
from lm.checkpoints.restored import Restored
from lm.config import replace_within
from lm.devices.platform import portable
from lm.model.batch import Batch
from lm.model.transformer import Transformer
from lm.output import OUTPUTS

Dimension = str | int  # a name where a caller chooses the size, else the size
Params = Mapping[str, Any]
# The names that transformers has for the fields of a batch; of an encoder-decoder the second.
_NAMES = {
    "encoder_inputs": ("", "input_ids"),
    "encoder_segments": ("", "attention_mask"),
    "inputs": ("input_ids", "decoder_input_ids"),
    "segments": ("attention_mask", "decoder_attention_mask"),
    "token_types": ("token_type_ids", "token_type_ids"),
    "prefix": ("prefix_mask", "prefix_mask"),
    "target_positions": ("target_positions", "target_positions"),
    "weights": ("target_mask", "target_mask"),
}
# What JAX raises where a computation depends on a size that is left to the caller.
_NEEDS_SIZE = (core.InconclusiveDimensionOperation, NotImplementedError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, as jit asks
class ExportedFunction:
    """A model of arrays of int32 to log-probabilities in nats, float32, or to real values.

    Masks are 0 at padding and 1 at tokens; packed rows number their documents 1, 2, ..., which do
    not see each other, and whose positions count from 0.

    Attributes:
      model: in float32, with its layers one by one and every query at once.
      params: float32, or `Quantized` where the run is compressed; of no device.
      inputs: for each argument the field of a batch, and the sizes [B, L], ...; see `names`.
      sizes: by name, as the run's rows have them; one row.
      targets: T, targets of a row; "length" where every position has one.
      reads: the one position that a task reads out, "first" or "last"; "" where it is another.
      output: "log_probs" [B, T, V], or "values" [B, T] of real targets.
      max_length: the most positions of a row that the model has; None: any number.
    """

    model: Transformer
    params: Params
    inputs: Mapping[str, tuple[Dimension, ...]]
    sizes: Mapping[str, int]
    targets: Dimension
    reads: str
    output: str
    max_length: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arguments, in order."""
        both = self.model.config.encoder is not None
        return tuple(_NAMES[field][both] for field in self.inputs)

    def __call__(self, *arrays: jax.Array) -> jax.Array:
        """The output of one array for each of `names`."""
        return self.compute(jax.tree.map(jnp.asarray, self.params), *arrays)

    def compute(self, params: Params, *arrays: jax.Array) -> jax.Array:
        """The output with other parameters."""
        with portable():
            return outputs(self.model, dequantized_params(params), self._batch(arrays))

    def shapes(self, free: Collection[str]) -> dict[str, jax.ShapeDtypeStruct]:
        """The arguments by name, in which the sizes of these names are left to the caller."""
        sizes: dict[Dimension, Any] = {k: v for k, v in self.sizes.items() if k not in free}
        if free:
            most = (f"length <= {self.max_length}",) if self._limited & set(free) else ()
            names = ", ".join(sorted(free))
            sizes |= zip(sorted(free), export.symbolic_shape(names, constraints=most), strict=True)
        shapes = (tuple(sizes.get(d, d) for d in dims) for dims in self.inputs.values())
        arrays = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes)
        return dict(zip(self.names, arrays, strict=True))

    def free_sizes(self) -> tuple[str, ...]:
        """The names of the sizes that can be left to the caller: all, the batch's, or none."""
        for free in (tuple(self.sizes), ("batch",)):
            try:
                jax.eval_shape(self, *self.shapes(free).values())
                return free
            except _NEEDS_SIZE:
                continue
        return ()

    @property
    def _limited(self) -> set[str]:
        return set() if self.max_length is None else {"length"}

    def arrays(self, batch: Batch) -> dict[str, np.ndarray]:
        """The arguments, by name, that ask what a batch asks; with its weights as a mask."""
        found = {}
        for name, field in zip(self.names, self.inputs, strict=True):
            array = np.asarray(getattr(batch, field))
            found[name] = (array > 0 if field == "weights" else array).astype(np.int32)
        return found

    def _batch(self, arrays: tuple[jax.Array, ...]) -> Batch:
        given = dict(zip(self.inputs, arrays, strict=True))
        inputs, segments = given["inputs"], given["segments"]
        length = inputs.shape[-1] if self.targets == "length" else self.targets
        if "target_positions" in given:
            length = given["target_positions"].shape[-1]
        shape = (inputs.shape[0], length)
        weights = given.get("weights")
        encoder = given.get("encoder_segments")
        return Batch(
            inputs=inputs,
            targets=jnp.zeros(shape, jnp.int32),
            weights=jnp.ones(shape) if weights is None else weights.astype(jnp.float32),
            segments=segments,
            positions=positions_within(segments),
            encoder_inputs=given.get("encoder_inputs"),
            encoder_segments=encoder,
            encoder_positions=None if encoder is None else positions_within(encoder),
            token_types=given.get("token_types"),
            prefix=given["prefix"] > 0 if "prefix" in given else None,
            target_positions=self._read(segments) if self.reads else given.get("target_positions"),
        )

    def _read(self, segments: jax.Array) -> jax.Array:
        """The position that is read out of each row, [B, 1]."""
        last = jnp.sum(segments > 0, axis=1, keepdims=True, dtype=jnp.int32) - 1
        return jnp.maximum(last, 0) if self.reads == "last" else jnp.zeros_like(last)


def exported_function(run: Restored) -> ExportedFunction:
    """The function of a run's model, whatever devices and layout of layers it was trained with."""
    program = run.program
    rows = program.objective.abstract_rows(1)
    batch = jax.eval_shape(program.objective, rows, jax.random.key(0))
    model, fields = plain_model(program.model), _fields(program.model, batch)
    alone = (
        run.config.task.name in ("classification", "regression") and batch.targets.shape[-1] == 1
    )
    if alone:  # where it stands in a row follows from the mask
        fields = [name for name in fields if name != "target_positions"]
    free_targets = model.outputs.readout == "target_positions"
    shapes = {name: getattr(batch, name).shape for name in fields}
    dims = {name: _dimensions(name, shape, free_targets) for name, shape in shapes.items()}
    pairs = (pair for name in fields for pair in zip(dims[name], shapes[name], strict=True))
    every = model.outputs.readout == "all_positions"
    params = _params(model, run.params, batch)
    return ExportedFunction(
        model=model,
        params=quantized_params(params, run.compression) if run.compression else params,
        inputs=dims,
        sizes={name: size for name, size in pairs if isinstance(name, str)},
        targets="length" if every else batch.targets.shape[-1],
        reads=run.config.task.pooling if alone and free_targets else "",
        output="values" if model.outputs.real_targets else "log_probs",
        max_length=_max_length(model),
    )


def plain_model(model: Transformer) -> Transformer:
    """The same model in float32, with its layers one by one and every query at once."""
    plain = {"query_chunk_size": 0, "token_chunk_size": 0, "remat": False, "scan": False}
    float32 = {"dtype": "float32", "param_dtype": "float32"}
    outputs = dataclasses.replace(model.outputs, shards=None, target_fraction=1.0)
    return model.clone(config=replace_within(model.config, **plain, **float32), outputs=outputs)


def outputs(model: Transformer, params: Params, batch: Batch) -> jax.Array:
    """Log-probabilities [B, T, V] in nats of what a batch asks; of real targets values [B, T]."""

    def answer(model: Transformer, batch: Batch) -> jax.Array:
        return model.head_outputs(model.states(batch), batch)

    return jnp.asarray(model.apply({"params": params}, batch, method=answer), jnp.float32)


def positions_within(segments: jax.Array) -> jax.Array:
    """How many earlier positions of a row [..., L] are in the same segment."""
    length = segments.shape[-1]
    places = jnp.arange(length)
    same = segments[..., :, None] == segments[..., None, :]
    earlier = places[None, :] < places[:, None]
    return jnp.sum(same & earlier, axis=-1, dtype=jnp.int32)


def _fields(model: Transformer, batch: Batch) -> list[str]:
    """The fields of a batch that the model reads."""
    left_out = {"weights"} if not OUTPUTS[model.config.head.head].sequence_level else set()
    if not model.config.embedding.num_token_types:
        left_out.add("token_types")
    return [x for x in _NAMES if x not in left_out and getattr(batch, x) is not None]


def _dimensions(field: str, shape: tuple[int, ...], free_targets: bool) -> tuple[Dimension, ...]:
    if field in ("target_positions", "weights"):
        return ("batch", *shape[1:-1], "targets" if free_targets else shape[-1])
    length = "encoder_length" if field.startswith("encoder") else "length"
    return ("batch", *shape[1:-1], length)


def _max_length(model: Transformer) -> int | None:
    embedding = model.config.embedding
    learned = embedding.position_embedding == "learned"
    return embedding.max_seq_len if learned else None


def _params(model: Transformer, params: Params, batch: Batch) -> Params:
    """Parameters in the layout of a model, on the host."""
    keys = {"params": jax.random.key(0), "softmax": jax.random.key(0)}
    shapes = jax.eval_shape(lambda batch: model.init(keys, batch, False, method="loss"), batch)
    found = params_in_layout(named_leaves(params), named_leaves(shapes["params"]).keys())
    return unflatten_dict(
        {
            tuple(name.split("/")): np.asarray(jax.device_get(x), np.float32)
            for name, x in found.items()
        }
    )
