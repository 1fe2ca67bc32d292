"""How is one of our parameters found in a checkpoint? As a view of one of its tensors; the views of
a family are one table, which reads a checkpoint and, the other way round, writes one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

# Stands for a layer in both names: for its number in theirs, for its module in ours.
LAYER = "{layer}"


class Tensor(Protocol):
    """A tensor of a checkpoint, of which slices are read from disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class View:
    """One of our parameters as a part of one of their tensors.

    Attributes:
      theirs: the tensor's name, in which `LAYER` is the layer's number.
      ours: the parameter's path, in which `LAYER` is the layer's module.
      transposed: theirs is [out, in] where ours is [in, out].
      part: (k, n): ours is the k-th of n equal parts of theirs along the last axis.
      skip: rows of theirs before the first of ours; written as zeros.
      unsqueezed: theirs has a first axis of one more than ours.
    """

    theirs: str
    ours: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)
    skip: int = 0
    unsqueezed: bool = False

    def their_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The tensor's shape, where the parameter has this one."""
        sizes = list(shape)
        sizes[-1] *= self.part[1]
        sizes[0] += self.skip
        return (1,) * self.unsqueezed + tuple(reversed(sizes) if self.transposed else sizes)

    def read(self, tensor: Tensor, index: Sequence[slice], shape: Sequence[int]) -> np.ndarray:
        """The parameter's elements at `index`, of the whole parameter of this shape."""
        return self._ours(tensor[self._place(index, shape)])

    def write(self, array: np.ndarray, value: np.ndarray) -> None:
        """Puts the whole parameter into its place in the tensor."""
        place = self._place([slice(None)] * value.ndim, value.shape)
        value = value.T if self.transposed else value
        array[place] = value[None] if self.unsqueezed else value

    def _place(self, index: Sequence[slice], shape: Sequence[int]) -> tuple[slice, ...]:
        bounds = [list(s.indices(n)[:2]) for s, n in zip(index, shape, strict=True)]
        bounds[-1] = [bound + self.part[0] * shape[-1] for bound in bounds[-1]]
        bounds[0] = [bound + self.skip for bound in bounds[0]]
        place = [slice(*bound) for bound in bounds]
        return (slice(0, 1),) * self.unsqueezed + tuple(place[::-1] if self.transposed else place)

    def _ours(self, array: np.ndarray) -> np.ndarray:
        array = array[0] if self.unsqueezed else array
        return array.T if self.transposed else array


def linear(theirs: str, ours: str) -> tuple[View, ...]:
    """A matrix [out, in] and its bias."""
    return (
        View(f"{theirs}.weight", f"{ours}/kernel", transposed=True),
        View(f"{theirs}.bias", f"{ours}/bias"),
    )


def norm(theirs: str, ours: str) -> tuple[View, ...]:
    """The scale of a norm, and its bias."""
    return View(f"{theirs}.weight", f"{ours}/scale"), View(f"{theirs}.bias", f"{ours}/bias")


def in_layers(theirs: str, ours: str, *groups: Sequence[View]) -> tuple[View, ...]:
    """Views of a layer's parts as views of every layer's, below the names of its layers."""
    return tuple(
        dataclasses.replace(v, theirs=f"{theirs}.{v.theirs}", ours=f"{ours}/{LAYER}/{v.ours}")
        for group in groups
        for v in group
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one of our parameters stands: a tensor, or one for each layer of a stacked parameter.

    Attributes:
      view: what part it is.
      names: of the tensors.
      stacked: the parameter's first axis counts the tensors.
    """

    view: View
    names: tuple[str, ...]
    stacked: bool

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of each tensor, where the parameter has this one."""
        return self.view.their_shape(shape[1:] if self.stacked else shape)

    def read(self, tensors: Any, index: Sequence[slice], shape: Sequence[int]) -> np.ndarray:
        """The parameter's elements at `index`, read from the tensors by name."""
        if not self.stacked:
            return self.view.read(tensors[self.names[0]], index, shape)
        layers = [tensors[name] for name in self.names[index[0]]]
        return np.stack([self.view.read(layer, index[1:], shape[1:]) for layer in layers])


def sources(views: Sequence[View], layers: int) -> dict[str, Source]:
    """Where each of our parameters stands, by its path, whether layers are stacked or not."""
    found = {}
    for view in views:
        names = tuple(view.theirs.replace(LAYER, str(layer)) for layer in range(layers))
        if LAYER not in view.ours:
            found[view.ours] = Source(view, (view.theirs,), stacked=False)
            continue
        for layer, name in enumerate(names):
            found[view.ours.replace(LAYER, f"layer_{layer}")] = Source(view, (name,), False)
        found[view.ours.replace(LAYER, "layers")] = Source(view, names, stacked=True)
        found[view.ours.replace(LAYER, "shared_layer")] = Source(view, (view.theirs,), False)
    return found
