"""Which training rows are drawn, and how often? Each as often as the others, unless classes are
evened out, or rows of earlier tasks are replayed.
"""

from typing import Any

import numpy as np

from lm.config import Config
from lm.data import Groups
from lm.tasks.prepare import TaskData


def drawn(config: Config, data: Any) -> Groups | None:
    """The groups of training rows from which batches are drawn; None: all rows alike."""
    if not isinstance(data, TaskData):
        return None
    groups, replay = None, config.continual.replay_fraction
    if data.number is not None:
        groups = [(data.trained(data.number), 1.0 - replay)]
        groups += [(replayed(config, data), replay)] if replay else []
    if not config.task.balanced:
        return groups
    classes = data.classes()
    whole = [(np.arange(len(classes)), 1.0)]
    return [part for group in groups or whole for part in _by_class(*group, classes)]


def replayed(config: Config, data: TaskData) -> np.ndarray:
    """The training rows of earlier tasks that are kept: config.continual.memory_size of each, a
    sample that later tasks have too.
    """
    assert data.number is not None
    kept = []
    for number in range(data.number):
        order = np.random.default_rng((config.seed, number)).permutation(data.trained(number))
        kept.append(order[: config.continual.memory_size or None])
    return np.concatenate(kept)


def _by_class(rows: np.ndarray, share: float, classes: np.ndarray) -> Groups:
    """Rows parted by class, each class with as large a part of their share."""
    found = np.unique(classes[rows])
    return [(rows[classes[rows] == each], share / len(found)) for each in found]
