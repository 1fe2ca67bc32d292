"""Rows that cannot be compared get no verdict, and their table says why."""

import json

import pytest

from lm.experiment.ablation.report.table import to_markdown
from lm.experiment.ablation.statistics.comparison import tabulate
from tests.ablation_points import notes_of, rows_of, start


def test_identical_runs_are_called_identical_and_have_no_interval(finish):
    points = [finish(row, s, 2.0 + 0.1 * s) for row in ("softmax", "twin") for s in range(3)]
    twin = rows_of(tabulate(points))["twin"]
    assert (twin.difference, twin.interval, twin.verdict) == (0.0, None, "identical")


def test_a_difference_without_spread_is_no_evidence(finish):
    points = [finish("softmax", s, 2.1) for s in range(3)] + [finish("x", s, 2.4) for s in range(3)]
    table = tabulate(points)
    row = rows_of(table)["x"]
    assert (row.interval, row.p, row.verdict) == (None, 1.0, "not separable")
    assert "x has one value for several seeds" in notes_of(table)


def test_one_seed_gives_a_difference_but_no_interval_and_no_verdict(finish):
    row = rows_of(tabulate([finish("softmax", 0, 2.0), finish("x", 0, 1.9)]))["x"]
    assert row.difference == pytest.approx(-0.1)
    assert (row.standard_error, row.interval, row.verdict) == (None, None, "one seed")


def test_rows_are_compared_over_the_seeds_that_both_have_finished(finish, tmp_path):
    points = [finish("softmax", s, v) for s, v in ((0, 2.0), (1, 2.2), (2, 9.0))]
    points += [finish("x", s, v) for s, v in ((1, 2.0), (0, 1.9))] + [start(tmp_path, "x", 2)]
    table = tabulate(points)
    row = rows_of(table)["x"]
    assert (row.seeds, row.pairs, row.n, row.missing) == ((0, 1), (0, 1), 2, 1)
    assert row.difference == pytest.approx(-0.15)
    assert "x: means are over unlike seeds" in notes_of(table)
    assert "2 of 3" in to_markdown(table)
    apart = tabulate([points[0], points[3]])
    assert rows_of(apart)["x"].verdict == "no shared seed"


def test_a_row_on_other_data_gets_no_verdict_and_is_named(finish):
    points = [finish(row, s, 2.0 + 0.1 * s) for row in ("softmax", "twin") for s in range(3)]
    points += [finish("x", s, 1.5 + 0.11 * s, data_hash="beef") for s in range(3)]
    table = tabulate(points)
    assert [row.verdict for row in table.rows] == ["baseline", "identical", "not comparable"]
    assert "WARNING: data_hash is d41d in 6 points but beef in x seed 0" in notes_of(table)


def test_rows_that_trained_for_other_steps_get_no_verdict(finish):
    points = [finish("softmax", s, 2.0 + 0.1 * s) for s in range(3)]
    points += [finish("long", s, 1.5 + 0.11 * s, steps=200) for s in range(3)]
    table = tabulate(points)
    assert rows_of(table)["long"].verdict == "not comparable"
    assert "WARNING: steps is 100 in 3 points but 200 in long seed 0" in notes_of(table)


@pytest.mark.parametrize(
    ("own", "other", "warning"),
    [
        ({"batch_size": 8}, {"batch_size": 16}, "batch_size is 8"),
        ({"eval/bytes": 64.0}, {"eval/bytes": 32.0}, "held-out bytes is 64.0"),
        ({"eval/examples": 9.0}, {"eval/examples": 4.0}, "held-out examples is 9.0"),
        ({"eval/tokens": 9.0}, {"eval/tokens": 4.0}, "held-out tokens is 9.0"),
    ],
)
def test_rows_that_learned_or_were_asked_otherwise_get_no_verdict(finish, own, other, warning):
    points = [finish("softmax", s, 2.0 + 0.1 * s, **own) for s in range(3)]
    points += [finish("other", s, 1.5 + 0.11 * s, **other) for s in range(3)]
    table = tabulate(points)
    assert rows_of(table)["other"].verdict == "not comparable"
    assert f"WARNING: {warning} in 3 points but " in notes_of(table)


