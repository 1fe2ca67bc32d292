"""Names the streams of random numbers: the integers that are folded into a key."""

import enum


class RunStream(enum.IntEnum):
    """Streams of a run's seed; the key of a step is that of `STEPS` with the step folded in."""

    INIT = 0
    STEPS = 1


class StepStream(enum.IntEnum):
    """Streams of the key of a step, or of one of its accumulation parts."""

    DROPOUT = 0
    SOFTMAX = 1
    OBJECTIVE = 2
    RDROP = 3
    FREELB = 4
    SMART = 5
    MIXUP = 6
    AUGMENTATION = 7
    MIXOUT = 8
    ACCUMULATION = 9
    ROUNDING = 10
    ROLLOUT = 11
