"""Writes metrics.jsonl, hands its lines to trackers, and shows a progress bar."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm
from etils import epath

from lm.config import Config
from lm.data.bucket import Mirror, in_bucket
from lm.data.files import to_json, write_text
from lm.devices.hosts import is_main
from lm.errors import UserError
from lm.training.trackers import Tracker, open_trackers


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl; a last line that was cut off by a kill is left out; see
    `with_nan`.

    Raises:
      UserError: where a line before the last is no JSON object with a step.
    """
    path = epath.Path(path)
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if _is_record(record):
            records.append(with_nan(record))
        elif number < len(lines):
            raise UserError(
                f"{path} line {number} is not a JSON object with a step; mend or remove that line"
            )
    return records


def _is_record(line: object) -> bool:
    """Whether a line is one that a `Writer` has written."""
    return (
        isinstance(line, dict)
        and isinstance(line.get("step"), int)
        and isinstance(line.get("seconds", 0.0), int | float)
    )


def with_nan(found: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl, or a result.json, as it was before `to_json`: metrics are NaN where
    they are null there. What else is null in a result is not known.
    """
    kinds = ("eval/", "train/")
    return {k: math.nan if v is None and k.startswith(kinds) else v for k, v in found.items()}


def untimed(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a line of metrics.jsonl does not depend on the clock or the device's memory: the
    same in two runs of one config, however they were interrupted.
    """
    timed = ("seconds", "tokens_per_second")
    return {k: v for k, v in record.items() if k not in timed and not k.startswith("perf/")}


_LINE_EVERY = 60.0  # seconds between lines of a run without a terminal, at most


def _evaluates(record: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in record)


class Writer:
    """Appends metrics of a workdir that was trained to step `start` and evaluated to `evaluated`.

    Lines of later steps, left by a run that was killed after its last checkpoint, are dropped, so
    that a resumed run's file equals an uninterrupted one's. A file in a bucket cannot grow: there
    it is written anew now and then, at the latest when `sync` asks. The trackers have every line
    too.
    """

    def __init__(
        self, workdir: epath.PathLike, start: int, evaluated: int, trackers: Sequence[Tracker] = ()
    ):
        path = epath.Path(workdir) / "metrics.jsonl"
        kept = [
            record
            for record in read_metrics(path)
            if record["step"] <= (evaluated if _evaluates(record) else start)
        ]
        if path.exists():
            write_text(path, "".join(to_json(record) + "\n" for record in kept))
        self._before = max((record.get("seconds", 0.0) for record in kept), default=0.0)
        self._begin = time.perf_counter()
        self._mirror = None
        if in_bucket(path):
            self._mirror = Mirror(path.parent, "log")
            write_text(self._mirror.local / path.name, path.read_text() if path.exists() else "")
            path = self._mirror.local / path.name
        self._path, self._file = path, path.open("a")
        self._trackers = trackers

    @property
    def seconds(self) -> float:
        """Time spent by all the legs of the run so far, as the lines tell."""
        return self._before + time.perf_counter() - self._begin

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line: the step, the metrics, and the seconds so far."""
        record = {"step": step, **metrics, "seconds": round(self.seconds, 3)}
        try:
            self._file.write(to_json(record) + "\n")
            self._file.flush()
        except OSError as error:
            error.filename = str(self._path)
            raise
        for tracker in self._trackers:
            tracker.write(step, metrics)
        if self._mirror is not None:
            self._mirror.copy(asked=_evaluates(metrics))

    def sync(self) -> None:
        """Leaves every line where the workdir is."""
        if self._mirror is not None:
            self._mirror.copy(asked=True)

    def close(self) -> None:
        """Leaves everything on disk."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()
        if self._mirror is not None:
            self._mirror.close()


def open_writer(
    config: Config, workdir: epath.PathLike, start: int, evaluated: int
) -> Writer | None:
    """A `Writer` with the trackers of a config in the first process; None in the others."""
    if not is_main():
        return None
    return Writer(workdir, start, evaluated, open_trackers(config, epath.Path(workdir), start))


class Progress:
    """A bar over steps with loss, tokens/s, time left and, where known, MFU (model FLOPs
    utilization); or, where stderr is not a terminal, lines: at every evaluation, and at least once
    a minute. Only the first process shows it.
    """

    def __init__(self, steps: int, start: int, label: str):
        self._steps, self._step, self._label, shown = steps, start, label, is_main()
        self._lines = shown and not sys.stderr.isatty()
        self._loss, self._told = "", (start, time.perf_counter())
        self._bar = tqdm.tqdm(
            total=steps,
            initial=start,
            desc=label,
            unit="step",
            dynamic_ncols=True,
            disable=not shown or self._lines,
            mininterval=0.5,
            leave=False,
        )

    def update(self, loss: float, tokens_per_second: float | None, share: float | None) -> None:
        """One step more; `share` is of the devices' peak FLOP/s."""
        shown = {"loss": f"{loss:.3f}"}
        if tokens_per_second is not None and math.isfinite(tokens_per_second):
            shown["tokens/s"] = f"{tokens_per_second:,.0f}"
        if share is not None:
            shown["MFU"] = f"{share:.1%}"
        self._step += 1
        self._loss = shown["loss"]
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()
        if self._lines and time.perf_counter() - self._told[1] > _LINE_EVERY:
            self._say()

    def evaluated(self, metrics: str) -> None:
        """Tells what an evaluation found, where lines are told."""
        if self._lines:
            self._say(f", held out: {metrics}")

    def close(self) -> None:
        """Takes the bar off the terminal."""
        self._bar.close()

    def _say(self, more: str = "") -> None:
        """A line with the last step's loss, and the pace since the line before it."""
        (step, begun), now = self._told, time.perf_counter()
        self._told = (self._step, now)
        line = f"{self._label}: step {self._step}/{self._steps}"
        if self._step > step:
            line += f", loss {self._loss}, {(self._step - step) / (now - begun):.3g} steps/s"
        print(line + more, file=sys.stderr, flush=True)
