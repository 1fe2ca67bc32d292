"""Verdicts of a table are honest, and it shows all that it knows and nothing else."""

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest

from lm.errors import UserError
from lm.experiment.ablation.report.table import columns, to_csv, to_markdown
from lm.experiment.ablation.statistics.absolute import two_way_interval
from lm.experiment.ablation.statistics.comparison import tabulate
from lm.experiment.ablation.statistics.moderation import Variance
from lm.experiment.ablation.statistics.power import seeds_needed, smallest_effect
from tests.ablation_points import notes_of, rows_of, start


def test_a_clear_difference_is_found_with_three_seeds(finish):
    noise = (0.001, -0.001, 0.0005)
    points = [finish("softmax", s, 2 + 0.1 * s) for s in range(3)]
    points += [finish("good", s, 1.95 + 0.1 * s + noise[s]) for s in range(3)]
    points += [finish("bad", s, 2.05 + 0.1 * s - noise[s]) for s in range(3)]
    rows = rows_of(tabulate(points))
    assert rows["softmax"].verdict == "baseline"
    assert (rows["good"].verdict, rows["bad"].verdict) == ("better", "worse")
    accuracy = rows_of(tabulate(points, better="higher"))
    assert (accuracy["good"].verdict, accuracy["bad"].verdict) == ("worse", "better")


def test_an_interval_without_zero_is_no_verdict_when_there_are_many_rows(finish, tmp_path):
    points = [finish("softmax", s, 2.0) for s in range(4)]
    points += [finish("weak", s, 2.02 + 0.004 * (s - 1.5)) for s in range(4)]
    alone = rows_of(tabulate(points))["weak"]
    assert alone.verdict == "worse" and alone.interval[0] > 0
    crowd = [start(tmp_path, f"row{i}", s) for i in range(40) for s in range(4)]
    among = rows_of(tabulate(points + crowd))["weak"]  # rows still to come count from the start
    assert among.interval == alone.interval and among.p == alone.p
    assert among.p_holm == pytest.approx(min(1, 41 * alone.p))
    assert among.verdict == "not separable"


def test_mistakes_are_refused_with_what_is_there(finish):
    points = [finish("softmax", 0, 2.0), finish("x", 0, 1.9)]
    with pytest.raises(UserError, match="'relu' is not a row of this sweep; rows: softmax, x"):
        tabulate(points, baseline="relu")
    with pytest.raises(UserError, match="has no 'eval/f1'"):
        tabulate(points, metric="eval/f1")
    with pytest.raises(UserError, match="x seed 0 is given 2 times"):
        tabulate([*points, points[1]])
    with pytest.raises(UserError, match="the sweep is empty"):
        tabulate([])


def test_the_baseline_can_be_any_row_and_the_order_stays(finish):
    points = [finish(row, s, 2.0 + s) for row in ("a", "b") for s in range(2)]
    table = tabulate(points, baseline="b")
    assert [row.label for row in table.rows] == ["a", "b"]
    assert [row.verdict for row in table.rows] == ["identical", "baseline"]


# Words that are no verdict.


def test_a_verdict_waits_for_the_planned_seeds_of_both_rows(finish, tmp_path):
    points = [finish("softmax", s, 2 + 0.1 * s) for s in range(3)]
    points += [finish("good", s, 1.9 + 0.1 * s + 1e-3 * (s == 1)) for s in range(3)]
    assert rows_of(tabulate(points))["good"].verdict == "better"
    late = tabulate([*points, start(tmp_path, "good", 3), start(tmp_path, "softmax", 3)])
    row = rows_of(late)["good"]
    assert row.verdict == "in progress (3 of 4)" and row.interval[1] < 0
    fewer = tabulate([*points, start(tmp_path, "good", 4)])  # a seed that the baseline lacks
    assert rows_of(fewer)["good"].verdict == "better"


def test_a_row_of_which_one_seed_is_far_off_is_unstable(finish):
    random = np.random.default_rng(0)
    points = [finish("softmax", s, 2 + 0.1 * s) for s in range(5)]
    for row in "abcdef":
        points += [finish(row, s, 2 + 0.1 * s + 1e-3 * random.normal()) for s in range(5)]
    points += [finish("wild", s, 2 + 0.1 * s + 1e-3 * s + 0.5 * (s == 3)) for s in range(5)]
    table = tabulate(points)
    assert [row.verdict for row in table.rows[1:]] == 6 * ["not separable"] + ["unstable"]
    far = "wild is unstable: its difference is +0.503 in seed 3, and +0 to +0.004 in the others"
    assert far in notes_of(table)


