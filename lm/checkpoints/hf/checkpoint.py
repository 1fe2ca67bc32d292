"""How does a folder of transformers, or a GGUF file, become a model here? Its config.json becomes
our knobs, and its tensors our parameters, read slice by slice to where the mesh wants them.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.checkpoints.hf.family import Family, adopted
from lm.checkpoints.hf.gguf import is_gguf, open_gguf
from lm.checkpoints.hf.hf_config import check_values
from lm.checkpoints.hf.task_head import (
    Refused,
    architecture_of,
    body_prefix,
    named_labels,
    own_views,
)
from lm.checkpoints.hf.tensors import open_tensors
from lm.checkpoints.hf.tokenizer import find_tokenizer
from lm.checkpoints.hf.view import LAYER, Source, Tensor, sources
from lm.config import Config, cache_folder
from lm.data.files import read_json
from lm.errors import UserError
from lm.tasks import predicts_words

MARK = "hf:"  # begins an init_from that names a checkpoint of transformers
_FIRST_NORMS = re.compile(r"\bLayerNorm\.(gamma|beta)$")
_SINCE = {"gamma": "weight", "beta": "bias"}
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.bin")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose weights are still on disk.

    Attributes:
      folder: where it lies; or a GGUF file.
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
        where = self.folder if is_gguf(self.folder) else self.folder / "config.json"
        check_values(self.theirs, str(where))
        ours = self.family.to_ours(self.theirs, str(where))
        for knob, tensor in self.family.present.items():
            ours[knob] = tensor in self.tensors
        for knob, tensor in self.family.absent.items():
            ours[knob] = tensor not in self.tensors
        config = adopted(config, ours)
        self._check_layers(config)
        config.special_tokens = self.family.frame(self.theirs)
        tokenizer = find_tokenizer(self.folder, Path(cache_folder(config, "tokenizers")))
        if tokenizer is not None:
            config.data.tokenizer = str(tokenizer)
        config.data.vocab_size = self.theirs["vocab_size"]
        return config

    def find(
        self, shapes: Mapping[str, tuple[int, ...]], config: Config, labels: Sequence[str] = ()
    ) -> dict[str, Source]:
        """Where our parameters of these shapes stand, by path; not those that it lacks.

        A task's head is the checkpoint's own where it computes the same for the same `labels`.

        Raises:
          UserError: where a tensor has another shape, or the body lacks one.
        """
        known, found = self._known(config, labels), {}
        for name, shape in shapes.items():
            if name in known and self._holds(name, known[name]):
                self._check(name, known[name], shape)
                found[name] = known[name]
        return found

    def check_has_head(self, shapes: Mapping[str, tuple[int, ...]], config: Config) -> None:
        """Raises UserError where the checkpoint lacks a parameter that its family has: an untied
        table of words, or what stands before it. What a swapped softmax adds is none of these.
        """
        known = self._known(config)
        for name in filter(known.__contains__, shapes):
            for tensor in known[name].names:
                if tensor not in self.tensors:
                    raise UserError(
                        f"{self.folder} lacks {tensor}, which is {name} here: it would answer at "
                        f"random; train it first, or use a checkpoint that "
                        f"{self.family.architecture} has saved"
                    )

    def read(self, source: Source, leaf: Any) -> jax.Array:
        """A parameter with the shape, type and sharding of `leaf`; shards are read where wanted.

        No host holds more than a tensor beside its own shards.
        """

        def part(index: Any) -> np.ndarray:
            return np.ascontiguousarray(source.read(self.tensors, index, leaf.shape), leaf.dtype)

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    @property
    def labels(self) -> tuple[str, ...]:
        """What its config.json calls the labels of its head, in the order of their numbers."""
        return named_labels(self.theirs, str(self.folder / "config.json"))

    def head_refused(self, config: Config, labels: Sequence[str]) -> str:
        """Why the head that it has for labels is not that of a config's task; "" where it is, or
        where there is none.
        """
        try:
            own_views(config, self.family, self.theirs, self.tensors, labels)
        except Refused as reason:
            return str(reason)
        return ""

    def describe(
        self, found: Mapping[str, Source], config: Config, labels: Sequence[str] = ()
    ) -> str:
        """Folder and family, which tensors are no part of what was found, and why the head is
        none.
        """
        used = {tensor for source in found.values() for tensor in source.names}
        ignored = re.compile(self.family.ignored)
        unused = sorted(name for name in self.tensors.keys() - used if not ignored.search(name))
        without = f" without {', '.join(unused)}" if unused else ""
        reason = "" if predicts_words(config) else self.head_refused(config, labels)
        anew = f"; its head is not taken: {reason}" if reason else ""
        return f"{self.folder} ({self.family.model_type}){without}{anew}"

    def _check_layers(self, config: Config) -> None:
        """Raises UserError where the last layer has no tensor, before so many layers are made."""
        last = str(config.model.num_layers - 1)
        views = [view.theirs for view in self.family.views(config) if LAYER in view.theirs]
        if views and not any(name.replace(LAYER, last) in self.tensors for name in views):
            raise UserError(
                f"{self.folder} is said to have {config.model.num_layers} layers, and has no "
                f"tensor of "
                f"the last, such as {views[0].replace(LAYER, last)}; its config.json belongs to "
                "another checkpoint, or it is damaged"
            )

    def _known(self, config: Config, labels: Sequence[str] = ()) -> dict[str, Source]:
        """Where the checkpoint has each of our parameters; its head, where it is a task's own."""
        known = sources(self.family.views(config), config.model.num_layers)
        if predicts_words(config):
            return known
        body = {name: source for name, source in known.items() if not name.startswith("head/")}
        try:
            own = own_views(config, self.family, self.theirs, self.tensors, labels)
        except Refused:
            own = ()
        return body | sources(own, config.model.num_layers)

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


