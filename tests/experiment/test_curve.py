"""A run tells how it goes where nobody sees a bar, and leaves a picture of how it went."""

import io
import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from lm.experiment.learning_curve import draw_curve, series
from lm.training.metric_writer import Progress, read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True


def steps(progress, number):
    for step in range(number):
        progress.update(3.0 - step, 100.0, None)


def test_without_a_terminal_every_evaluation_is_a_line_with_the_loss(capsys):
    progress = Progress(6, 1, "a run")
    steps(progress, 2)
    progress.evaluated("2.1034 bits per byte")
    progress.evaluated("2.0 bits per byte")
    progress.close()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("a run: step 3/6, loss 2.000, ") and "steps/s" in first
    assert first.endswith(", held out: 2.1034 bits per byte")
    assert second == "a run: step 3/6, held out: 2.0 bits per byte"


def test_without_evaluations_there_is_a_line_a_minute(capsys, monkeypatch):
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr("lm.training.metric_writer.time.perf_counter", lambda: float(next(clock)))
    progress = Progress(9, 0, "train")
    steps(progress, 8)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["train: step 3/9", "train: step 6/9"]


def test_on_a_terminal_there_is_a_bar_and_no_lines(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = Progress(6, 0, "train")
    steps(progress, 2)
    progress.evaluated("2.1 bits per byte")
    assert "held out" not in sys.stderr.getvalue() and "train" in sys.stderr.getvalue()
    progress.close()


def test_other_processes_than_the_first_say_nothing(capsys, monkeypatch):
    monkeypatch.setattr("lm.training.metric_writer.is_main", lambda: False)
    progress = Progress(6, 0, "train")
    steps(progress, 2)
    progress.evaluated("2.1 bits per byte")
    progress.close()
    assert capsys.readouterr().err == ""


def lines_of(kind, number):
    """What a run of some steps records, the held-out loss at every tenth."""
    for step in range(1, number + 1):
        yield {"step": step, "train/loss": 1 + 5 / step}
        if step % 10 == 0 and kind:
            yield {"step": step, kind: 1.2 + 5 / step, "eval/bits_per_byte": None}


@pytest.mark.parametrize(
    ("kind", "judged", "number", "panels"),
    [
        ("eval/nats_per_token", "eval/bits_per_byte", 300, 2),
        ("eval/mean_squared_error", "eval/mean_squared_error", 20, 1),
        ("eval/accuracy", "eval/accuracy", 20, 2),
        ("", "eval/accuracy", 20, 1),
    ],
)
def test_the_curve_of_a_run_is_drawn_from_what_it_recorded(kind, judged, number, panels, tmp_path):
    text = "".join(json.dumps(line) + "\n" for line in lines_of(kind, number))
    (tmp_path / "metrics.jsonl").write_text(text)
    draw_curve(tmp_path, judged)
    picture = imread(tmp_path / "curve.png")
    height, width = picture.shape[:2]
    assert width / height == pytest.approx(5.6 * panels / 4.2, rel=0.01)
    drawn = np.any(picture[..., :3] != picture[..., :1], axis=-1)  # coloured
    assert drawn.any() == bool(kind)
    assert [path.name for path in tmp_path.iterdir() if "curve" in path.name] == ["curve.png"]


def test_a_series_has_the_steps_at_which_its_metric_was_recorded(tmp_path):
    text = "".join(json.dumps(x) + "\n" for x in lines_of("eval/nats_per_token", 20))
    (tmp_path / "metrics.jsonl").write_text(text)
    at, values = series(read_metrics(tmp_path / "metrics.jsonl"), "eval/nats_per_token")
    assert at.tolist() == [10, 20] and values.tolist() == [1.7, 1.45]
