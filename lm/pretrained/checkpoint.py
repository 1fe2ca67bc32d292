"""How does a folder of transformers become a model here? Its config.json becomes our knobs, and its
tensors our parameters, read slice by slice to where the mesh wants them.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.config import Config
from lm.errors import UserError
from lm.pretrained.family import Family, adopted
from lm.pretrained.tensors import open_tensors
from lm.pretrained.tokenizer import find_tokenizer
from lm.pretrained.view import Source, Tensor, sources

MARK = "hf:"  # begins an init_from that names a checkpoint of transformers
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.bin")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose weights are still on disk.

    Attributes:
      folder: where it lies.
      family: what kind it is.
      theirs: its config.json.
      tensors: by name, without the body's prefix.
    """

    folder: Path
    family: Family
    theirs: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def adopt(self, config: Config) -> Config:
        """A copy of a config with the checkpoint's model, tokenizer and vocabulary.

        What shapes the model's function is the checkpoint's; what swaps a softmax (attention, head)
        and how it is computed and trained (dropout, types, remat, scan) stays the config's.
        """
        ours = self.family.to_ours(self.theirs, str(self.folder / "config.json"))
        for knob, tensor in self.family.present.items():
            ours[knob] = tensor in self.tensors
        for knob, tensor in self.family.absent.items():
            ours[knob] = tensor not in self.tensors
        config = adopted(config, ours)
        tokenizer = find_tokenizer(self.folder, Path(config.cache).expanduser() / "tokenizers")
        if tokenizer is not None:
            config.data.tokenizer = str(tokenizer)
        config.data.vocab_size = self.theirs["vocab_size"]
        return config

    def load(self, abstract: Any, config: Config, init: Any) -> tuple[Any, str]:
        """The parameters on the devices, and a line that says what is not the checkpoint's.

        Each is read where it is wanted: no host holds more than a tensor beside its own shards.

        Args:
          abstract: the parameters' shapes, types and shardings.
          config: the adopted one.
          init: `init() -> params`, traced once for those that the checkpoint lacks.

        Raises:
          UserError: where tensors are missing or have other shapes.
        """
        known = sources(self.family.views(config), config.model.layers)
        leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
        found = {name: known[name] for name in leaves if name in known}
        found = {name: source for name, source in found.items() if self._holds(name, source)}
        for name, source in found.items():
            self._check(name, source, leaves[name].shape)
        fresh = [name for name in leaves if name not in found]
        made = _some(init, fresh, {name: leaves[name].sharding for name in fresh})
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                made.get(_name(path))
                if _name(path) in made
                else self._read(found[_name(path)], leaf)
            ),
            abstract,
        )
        return params, self._report(fresh, found)

    def _holds(self, name: str, source: Source) -> bool:
        missing = [tensor for tensor in source.names if tensor not in self.tensors]
        if missing and not name.startswith(self.family.fresh):
            raise UserError(
                f"{self.folder} lacks the tensor {missing[0]}, which is {name} here; it is "
                f"damaged, or no {self.family.model_type} as its config.json says"
            )
        return not missing

    def _check(self, name: str, source: Source, shape: tuple[int, ...]) -> None:
        wanted = source.shape(shape)
        for tensor in source.names:
            actual = tuple(self.tensors[tensor].shape)
            if actual != wanted:
                hint = "its vocabulary is another" if name == "embedding" else "it is damaged"
                raise UserError(
                    f"{self.folder} has {tensor} {list(actual)}, but {name} here needs "
                    f"{list(wanted)}; {hint}, or its config.json belongs to another checkpoint"
                )

    def _read(self, source: Source, leaf: Any) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return np.ascontiguousarray(source.read(self.tensors, index, leaf.shape), leaf.dtype)

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    def _report(self, fresh: list[str], found: Mapping[str, Source]) -> str:
        used = {tensor for source in found.values() for tensor in source.names}
        ignored = re.compile(self.family.ignored)
        unused = sorted(name for name in self.tensors.keys() - used if not ignored.search(name))
        line = f"starts from {self.folder} ({self.family.model_type})"
        line += f"; fresh: {', '.join(fresh)}" if fresh else ""
        return line + (f"; unused: {', '.join(unused)}" if unused else "")


def is_checkpoint(init_from: str) -> bool:
    """Whether an init_from names a checkpoint of transformers, and no run of ours."""
    return init_from.startswith(MARK)


def open_checkpoint(source: str, families: Mapping[str, Family]) -> Checkpoint:
    """Opens a folder, or the name of a repository of the hub; weights stay on disk.

    Raises:
      UserError: where there is none, it is of no known family, or it is damaged.
    """
    folder = _locate(source.removeprefix(MARK))
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} has no config.json; give a folder that transformers saved")
    try:
        theirs = json.loads(path.read_text("utf-8"))
        kind = theirs["model_type"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} names no model_type; give a folder that transformers saved"
        ) from None
    if kind not in families:
        raise UserError(f"{path} is of model_type {kind!r}, which is none of {', '.join(families)}")
    family = families[kind]
    tensors = open_tensors(folder)
    bodies = {name.removeprefix(family.prefix): tensor for name, tensor in tensors.items()}
    return Checkpoint(folder, family, theirs, bodies)


def _locate(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UserError(f"there is no folder {name}; give one that transformers saved")
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise UserError(
            f"there is no folder {name}; to fetch it from the hub, pip install huggingface_hub"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_WANTED)))
    except Exception as error:
        cause = " ".join(str(error).split())[:160]
        raise UserError(f"there is no folder {name}, and the hub gives none ({cause})") from None


def _some(init: Any, names: list[str], shardings: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Only these of the initial parameters; the compiler leaves out the others."""
    if not names:
        return {}

    def chosen() -> dict[str, jax.Array]:
        leaves = jax.tree_util.tree_leaves_with_path(init())
        return {_name(path): leaf for path, leaf in leaves if _name(path) in shardings}

    return jax.jit(chosen, out_shardings=dict(shardings))()


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
