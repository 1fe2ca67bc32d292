"""Measures generation speed in tokens per second."""

import time
from collections.abc import Iterable, Iterator

import numpy as np

from lm.errors import counted
from lm.generation.decode import TOKENS_PER_CALL


class Speed:
    """Iterates over steps of generated tokens and measures their time.

    Attributes:
      steps: how many steps were generated.
      seconds: time up to the last of them.
    """

    def __init__(
        self,
        tokens: Iterable[np.ndarray],
        compiling: int = 1 + TOKENS_PER_CALL,
        details: object = None,
    ):
        """Measures `tokens`, steps of the next token of every prompt, [B] each; the first
        `compiling` steps include the compilation of the program. What `details` is as text, behind
        the last step, is told with the speed; None: nothing.
        """
        self._details = details
        self.steps, self.seconds = 0, 0.0
        self._tokens, self._prompts = tokens, 0
        self._compiling, self._compiled = compiling, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the steps."""
        begin = time.perf_counter()
        for step in self._tokens:
            self.steps, self.seconds = self.steps + 1, time.perf_counter() - begin
            self._prompts = len(step)
            if self.steps == self._compiling:
                self._compiled = self.seconds
            yield step

    def __str__(self) -> str:
        """Tokens, time, the rate, without compilation where there are many tokens, and details."""
        return self._rate() if self._details is None else f"{self._rate()}; {self._details}"

    def _rate(self) -> str:
        count = self.steps * self._prompts
        total = f"{counted(count, 'token')} in {self.seconds:.2f} s"
        later = self.steps - self._compiling
        if later > 0:
            rate = later * self._prompts / max(self.seconds - self._compiled, 1e-9)
            return f"{total}; {rate:,.1f} tokens/s after compilation"
        rate = count / max(self.seconds, 1e-9)
        return f"{total}; {rate:,.1f} tokens/s including compilation"