def is_checkpoint(init_from: str) -> bool:
    """Whether an init_from names a checkpoint of transformers, and no run of ours."""
    return init_from.startswith(MARK)


def open_checkpoint(source: str, families: Mapping[str, Family]) -> Checkpoint:
    """Opens a folder, a GGUF file, or the name of a repository of the hub; weights stay on disk.

    Raises:
      UserError: where there is none, it is of no known family, or it is damaged.
    """
    folder = _locate(source.removeprefix(MARK))
    if is_gguf(folder):
        theirs, tensors = open_gguf(folder)
        return Checkpoint(folder, families[theirs["model_type"]], theirs, tensors)
    path = folder / "config.json"
    if not path.exists():
        files = sorted(str(file) for file in folder.glob("*.gguf"))
        wanted = " or ".join(files) or "a folder that transformers saved"
        raise UserError(f"{folder} has no config.json; give {wanted}")
    theirs = read_json(path)
    kind = theirs.get("model_type")
    if kind is None:
        line = _model_type_line(theirs, open_tensors(folder), families)
        raise UserError(f"{path} names no model_type; {line}")
    if not isinstance(kind, str) or kind not in families:
        raise UserError(f"{path} is of model_type {kind!r}, which is none of {', '.join(families)}")
    family = families[kind]
    tensors = open_tensors(folder)
    named = {
        _current_name(name).removeprefix(body_prefix(family, architecture_of(theirs))): x
        for name, x in tensors.items()
    }
    for twin in [name for name in family.twins if name in named]:
        named = dict.fromkeys(family.twins, named[twin]) | named
    return Checkpoint(folder, family, theirs, named)


def _current_name(tensor: str) -> str:
    """What transformers calls a tensor today; the first BERTs have gamma and beta."""
    return _FIRST_NORMS.sub(lambda match: f"LayerNorm.{_SINCE[match[1]]}", tensor)


def _model_type_line(
    theirs: Mapping[str, Any], tensors: Iterable[str], families: Mapping[str, Family]
) -> str:
    """Which line a config.json needs that was written before there was a model_type."""
    written = theirs.get("architectures")
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


def _locate(name: str) -> Path:
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
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_WANTED)))
    except Exception as error:
        cause = " ".join(str(error).split())[:160]
        raise UserError(f"there is no folder {name}, and the hub gives none ({cause})") from None