def test_rows_without_a_difference_that_matters_are_equivalent(finish):
    noise = (2e-3, -1e-3, 1e-3, -2e-3)
    points = [finish("softmax", s, 2 + 0.1 * s) for s in range(4)]
    points += [finish("same", s, 2 + 0.1 * s + noise[s]) for s in range(4)]
    points += [finish("wide", s, 2 + 0.1 * s + 10 * noise[s]) for s in range(4)]
    points += [finish("worse", s, 2.005 + 0.1 * s + 0.1 * noise[s]) for s in range(4)]
    table = tabulate(points, margin=0.01)
    words = [row.verdict for row in table.rows[1:]]
    assert words == ["equivalent within 0.01", "not separable", "worse"]
    assert "So are worse, although better or worse" in notes_of(table)
    assert {row.p_equivalent for row in tabulate(points).rows} == {1.0}


def test_a_table_says_what_it_could_have_found(finish):
    points = [finish("softmax", s, 2 + 0.1 * s) for s in range(3)]
    points += [finish("x", s, 2 + 0.1 * s + (0.01, -0.02, 0.01)[s]) for s in range(3)]
    table = tabulate(points, margin=0.01)
    variance = Variance(np.var((0.01, -0.02, 0.01), ddof=1), 2)
    effect = smallest_effect(variance, 3, 1)
    assert rows_of(table)["x"].smallest_effect == pytest.approx(effect)
    seeds = seeds_needed(0.01, variance, 1)
    found = f"among 1 comparison, a difference of {effect:.2g} is found with a probability of 80 %"
    assert f"{found}; one of 0.01 needs {seeds} seeds." in notes_of(table)


def test_rows_of_a_group_are_compared_with_its_first_row(finish):
    noise, means = (1e-3, -1e-3, 0.0), {(4, "a"): 2.0, (4, "b"): 1.9, (8, "a"): 1.0, (8, "b"): 1.1}
    points = []
    for (size, head), mean in means.items():
        for s in range(3):
            own = mean + 0.1 * s + (noise[s] if head == "b" else 0)
            point = finish(f"head={head},d_model={size}", s, own)
            config = {"model": {"d_model": size}, "output": {"head": head}}
            (point.workdir / "config.json").write_text(json.dumps(config))
            points.append(point)
    for key in ("model.d_model", "d_model"):
        table = tabulate(points, against=[key])
        assert [row.verdict for row in table.rows] == ["baseline", "better", "baseline", "worse"]
    first, better, _, worse = table.rows
    assert (first.baseline, better.baseline, worse.baseline) == (
        "",
        "head=a,d_model=4",
        "head=a,d_model=8",
    )
    assert better.p_holm == pytest.approx(2 * better.p)  # over all comparisons
    assert "row minus the first row of the same d_model" in notes_of(table)
    with pytest.raises(UserError, match="d_modl is not a config key; did you mean model"):
        tabulate(points, against=["model.d_modl"])
    with pytest.raises(UserError, match="no two rows agree in it"):
        tabulate(points, against=["d_model", "head"])
    with pytest.raises(UserError, match="exclude each other"):
        tabulate(points, against=["d_model"], baseline=first.label)


def test_an_absolute_value_has_an_interval_where_sums_by_document_are_kept(finish):
    points = [finish("softmax", s, 2 + 0.1 * s) for s in range(3)]
    bits = [(2 + 0.1 * s + 0.01 * np.arange(-2, 3)) * 100 for s in range(3)]
    for point, own in zip(points, bits, strict=True):
        sums = {"nats": (own * math.log(2)).tolist(), "bytes": 5 * [100.0]}
        (point.workdir / "documents.json").write_text(json.dumps(sums))
    table = tabulate(points)
    (row,) = table.rows
    assert row.value_interval == pytest.approx(two_way_interval(np.array(bits), np.full(5, 100.0)))
    assert "other held-out documents" in notes_of(table)
    assert f"2.100 ± 0.058 [{row.value_interval[0]:.3f}" in to_markdown(table)
    (points[0].workdir / "documents.json").unlink()
    assert tabulate(points).rows[0].value_interval is None