@pytest.mark.parametrize(("tokens", "word"), [(80_640, "better"), (76_800, "not comparable")])
def test_rows_that_saw_as_many_tokens_in_other_batches_are_compared(finish, tokens, word):
    points = [finish("a", s, 2 + 0.1 * s, batch_size=8, tokens_seen=80_000) for s in range(3)]
    wide = {"batch_size": 16, "steps": 50, "tokens_seen": tokens}
    points += [finish("b", s, 1.5 + 0.1 * s + 1e-3 * s, **wide) for s in range(3)]
    table = tabulate(points)
    assert rows_of(table)["b"].verdict == word
    assert rows_of(tabulate(points, matched="flops"))["b"].verdict == "better"
    assert "WARNING: tokens seen is 80000 in 3 points" in notes_of(table)
    assert "batch_size" not in notes_of(table)


def test_tokens_seen_of_older_results_follow_from_the_config(finish):
    lengths = {"short": 64, "long": 128}
    points = [finish(k, s, 2.0 + s, batch_size=8) for k in lengths for s in range(2)]
    for point in points:
        config = {"data": {"seq_len": lengths[point.row]}}
        (point.workdir / "config.json").write_text(json.dumps(config))
    table = tabulate(points)
    assert rows_of(table)["long"].verdict == "not comparable"
    assert "tokens seen is 51200 in 2 points but 102400" in notes_of(table)


def test_tokenizers_are_compared_on_the_same_bytes(finish):
    sizes = {"bytes": 64.0, "words": 16.0}
    points = [
        finish(name, s, 2.0 + 0.1 * s + len(name), **{"eval/bytes": 64.0, "eval/tokens": tokens})
        for name, tokens in sizes.items()
        for s in range(3)
    ]
    assert rows_of(tabulate(points))["words"].verdict != "not comparable"


def test_seeds_of_one_accuracy_are_used_where_anything_else_differs(finish):
    metric = "eval/accuracy"
    points = [finish("a", s, 1.0 + s, **{metric: 0.5}) for s in range(3)]
    assert "are they used" not in notes_of(tabulate(points, metric=metric))
    points = [finish("b", s, 1.0, **{metric: 0.5}) for s in range(3)]
    assert "b has one value for several seeds" in notes_of(tabulate(points, metric=metric))


def test_mixed_devices_commits_and_versions_are_named(finish):
    points = [finish("softmax", 0, 2.0), finish("softmax", 1, 2.1)]
    changes = {"device": "H100", "commit": "def", "versions": {"jax": "0.11.0", "flax": "0.12.0"}}
    notes = notes_of(tabulate([*points, finish("x", 0, 1.9, **changes)]))
    for what in ("device is cpu", "commit is abc123", "jax is 0.10.1"):
        assert f"WARNING: {what} in 2 points but " in notes
    assert "flax 0.12.0" in notes.splitlines()[-1] and "jax" not in notes.splitlines()[-1]


def test_what_is_missing_is_named_with_its_reason(finish, tmp_path):
    failed, torn, waiting = (start(tmp_path, "x", s) for s in range(3))
    (failed.workdir / "error.txt").write_text(
        "Traceback (most recent call last):\n  File x\nMemoryError: 80 GiB\nof memory\n\n"
    )
    (torn.workdir / "result.json").write_text('{"eval/bits_per')
    points = [finish("softmax", 0, 2.0), failed, torn, waiting, finish("x", 3, 2.0, seed=7)]
    points += [finish("x", 4, 2.0, **{"eval/bits_per_byte": None})]
    table = tabulate(points)
    row = rows_of(table)["x"]
    assert (row.n, row.mean, row.missing, row.verdict) == (0, None, 5, "missing")
    text = to_markdown(table)
    reasons = ("failed, MemoryError: 80 GiB", "unreadable", "not finished", "mislabelled", "")
    for seed, reason in enumerate(reasons):
        assert f"- Missing: x seed {seed}: {reason}" in text


@pytest.mark.parametrize("loser", ["softmax", "x"])
@pytest.mark.parametrize("how", [float("nan"), float("inf"), "error.txt"])
def test_no_verdict_rests_on_the_seeds_that_survived(finish, tmp_path, loser, how):
    points = [finish("softmax", s, 2 + 0.1 * s) for s in range(3)]
    points += [finish("x", s, v) for s, v in enumerate((1.5, 1.601, 1.699))]
    assert rows_of(tabulate(points))["x"].verdict == "better"
    if how == "error.txt":
        points += [start(tmp_path, loser, 3)]
        (points[-1].workdir / "error.txt").write_text("UserError: the loss is not finite")
    else:
        points += [finish(loser, 3, how)]
    table = tabulate(points)
    row = rows_of(table)["x"]
    assert (row.n, row.verdict) == (3, "failed seed") and row.interval[1] < 0
    assert f"{loser} seed 3: failed" in table.missing[0]
