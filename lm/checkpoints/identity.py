"""Holds what a run is identified by: the settings that can change its numbers, and a hash of those
that differ from reference defaults, which stays the same when a key is added.
"""

import functools
import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from configs import default
from lm.config import Config, flatten, to_dict

# The value that a key's default had when the key came, where it is another one now; of a new key
# whose default changes numbers, what the code did before. Hashes count what differs from it.
CHANGED_DEFAULTS: Mapping[str, Any] = {}

# What may differ between a run and its resumption: where it runs, what it prints, and what it is
# asked when it is trained.
_INCIDENTAL = ("mesh", "checkpoint", "log", "cache_dir", "prompt")

# What may change when a run goes on; each is a key, or a group of keys. Where dropout or another
# draw is on, the first eight draw otherwise, as config.grad_accum_steps says; all else is the same
# up to rounding.
FREE = (
    "grad_accum_steps",
    "model.remat",
    "model.scan",
    "attention.query_chunk_size",
    "encoder_attention.query_chunk_size",
    "cross_attention.query_chunk_size",
    "output.token_chunk_size",
    "evaluation",
    "alarm",  # its answers to the alarms that come
)


def is_incidental(key: str) -> bool:
    """Whether a dotted key never changes a run's numbers, such as one of config.log."""
    return key.split(".")[0] in _INCIDENTAL


def identity(config: Config) -> dict[str, Any]:
    """The flat dotted settings that can change a run's numbers."""
    flat = flatten(to_dict(config))
    # Without a task, what examples look like only matters to prompts.
    ignored = () if flat.get("task.name") else ("task",)
    return {
        k: v for k, v in flat.items() if not is_incidental(k) and k.split(".")[0] not in ignored
    }


@functools.cache
def reference_defaults() -> Mapping[str, Any]:
    """By dotted key, the value that a run has whose config.json is older than the key."""
    return {**flatten(to_dict(default.get_config())), **CHANGED_DEFAULTS}


def distinctive(config: Config, own: Collection[str] = ()) -> dict[str, Any]:
    """The settings by which a point of an ablation is told from others.

    They are those of `identity` that differ from their reference default, without those that may
    change when a run goes on (`FREE`); but these count where they are a part of training: those of
    config.evaluation with early stopping or penalty_adaptation, those of config.alarm with another
    policy than "warn".

    Args:
      config: of the point.
      own: the dotted keys that the point's row sets. Those that would not count do, whatever their
        value: rows may differ in them alone.
    """
    settings, reference = identity(config), reference_defaults()
    found = {
        key: value
        for key, value in settings.items()
        if (key not in reference or value != reference[key]) and not _is_free(key, config)
    }
    flat = flatten(to_dict(config))
    compared = {key for key in own if key not in settings or _is_free(key, config)}
    return found | {key: flat[key] for key in sorted(compared)}


def content_hash(config: Config, own: Collection[str] = ()) -> str:
    """Twelve hexadecimal digits that name what `distinctive` finds."""
    text = json.dumps(distinctive(config, own), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(
    config: Config, recorded: Config, own: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The keys for which two configs are two points, with (recorded, now); {} where they are one.

    Args:
      config, recorded: two configs with every key.
      own: see `distinctive`.
    """
    keys = distinctive(config, own).keys() | distinctive(recorded, own).keys()
    now, before = flatten(to_dict(config)), flatten(to_dict(recorded))
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(keys)
        if before.get(key) != now.get(key)
    }


def _is_free(key: str, config: Config) -> bool:
    group = key.split(".")[0]
    if group == "evaluation":
        return not (config.evaluation.patience or config.regularization.penalty_adaptation)
    if group == "alarm":
        return config.alarm.policy == "warn"
    return key in FREE
