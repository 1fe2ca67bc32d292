"""A study of Optuna, which suggests the trials of a search: in a journal file, or in a database
that processes and machines share.
"""

import contextlib
import datetime
import enum
import importlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from lm.config import plain
from lm.errors import UserError
from lm.experiment.ablation.draw import Distribution

_NAME, _ABOUT = "search", "search"
_ATTEMPTS, _PAUSE = 4, 0.5  # to open a database, with the seconds between two
_ENDED = ("COMPLETE", "PRUNED", "FAIL")
_ASKING = datetime.timedelta(minutes=1)  # after which one whose asking was cut off is lost


class Trial(NamedTuple):
    """A trial of a study.

    Attributes:
      number: from 0.
      overrides: the values that are tried, by dotted key.
      state: "running" until it is told how it ended, then "complete", "pruned" or "fail".
      value: of a complete trial.
    """

    number: int
    overrides: Mapping[str, Any]
    state: str
    value: float | None


class _Frozen(Protocol):
    """What is read of Optuna's FrozenTrial."""

    number: int
    params: Mapping[str, object]
    value: float | None
    state: enum.Enum
    datetime_start: datetime.datetime | None


class Study:
    """The trials of a search, as all workers see them.

    Suggestions are those of TPE, whose random choices are seeded by the number of the trial. After
    each seed a trial is pruned if its mean is worse than the median of other trials over the same
    seeds.

    Args:
      where: a file for the journal, or a database's URL.
      found: what the values are drawn from.
      lower_is_better: the direction of the metric.
      about: what the search is of; a study of something else is refused.

    Raises:
      UserError: Optuna is missing, or the study cannot be opened or is of another search.
    """

    def __init__(
        self,
        where: str,
        found: Sequence[Distribution],
        lower_is_better: bool,
        about: Mapping[str, Any],
    ):
        self._found = {each.key: each for each in found}
        try:
            self._optuna = importlib.import_module("optuna")
        except ImportError:
            remedy = 'pip install -e ".[sweep]"'
            raise UserError(f"--search=optuna needs Optuna: {remedy}") from None
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        self._study = self._opened(where, "minimize" if lower_is_better else "maximize")
        text = json.dumps(about, sort_keys=True)
        if (before := self._study.user_attrs.get(_ABOUT, text)) != text:
            raise UserError(f"--study={where} is of another search: {before} there and {text} here")
        self._study.set_user_attr(_ABOUT, text)

    def _opened(self, where: str, direction: str) -> Any:
        for left in reversed(range(_ATTEMPTS)):
            try:
                return self._optuna.create_study(
                    storage=_storage(where),
                    study_name=_NAME,
                    direction=direction,
                    load_if_exists=True,
                    pruner=self._optuna.pruners.MedianPruner(),
                )
            except Exception as error:  # of whichever database it is
                # Of several workers that make a new database at once, one succeeds.
                if left and type(error).__name__ in ("IntegrityError", "OperationalError"):
                    time.sleep(_PAUSE)
                    continue
                raise UserError(f"--study={where} cannot be opened: {plain(error)}") from None

    def trials(self) -> list[Trial]:
        """Those that have been asked for, in order."""
        found = [self._trial(each) for each in self._counted() if self._is_whole(each)]
        return sorted(found, key=lambda each: each.number)

    def ask(self, most: int) -> Trial | None:
        """A new trial; None where there are `most` of them."""
        if len(self._counted()) >= most:
            return None
        asked = self._study.ask()
        # Others may have asked at the same time.
        if sum(each.number < asked.number for each in self._counted()) >= most:
            self.tell(asked.number, None, "fail")
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            # Trials that others are at count as bad ones, so that all try different values.
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=asked.number, constant_liar=True
            )
        for key, each in self._found.items():
            if each.choices:
                asked.suggest_categorical(key, [str(choice) for choice in each.choices])
            elif each.whole:
                asked.suggest_int(key, int(each.low), int(each.high), log=each.log)
            else:
                asked.suggest_float(key, each.low, each.high, log=each.log)
        return next(each for each in self.trials() if each.number == asked.number)

    def is_hopeless(self, number: int, means: Sequence[float]) -> bool:
        """Whether a trial is to be pruned, after the seeds whose running means these are."""
        frozen = self._frozen(number)
        trial = self._optuna.trial.Trial(self._study, frozen._trial_id)
        with contextlib.suppress(RuntimeError):  # another worker has ended it
            for step, mean in enumerate(means, start=1):
                if step not in frozen.intermediate_values:
                    trial.report(mean, step)
        return trial.should_prune()

    def tell(self, number: int, value: float | None, state: str) -> None:
        """Ends a trial, unless another worker has; with a value if it is "complete"."""
        ended = self._optuna.trial.TrialState[state.upper()]
        with contextlib.suppress(RuntimeError):  # another worker does so at the same time
            self._study.tell(number, value, ended, skip_if_finished=True)

    def _counted(self) -> list[_Frozen]:
        """All but those whose asking failed, or was cut off."""
        found = []
        for each in self._study.get_trials(deepcopy=False):
            if not self._is_whole(each):
                if each.state.name in _ENDED:
                    continue
                if each.datetime_start and datetime.datetime.now() - each.datetime_start > _ASKING:
                    self.tell(each.number, None, "fail")
                    continue
            found.append(each)
        return found

    def _is_whole(self, frozen: _Frozen) -> bool:
        return self._found.keys() <= frozen.params.keys()

    def _frozen(self, number: int) -> Any:
        return next(each for each in self._study.get_trials() if each.number == number)

    def _trial(self, frozen: _Frozen) -> Trial:
        overrides = {key: self._value(key, frozen.params[key]) for key in self._found}
        value = frozen.value if frozen.state.name == "COMPLETE" else None
        return Trial(frozen.number, overrides, frozen.state.name.lower(), value)

    def _value(self, key: str, given: object) -> object:
        each = self._found[key]
        if each.choices:
            return {str(choice): choice for choice in each.choices}[str(given)]
        return given if each.whole else each.rounded(cast(float, given))


def _storage(where: str) -> Any:
    storages = importlib.import_module("optuna.storages")
    if "://" in where:
        return storages.RDBStorage(where)
    return storages.JournalStorage(storages.journal.JournalFileBackend(where))
