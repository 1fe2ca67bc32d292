"""Which knobs does something else decide? A checkpoint those of the model, an adapter those of the
method, where a run starts from them; epochs how many steps there are.
"""

from collections.abc import Iterable

from lm.checkpoints.hf import with_checkpoint_model
from lm.checkpoints.peft import with_adapter_keys
from lm.config import Config, check_types, flatten
from lm.errors import UserError


def adopted(config: Config, given: Iterable[str]) -> Config:
    """A config with what `init_from` and `finetuning.adapter_from` decide, where these name
    anything.

    Raises:
      UserError: where one of the dotted knobs that were `given` contradicts these, or a value has
        another type than its key.
    """
    check_types(config)
    given = tuple(given)
    if "steps" in given and config.epochs is not None:
        raise UserError(
            f"config.steps = {config.steps} is not looked at where config.epochs = {config.epochs} "
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
