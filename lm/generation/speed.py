"""Measures how fast tokens are generated."""

import time
from collections.abc import Iterable, Iterator

import numpy as np

from lm.errors import counted
from lm.generation.decode import TOKENS_PER_CALL


class Speed:
    """Steps of generated tokens, and the time that they take.

    Attributes:
      steps: how many were taken.
      seconds: until the last of them.
    """

    def __init__(self, tokens: Iterable[np.ndarray], compiling: int = 1 + TOKENS_PER_CALL):
        """Measures the steps of `tokens`, the next token of every prompt, [B] each; those of the
        calls that compile a program are the first ones, `compiling` of them.
        """
        self.steps, self.seconds = 0, 0.0
        self._tokens, self._prompts = tokens, 0
        self._compiling, self._compiled = compiling, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        """The steps."""
        begin = time.perf_counter()
        for step in self._tokens:
            self.steps, self.seconds = self.steps + 1, time.perf_counter() - begin
            self._prompts = len(step)
            if self.steps == self._compiling:
                self._compiled = self.seconds
            yield step

    def __str__(self) -> str:
        """How many tokens in how many seconds, and the rate: without the time to compile, where
        there are enough tokens to tell.
        """
        count = self.steps * self._prompts
        told = f"{counted(count, 'token')} in {self.seconds:.2f} s"
        later = self.steps - self._compiling
        if later > 0:
            rate = later * self._prompts / max(self.seconds - self._compiled, 1e-9)
            return f"{told}; once compiled {rate:,.1f} tokens/s"
        rate = count / max(self.seconds, 1e-9)
        return f"{told}, with the time to compile {rate:,.1f} tokens/s"
