"""Which knobs does what a run starts from decide? Those of the model of its checkpoint, and of the
method of its adapter.
"""

from collections.abc import Iterable

from lm.config import Config, flatten
from lm.errors import UserError
from lm.pretrained import adopt
from lm.tune import peft


def adopted(config: Config, given: Iterable[str]) -> Config:
    """A config with what `init_from` and `tune.adapter_from` decide, where these name anything.

    Raises:
      UserError: where one of the dotted knobs that were `given` contradicts these.
    """
    found = peft.adopt(adopt(config))
    asked, decided = flatten(config.to_dict()), flatten(found.to_dict())
    for key in given:
        if asked[key] != decided[key]:
            raise UserError(
                f"config.{key} = {asked[key]!r} contradicts what config starts from, which has "
                f"{decided[key]!r}; leave it out"
            )
    return found
