"""How does a command end early? By a user's mistake or by a signal, each told in one line, in which
numbers and nouns agree.
"""


def counted(number: int, noun: str) -> str:
    """A number with a noun whose plural ends in s: "1 document", "2 documents"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class UserError(Exception):
    """A mistake that the user can mend: one line that names the value, the limit and the remedy.

    `run.py` prints the line and exits with status 2.
    """


class Interrupted(Exception):
    """A run was asked to stop and has saved its state; `signal` is the number that asked."""

    def __init__(self, step: int, signal: int):
        super().__init__(f"stopped at step {step}, saved; the same command goes on from there")
        self.signal = signal