def test_a_screen_has_ranks_with_intervals_and_no_verdicts(finish, tmp_path):
    random, levels = np.random.default_rng(0), {"softmax": 2.0, "a": 2.5, "b": 1.0, "c": 2.01}
    points = [
        finish(k, s, mean + 0.1 * s + 0.02 * random.normal())
        for k, mean in levels.items()
        for s in range(3)
    ]
    points += [start(tmp_path, "d", s) for s in range(3)]
    table = tabulate(points, protocol="screen")
    words = {row.label: row.verdict for row in table.rows}
    assert words["a"] == "rank 4 [4, 4]" and words["b"] == "rank 1 [1, 1]"
    assert {words["softmax"][6:], words["c"][6:]} == {" [2, 3]"} and words["d"] == "missing"
    assert "A screen has no verdicts" in notes_of(table)
    higher = rows_of(tabulate(points, protocol="screen", better="higher"))
    assert (higher["a"].rank, higher["b"].rank) == ((1, 1, 1), (4, 4, 4))


# The writing.


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace(r"\|", "\0").strip("|").split("|")]


def test_markdown_has_the_same_columns_in_every_line_and_lines_up(finish, tmp_path):
    points = [finish("a|b\nc", s, 2.0 + 0.1 * s) for s in range(2)]
    points += [finish("relu", 0, 1.9, flops_per_token=None), start(tmp_path, "none", 0)]
    head, rule, *body = to_markdown(tabulate(points)).split("\n\n")[0].splitlines()
    assert len({len(line) for line in (head, rule, *body)}) == 1
    assert {len(cells_of(line)) for line in (head, rule, *body)} == {7}
    assert len(body) == 3 and set(rule) == set("| -:")
    relu = dict(zip(cells_of(head), cells_of(body[1]), strict=True))
    assert relu["parameters"] == "0.831 M" and relu["FLOPs/token"] == ""
    assert set(cells_of(body[2])) == {"none", "0 of 1", "missing", ""}


def test_trained_parameters_are_a_column_where_a_row_leaves_some_alone(finish):
    whole = finish("full", 0, 2.0, trained_parameters=831_232)
    lora = finish("lora", 0, 2.1, trained_parameters=8_312)
    head, _, *body = to_markdown(tabulate([whole, lora])).split("\n\n")[0].splitlines()
    trained = cells_of(head).index("trainable")
    assert [cells_of(line)[trained] for line in body] == ["831 k", "8 k"]
    assert "trainable" not in to_markdown(tabulate([whole]))


def test_moderated_p_values_are_a_column_of_three_comparisons_and_stay_where_fewer_are_shown(
    finish,
):
    noise = np.random.default_rng(0).normal(size=(4, 3))
    points = [finish(row, s, 2 + noise[i, s]) for i, row in enumerate("abcd") for s in range(3)]
    table, fewer = tabulate(points), tabulate(points[:9])
    part = dataclasses.replace(table, rows=table.rows[:2])
    assert columns(part)["moderated p"] == ["", f"{table.rows[1].p_moderated:.3f}"]
    assert "moderated p" not in columns(fewer) and "Moderated p" not in notes_of(fewer)
    assert "moderated p" not in columns(tabulate(points, protocol="screen"))


def test_the_memory_of_a_step_is_a_column_where_it_is_known(finish):
    points = [finish("full", 0, 2.0, memory=61_000_000), finish("lora", 0, 2.1)]
    head, _, *body = to_markdown(tabulate(points)).splitlines()[:4]
    place = cells_of(head).index("step memory")
    assert [cells_of(line)[place] for line in body] == ["61.0 M", ""]


@pytest.mark.parametrize(("spread", "shown"), [(0.1, "2.00 ± 0.10"), (0.00123, "2.0000 ± 0.0012")])
def test_digits_follow_the_standard_error(finish, spread, shown):
    points = [finish("softmax", s, 2 + d * spread) for s, d in enumerate((-1, 1))]
    assert shown in to_markdown(tabulate(points))


def test_the_csv_keeps_full_precision_seed_by_seed(finish):
    values = [2 + 1 / 3, 2 + 1 / 7]
    table = tabulate([finish("a, b", s, v) for s, v in enumerate(values)])
    (row,) = csv.DictReader(io.StringIO(to_csv(table)))
    assert row["label"] == "a, b" and row["parameters"] == "831232"
    assert [float(v) for v in row["values"].split()] == values
    assert float(row["mean"]) == table.rows[0].mean and row["seeds"] == "0 1"
    assert row["difference"] == ""
