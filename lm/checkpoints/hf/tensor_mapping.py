"""Maps our parameters to the tensors of a checkpoint of transformers. The mappings of a family are
one table, by which checkpoints are both read and written.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

# Stands for a layer in both names: for its number in a tensor's, for its module in a parameter's.
LAYER = "{layer}"


class Tensor(Protocol):
    """A tensor of a checkpoint, of which slices are read from disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """One of our parameters as a part of a tensor of transformers.

    Attributes:
      hf: the tensor's name, in which `LAYER` is the layer's number.
      param: the parameter's path, in which `LAYER` is the layer's module.
      transposed: the tensor is [out, in] where the parameter is [in, out].
      part: (k, n): the parameter is the k-th of n equal parts of the tensor along its last axis.
      skip_rows: rows of the tensor before the parameter's first; written as zeros.
      unsqueezed: the tensor has a first axis of one more than the parameter.
    """

    hf: str
    param: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)
    skip_rows: int = 0
    unsqueezed: bool = False

    def hf_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The tensor's shape, where the parameter has this one."""
        sizes = list(shape)
        sizes[-1] *= self.part[1]
        sizes[0] += self.skip_rows
        return (1,) * self.unsqueezed + tuple(reversed(sizes) if self.transposed else sizes)

    def read(self, tensor: Tensor, index: Sequence[slice], shape: Sequence[int]) -> np.ndarray:
        """The parameter's elements at `index`, of the whole parameter of this shape."""
        array = tensor[self._hf_index(index, shape)]
        array = array[0] if self.unsqueezed else array
        return array.T if self.transposed else array

    def write(self, array: np.ndarray, value: np.ndarray) -> None:
        """Puts the whole parameter into its place in the tensor."""
        index = self._hf_index([slice(None)] * value.ndim, value.shape)
        value = value.T if self.transposed else value
        array[index] = value[None] if self.unsqueezed else value

    def _hf_index(self, index: Sequence[slice], shape: Sequence[int]) -> tuple[slice, ...]:
        bounds = [list(s.indices(n)[:2]) for s, n in zip(index, shape, strict=True)]
        bounds[-1] = [bound + self.part[0] * shape[-1] for bound in bounds[-1]]
        bounds[0] = [bound + self.skip_rows for bound in bounds[0]]
        slices = [slice(*bound) for bound in bounds]
        return (slice(0, 1),) * self.unsqueezed + tuple(slices[::-1] if self.transposed else slices)


def linear(hf: str, param: str) -> tuple[TensorMapping, ...]:
    """A matrix [out, in] and its bias."""
    return (
        TensorMapping(f"{hf}.weight", f"{param}/kernel", transposed=True),
        TensorMapping(f"{hf}.bias", f"{param}/bias"),
    )


def linears(hf: str, param: str, names: Mapping[str, str]) -> tuple[TensorMapping, ...]:
    """Several `linear`, by their last names in transformers and here."""
    return tuple(m for a, b in names.items() for m in linear(f"{hf}.{a}", f"{param}/{b}"))


def head_table(hf: str) -> tuple[TensorMapping, ...]:
    """The output table [outcomes, in], which is not transposed, and its bias."""
    return (TensorMapping(f"{hf}.weight", "head/table"), TensorMapping(f"{hf}.bias", "head/bias"))


def norm(hf: str, param: str) -> tuple[TensorMapping, ...]:
    """The scale of a norm, and its bias."""
    return (
        TensorMapping(f"{hf}.weight", f"{param}/scale"),
        TensorMapping(f"{hf}.bias", f"{param}/bias"),
    )


def in_layers(hf: str, param: str, *groups: Sequence[TensorMapping]) -> tuple[TensorMapping, ...]:
    """Mappings of a layer's parts as mappings of every layer's, below the names of its layers."""
    return tuple(
        dataclasses.replace(m, hf=f"{hf}.{m.hf}", param=f"{param}/{LAYER}/{m.param}")
        for group in groups
        for m in group
    )


@dataclasses.dataclass(frozen=True)
class ParamSource:
    """Where one of our parameters stands: a tensor, or one for each layer of a stacked parameter.

    Attributes:
      mapping: which part of each tensor it is.
      tensors: their names.
      stacked: the parameter's first axis counts the tensors.
    """

    mapping: TensorMapping
    tensors: tuple[str, ...]
    stacked: bool

    def hf_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of each tensor, where the parameter has this one."""
        return self.mapping.hf_shape(shape[1:] if self.stacked else shape)

    def read(
        self, tensors: Mapping[str, Tensor], index: Sequence[slice], shape: Sequence[int]
    ) -> np.ndarray:
        """The parameter's elements at `index`, read from the tensors by name."""
        if not self.stacked:
            return self.mapping.read(tensors[self.tensors[0]], index, shape)
        layers = [tensors[name] for name in self.tensors[index[0]]]
        return np.stack([self.mapping.read(layer, index[1:], shape[1:]) for layer in layers])


def param_sources(mappings: Sequence[TensorMapping], num_layers: int) -> dict[str, ParamSource]:
    """Where each of our parameters stands, by its path, whether layers are stacked or not."""
    found = {}
    for m in mappings:
        if LAYER not in m.param:
            found[m.param] = ParamSource(m, (m.hf,), stacked=False)
            continue
        names = tuple(m.hf.replace(LAYER, str(layer)) for layer in range(num_layers))
        for layer, name in enumerate(names):
            found[m.param.replace(LAYER, f"layer_{layer}")] = ParamSource(m, (name,), False)
        found[m.param.replace(LAYER, "layers")] = ParamSource(m, names, stacked=True)
        found[m.param.replace(LAYER, "shared_layer")] = ParamSource(m, (m.hf,), False)
    return found
