"""Sets the config keys that initial parameters determine: those of the model by a checkpoint, those
of the method by an adapter.
"""

from collections.abc import Iterable

from lm.checkpoints.hf import with_checkpoint_model
from lm.checkpoints.peft import with_adapter_keys
from lm.config import Config, check_types, flatten
from lm.errors import UserError


def resolve_init(config: Config, given: Iterable[str]) -> Config:
    """A config with the keys that `init_from` and `finetuning.adapter_from` determine.

    Raises:
      UserError: where one of the dotted keys that were `given` contradicts these, or a value has
        another type than its key.
    """
    check_types(config)
    given = tuple(given)
    if "steps" in given and config.epochs is not None:
        raise UserError(
            f"config.steps = {config.steps} is not used where config.epochs = {config.epochs} "
            "says how many; set --config.epochs instead"
        )
    found = with_adapter_keys(with_checkpoint_model(config))
    asked, decided = flatten(config.to_dict()), flatten(found.to_dict())
    for key in given:
        if asked[key] != decided[key]:
            raise UserError(
                f"config.{key} = {asked[key]!r} contradicts what config starts from, which has "
                f"{decided[key]!r}; leave it out"
            )
    return found
