"""Opens a folder of transformers, or a GGUF file, as initial parameters: its config.json gives the
config keys of the model, and its tensors are read slice by slice to where the mesh needs them.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.checkpoints.hf.family import Family, with_model_keys
from lm.checkpoints.hf.gguf import is_gguf, open_gguf
from lm.checkpoints.hf.hf_config import check_values
from lm.checkpoints.hf.task_head import (
    HeadMismatch,
    architecture_name,
    body_prefix,
    head_mappings,
    label_names,
)
from lm.checkpoints.hf.tensor_mapping import LAYER, ParamSource, Tensor, param_sources
from lm.checkpoints.hf.tensors import open_tensors
from lm.checkpoints.hf.tokenizer import find_tokenizer
from lm.config import Config, cache_folder
from lm.data.files import read_json
from lm.errors import UserError
from lm.tasks import predicts_tokens

HF_PREFIX = "hf:"  # begins an init_from that names a checkpoint of transformers
_OLD_NORM_NAME = re.compile(r"\bLayerNorm\.(gamma|beta)$")
_NEW_NORM_NAMES = {"gamma": "weight", "beta": "bias"}
_DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.bin")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose weights are still on disk.

    Attributes:
      folder: where it lies; or a GGUF file.
      family: what kind it is.
      hf_config: its config.json.
      tensors: by name, without the body's prefix.
    """

    folder: Path
    family: Family
    hf_config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def with_model(self, config: Config) -> Config:
        """A copy of a config with the checkpoint's model, tokenizer and vocabulary.

        What shapes the model's function is the checkpoint's; what swaps a softmax (attention, head)
        and how it is computed and trained (dropout, types, remat, scan) stays the config's.
        """
        where = self.folder if is_gguf(self.folder) else self.folder / "config.json"
        check_values(self.hf_config, str(where))
        keys = self.family.config_from_hf(self.hf_config, str(where))
        keys |= {key: x in self.tensors for key, x in self.family.true_if_present.items()}
        keys |= {key: x not in self.tensors for key, x in self.family.true_if_absent.items()}
        config = with_model_keys(config, keys)
        self._check_layers(config)
        config.special_tokens = self.family.special_tokens(self.hf_config)
        tokenizer = find_tokenizer(self.folder, Path(cache_folder(config, "tokenizers")))
        if tokenizer is not None:
            config.data.tokenizer = str(tokenizer)
        config.data.vocab_size = self.hf_config["vocab_size"]
        return config

    def find(
        self, shapes: Mapping[str, tuple[int, ...]], config: Config, labels: Sequence[str] = ()
    ) -> dict[str, ParamSource]:
        """Where the parameters of these shapes stand, by path, without those that it lacks.

        A task's head is the checkpoint's own where it computes the same for the same labels.

        Raises:
          UserError: where a tensor has another shape, or the body lacks one.
        """
        known, found = self._sources(config, labels), {}
        for name, shape in shapes.items():
            if name in known and self._has(name, known[name]):
                self._check_shape(name, known[name], shape)
                found[name] = known[name]
        return found

    def check_has_head(self, shapes: Mapping[str, tuple[int, ...]], config: Config) -> None:
        """Raises UserError where the checkpoint lacks a parameter of its family's head: an untied
        table of tokens, or the layers before it. What a swapped softmax adds is none of these.
        """
        known = self._sources(config)
        for name in filter(known.__contains__, shapes):
            for tensor in known[name].tensors:
                if tensor not in self.tensors:
                    raise UserError(
                        f"{self.folder} lacks {tensor}, which is {name} here: it would answer at "
                        f"random; train it first, or use a checkpoint that "
                        f"{self.family.architecture} has saved"
                    )

    def read(self, source: ParamSource, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        """A parameter with the shape, type and sharding of `leaf`; shards are read where wanted.

        No host holds more than a tensor beside its own shards.
        """

        def part(index: Any) -> np.ndarray:
            return np.ascontiguousarray(source.read(self.tensors, index, leaf.shape), leaf.dtype)

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    @property
    def labels(self) -> tuple[str, ...]:
        """What its config.json calls the labels of its head, in the order of their numbers."""
        return label_names(self.hf_config, str(self.folder / "config.json"))

    def head_mismatch(self, config: Config, labels: Sequence[str]) -> str:
        """Why its head for labels is not that of a config's task; "" where it is, or has none."""
        try:
            head_mappings(config, self.family, self.hf_config, self.tensors, labels)
        except HeadMismatch as error:
            return str(error)
        return ""

    def describe(
        self, found: Mapping[str, ParamSource], config: Config, labels: Sequence[str] = ()
    ) -> str:
        """Folder and family, which tensors are no part of `found`, and why the head is none."""
        used = {tensor for source in found.values() for tensor in source.tensors}
        ignored = re.compile(self.family.ignored)
        unused = sorted(name for name in self.tensors.keys() - used if not ignored.search(name))
        without = f" without {', '.join(unused)}" if unused else ""
        reason = "" if predicts_tokens(config) else self.head_mismatch(config, labels)
        anew = f"; its head is not taken: {reason}" if reason else ""
        return f"{self.folder} ({self.family.model_type}){without}{anew}"

    def _check_layers(self, config: Config) -> None:
        """Raises UserError where the last layer has no tensor, before so many layers are made."""
        last = str(config.model.num_layers - 1)
        names = [each.hf for each in self.family.mappings(config) if LAYER in each.hf]
        if names and not any(name.replace(LAYER, last) in self.tensors for name in names):
            raise UserError(
                f"{self.folder} is said to have {config.model.num_layers} layers, and has no "
                f"tensor of the last, such as {names[0].replace(LAYER, last)}; its config.json "
                "belongs to another checkpoint, or it is damaged"
            )

    def _sources(self, config: Config, labels: Sequence[str] = ()) -> dict[str, ParamSource]:
        """Where the checkpoint has each parameter; those of its head, where it is a task's own."""
        known = param_sources(self.family.mappings(config), config.model.num_layers)
        if predicts_tokens(config):
            return known
        body = {name: source for name, source in known.items() if not name.startswith("head/")}
        try:
            own = head_mappings(config, self.family, self.hf_config, self.tensors, labels)
        except HeadMismatch:
            own = ()
        return body | param_sources(own, config.model.num_layers)

    def _has(self, name: str, source: ParamSource) -> bool:
        missing = [tensor for tensor in source.tensors if tensor not in self.tensors]
        if missing and not name.startswith(self.family.optional):
            raise UserError(
                f"{self.folder} lacks the tensor {missing[0]}, which is {name} here; it is "
                f"damaged, or no {self.family.model_type} as its config.json says"
            )
        return not missing

    def _check_shape(self, name: str, source: ParamSource, shape: tuple[int, ...]) -> None:
        wanted = source.hf_shape(shape)
        for tensor in source.tensors:
            actual = tuple(self.tensors[tensor].shape)
            if actual != wanted:
                hint = "its vocabulary is another" if name == "embedding" else "it is damaged"
                raise UserError(
                    f"{self.folder} has {tensor} {list(actual)}, but {name} here needs "
                    f"{list(wanted)}; {hint}, or its config.json belongs to another checkpoint"
                )


def is_checkpoint(init_from: str) -> bool:
    """Whether an init_from names a checkpoint of transformers, and not a workdir."""
    return init_from.startswith(HF_PREFIX)


def open_checkpoint(source: str, families: Mapping[str, Family]) -> Checkpoint:
    """Opens a folder, a GGUF file, or the name of a repository of the hub; weights stay on disk.

    Raises:
      UserError: where there is none, it is of no known family, or it is damaged.
    """
    folder = _find_folder(source.removeprefix(HF_PREFIX))
    if is_gguf(folder):
        hf_config, tensors = open_gguf(folder)
        return Checkpoint(folder, families[hf_config["model_type"]], hf_config, tensors)
    path = folder / "config.json"
    if not path.exists():
        files = sorted(str(file) for file in folder.glob("*.gguf"))
        wanted = " or ".join(files) or "a folder that transformers saved"
        raise UserError(f"{folder} has no config.json; give {wanted}")
    hf_config = read_json(path)
    kind = hf_config.get("model_type")
    if kind is None:
        line = _model_type_line(hf_config, open_tensors(folder), families)
        raise UserError(f"{path} names no model_type; {line}")
    if not isinstance(kind, str) or kind not in families:
        raise UserError(f"{path} is of model_type {kind!r}, which is none of {', '.join(families)}")
    family = families[kind]
    tensors = open_tensors(folder)
    named = {
        _current_name(name).removeprefix(body_prefix(family, architecture_name(hf_config))): x
        for name, x in tensors.items()
    }
    for alias in [name for name in family.aliases if name in named]:
        named = dict.fromkeys(family.aliases, named[alias]) | named
    return Checkpoint(folder, family, hf_config, named)


def _current_name(tensor: str) -> str:
    """What transformers calls a tensor today; the first BERTs have gamma and beta."""
    return _OLD_NORM_NAME.sub(lambda match: f"LayerNorm.{_NEW_NORM_NAMES[match[1]]}", tensor)


def _model_type_line(
    hf_config: Mapping[str, Any], tensors: Iterable[str], families: Mapping[str, Family]
) -> str:
    """Which line a config.json needs that was written before there was a model_type."""
    written = hf_config.get("architectures")
    names = [name for name in written if isinstance(name, str)] if isinstance(written, list) else []
    # BertModel.from_pretrained reads BertForMaskedLM's: what counts is how both begin.
    found = [kind for kind, f in families.items() if any(n.startswith(f.class_name) for n in names)]
    if not found:
        prefixes = {name.partition(".")[0] + "." for name in tensors}
        found = [kind for kind, f in families.items() if f.prefix in prefixes]
    if len(found) == 1:
        return f'add the line "model_type": "{found[0]}", to it, as its tensors are named'
    known = ", ".join(found or families)
    return f'if it is one of {known}, add the line "model_type": "{(found or ["bert"])[0]}", or so'


def _find_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir() or (is_gguf(folder) and folder.is_file()):
        return folder
    if is_gguf(folder):
        raise UserError(f"there is no file {name}; fetch it, and give its path")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UserError(f"there is no folder {name}; give one that transformers saved")
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise UserError(
            f"there is no folder {name}; to fetch it from the hub, pip install huggingface_hub"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_DOWNLOADED)))
    except Exception as error:
        cause = " ".join(str(error).split())[:160]
        raise UserError(f"there is no folder {name}, and the hub gives none ({cause})") from None
