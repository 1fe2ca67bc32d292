"""What is a family of checkpoints? How its config.json says what our config says, and which tensor
holds which parameter; both are tables that are read in either direction.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.checkpoints.hf.view import View
from lm.config import Config
from lm.errors import UserError
from lm.output import OUTPUTS
from lm.tasks import predicts_words

# What shapes the function of a model, where a family does not say otherwise.
PLAIN: Mapping[str, Any] = {
    "model.embedding_dim": None,
    "model.embedding_norm": False,
    "model.embedding_scale": 1.0,
    "model.num_token_types": 0,
    "model.num_kv_heads": None,
    "model.head_dim": None,
    "model.bias": True,
    "model.qkv_bias": None,
    "model.norm": "layernorm",
    "model.norm_position": "pre",
    "model.position_embedding": "learned",
    "model.rope_theta": 10000.0,
    "model.relative_num_buckets": 32,
    "model.relative_max_distance": 128,
    "model.score_scale": None,
    "model.qk_norm": False,
    "model.share_layers": False,
    "model.head_transform": False,
    "model.pooler": False,
    "output.tied": True,
    "output.bias": None,
    "output.temperature": None,
}
# Their names of activations that are not gated, to ours.
ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A knob of ours that is a key of theirs.

    Attributes:
      ours: the dotted knob.
      theirs: the key in config.json.
      default: its value where config.json lacks it, which is the family's own.
      names: their value to ours, where these differ.
    """

    ours: str
    theirs: str
    default: Any
    names: Mapping[str, str] | None = None


def _nothing(_: Any) -> dict[str, Any]:
    return {}


def _no_frame(_: Any) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Family:
    """Checkpoints of one `model_type` of transformers.

    Attributes:
      model_type: its name in config.json.
      architecture: the class that transformers makes of what we write.
      fixed: our knobs that are the same in the whole family, where they are not `PLAIN`.
      settings: the knobs that differ from model to model.
      views: our parameters as parts of their tensors, given our config.
      prefix: of the names of the body's tensors, in a checkpoint that also has a head.
      outside: how the names of the head's tensors begin, which have no such prefix.
      demands: their keys with the only values that we can compute; absent ones have them.
      more_ours: our knobs that follow from several of their keys.
      more_theirs: the other way round.
      present, absent: our knob that is True where the checkpoint has a tensor, or lacks it.
      ignored: a pattern of tensors that are no parameters, or another's copy.
      twins: names of one tensor, of which a checkpoint may have either.
      fresh: how the paths of those of our parameters begin that a checkpoint may lack.
      frame: config.special_tokens, given their config.json; None: END, as ours have it.
    """

    model_type: str
    architecture: str
    fixed: Mapping[str, Any]
    settings: Sequence[Setting]
    views: Callable[[Config], Sequence[View]]
    prefix: str = ""
    outside: tuple[str, ...] = ()
    demands: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    more_ours: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _nothing
    more_theirs: Callable[[Config], Mapping[str, Any]] = _nothing
    present: Mapping[str, str] = dataclasses.field(default_factory=dict)
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: str = "$^"
    twins: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ("transform/", "head/", "pool/")
    frame: Callable[[Mapping[str, Any]], tuple[tuple[int, ...], ...] | None] = _no_frame

    @property
    def class_name(self) -> str:
        """How the names of its classes in transformers begin, such as Bert."""
        return re.sub(r"(For[A-Z]\w+|LMHeadModel)$", "", self.architecture)

    def to_ours(self, theirs: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Our dotted knobs for their config.json, which is found at `where`.

        Raises:
          UserError: where it asks for what we cannot compute.
        """
        for key, wanted in self.demands.items():
            if theirs.get(key, wanted) != wanted:
                raise UserError(
                    f"{where} has {key} = {theirs[key]!r:.60}, but of {self.model_type} only "
                    f"{wanted!r} is supported; use another checkpoint"
                )
        ours = {**PLAIN, **self.fixed}
        for setting in self.settings:
            value = theirs.get(setting.theirs, setting.default)
            if setting.names is not None and value not in setting.names:
                raise UserError(
                    f"{where} has {setting.theirs} = {value!r:.60}, which is none of "
                    f"{', '.join(setting.names)}; use another checkpoint"
                )
            ours[setting.ours] = setting.names[value] if setting.names else value
        return {**ours, **self.more_ours(theirs)}

    def to_theirs(self, config: Config, vocab_size: int) -> dict[str, Any]:
        """The config.json of a model of ours, which `misfit` has found none in."""
        theirs: dict[str, Any] = {"model_type": self.model_type, "vocab_size": vocab_size}
        theirs |= {"architectures": [self.architecture], "torch_dtype": "float32", **self.demands}
        for setting in self.settings:
            value = explicit(config)[setting.ours]
            if setting.names is not None:
                value = next(name for name, our in setting.names.items() if our == value)
            theirs[setting.theirs] = value
        return theirs | dict(self.more_theirs(config))

    def misfit(self, config: Config) -> str | None:
        """Why a model of ours is none of this family; None where it is one."""
        ours = explicit(config)
        for setting in self.settings:
            if setting.names is not None and ours[setting.ours] not in setting.names.values():
                return f"config.{setting.ours} = {ours[setting.ours]!r}"
        try:
            wanted = self.to_ours(self.to_theirs(config, 2), "")
        except UserError as error:
            return str(error)
        theirs = explicit(adopted(config, wanted))
        for key in wanted.keys() - self.present.keys() - self.absent.keys():
            if ours[key] != theirs[key] and (ours[key] or theirs[key]):
                return f"config.{key} = {ours[key]!r}, not {theirs[key]!r}"
        return None


def explicit(config: Config) -> dict[str, Any]:
    """Our knobs by dotted name; sizes that follow from others have their values."""
    model = config.model
    ours = {f"model.{key}": value for key, value in model.items()}
    ours |= {f"output.{key}": value for key, value in config.output.items()}
    ours["model.mlp_dim"] = model.mlp_dim or 4 * model.d_model
    ours["model.num_kv_heads"] = model.num_kv_heads or model.num_heads
    ours["model.head_dim"] = model.head_dim or model.d_model // model.num_heads
    ours["model.embedding_dim"] = model.embedding_dim or model.d_model
    ours["model.qkv_bias"] = model.bias if model.qkv_bias is None else model.qkv_bias
    return ours


def adopted(config: Config, ours: Mapping[str, Any]) -> Config:
    """A copy of our config with a checkpoint's knobs; those that its head lacks are left out, and
    those of all that stands on the stack where a task puts a head for its labels there.
    """
    config = config.copy_and_resolve_references()
    head = OUTPUTS[config.output.head].__dataclass_fields__
    for key, value in ours.items():
        group, name = key.split(".")
        on_top = group == "output" or name in ("head_transform", "pooler")
        if on_top and not predicts_words(config):
            continue
        if group != "output" or name == "tied" or name in head:
            config[group][name] = value
    return config
