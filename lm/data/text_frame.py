"""What stands around the texts that an encoder-decoder reads and writes? Tokens that open or close
them: END, or those that its checkpoint knows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.config import Config
from lm.errors import UserError


class Frame(NamedTuple):
    """Token ids.

    Attributes:
      before, after: what opens and what closes a text that the encoder reads.
      opens: what the decoder's text begins with; END closes it.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    opens: tuple[int, ...]

    def read(self, ids: Sequence[int] | np.ndarray, room: int | None = None) -> np.ndarray:
        """A text as the encoder reads it; where it has more than `room` tokens, without its end."""
        around = len(self.before) + len(self.after)
        kept = ids if room is None else ids[: max(room - around, 0)]
        return np.concatenate([self.before, kept, self.after]).astype(np.int32)

    def begun(self) -> np.ndarray:
        """What the decoder's text begins with, as an array."""
        return np.array(self.opens, np.int32)


def framed(ids: Sequence[Sequence[int]] | None, end: int) -> Frame:
    """The frame that config.special_tokens describes; None: END opens both texts."""
    return Frame((end,), (), (end,)) if ids is None else Frame(*map(tuple, ids))


def check_frame(config: Config) -> None:
    """Raises UserError where config.special_tokens is no frame."""
    if config.special_tokens is None:
        return
    parts = [part for part in config.special_tokens if isinstance(part, list | tuple)]
    ids = [number for part in parts for number in part]
    if not (len(parts) == len(config.special_tokens) == 3 and parts[2]) or not all(
        isinstance(number, int) and number >= 0 for number in ids
    ):
        raise UserError(
            f"config.special_tokens = {config.special_tokens}: must be three tuples of token ids, "
            "the last not empty, such as ((), (1,), (0,))"
        )
