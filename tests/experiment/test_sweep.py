"""An ablation trains each point once, pairs rows by seed, and survives a point that breaks."""

import collections
import contextlib
import json
import shutil
import threading
import time

import pytest

from lm.config import override, to_dict
from lm.errors import UserError
from lm.experiment.ablation import sweep as sweep_module
from lm.experiment.ablation.points import Ablation, make_points, row_label
from lm.experiment.ablation.report.output import View, report_tables
from lm.experiment.ablation.report.recorded import read_ablation
from lm.experiment.ablation.report.table import to_markdown
from lm.experiment.ablation.statistics.comparison import tabulate
from lm.experiment.ablation.sweep import train_points
from lm.experiment.claim import Held, claim
from tests.claims import held_elsewhere

ROWS = [{"attention.weighting": "softmax"}, {"attention.weighting": "sparsemax"}]


@pytest.fixture
def ablation(small_config):
    return override(small_config, {"steps": 4, "evaluation.every": 2, "checkpoint.every": 0})


def results(found):
    timed = ("seconds", "tokens_per_second")
    contents = [json.loads((p.workdir / "result.json").read_text()) for p in found]
    return [{k: v for k, v in content.items() if k not in timed} for content in contents]


def test_a_second_sweep_trains_nothing_and_a_lost_point_is_retrained_to_the_same_numbers(
    ablation, tmp_path, monkeypatch
):
    found = make_points(ablation, Ablation(ROWS, (0, 1)), tmp_path)
    assert train_points(found) == []
    before = results(found)
    printed = report_tables(read_ablation(tmp_path), View(), tmp_path)
    assert {"table.md", "table.csv", "table.png"} <= {path.name for path in tmp_path.iterdir()}
    assert to_markdown(tabulate(found)) in printed

    trained = []
    original = sweep_module.run_experiment

    def counting(config, workdir, name):
        trained.append(workdir)
        return original(config, workdir, name)

    monkeypatch.setattr(sweep_module, "run_experiment", counting)
    train_points(found)
    assert trained == []
    shutil.rmtree(found[2].workdir)
    train_points(found)
    assert trained == [found[2].workdir]
    assert results(found) == before


def test_a_broken_point_is_reported_and_stays_failed_until_it_is_to_be_retried(
    ablation, tmp_path, monkeypatch, capsys
):
    found = make_points(ablation, Ablation(ROWS, (0,)), tmp_path)
    original = sweep_module.run_experiment

    def breaking(config, workdir, name):
        if config.attention.weighting == "softmax":
            raise FloatingPointError("no luck")
        return original(config, workdir, name)

    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "run_experiment", breaking)
        assert train_points(found) == [found[0]]
    assert "failed: no luck" in capsys.readouterr().err
    assert "no luck" in (found[0].workdir / "error.txt").read_text()
    assert (found[1].workdir / "result.json").exists()
    assert "no luck" in to_markdown(tabulate(found))
    assert train_points(found) == [found[0]]
    assert "seed 0 failed before; --retry trains it again: " in capsys.readouterr().err
    assert train_points(found, retry=True) == []
    assert not (found[0].workdir / "error.txt").exists()


@pytest.fixture
def quick(monkeypatch):
    """Points that only take a moment, or break; how often each was trained."""
    monkeypatch.setattr(sweep_module, "POLL", 0.01)
    trained = collections.Counter()

    def learn(config, workdir, name):
        with claim(workdir):
            if not (workdir / "result.json").exists():
                trained[workdir] += 1
                time.sleep(0.02)
                if config.seed == 2:
                    raise FloatingPointError("no luck")
                result = {"eval/bits_per_byte": 1.0, "seconds": 1.0}
                (workdir / "config.json").write_text(json.dumps(to_dict(config)))
                (workdir / "result.json").write_text(json.dumps(result))
        return {"eval/bits_per_byte": 1.0, "seconds": 1.0}

    monkeypatch.setattr(sweep_module, "run_experiment", learn)
    return trained


def test_sweeps_that_share_train_every_point_once_and_all_know_what_broke(
    ablation, tmp_path, quick
):
    found, broken = make_points(ablation, Ablation(ROWS, (0, 1, 2, 3)), tmp_path), []
    workers = [
        threading.Thread(target=lambda: broken.append(train_points(found, share=True)))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert dict(quick) == {point.workdir: 1 for point in found}
    assert broken == [[found[4], found[5]]] * 3


def test_a_sweep_that_shares_waits_for_the_points_of_others(ablation, tmp_path, quick, capsys):
    found = make_points(ablation, Ablation(ROWS, (0, 1)), tmp_path)
    with contextlib.ExitStack() as theirs:
        theirs.enter_context(held_elsewhere(found[0].workdir))
        threading.Timer(0.2, theirs.pop_all().close).start()
        assert train_points(found, share=True) == []
    assert list(quick) == [*(point.workdir for point in found[1:]), found[0].workdir]
    assert capsys.readouterr().out.count("waiting: ") == 1


def test_a_sweep_that_shares_nothing_says_who_is_at_work_and_trains_nothing(
    ablation, tmp_path, quick
):
    found = make_points(ablation, Ablation(ROWS, (0, 1)), tmp_path)
    with held_elsewhere(found[1].workdir), pytest.raises(Held, match="is held by process"):
        train_points(found)
    with held_elsewhere(tmp_path):
        for share in (False, True):
            with pytest.raises(Held, match="is held by process"):
                train_points(found, share)
    assert not quick


def test_rows_of_a_seed_share_batches_and_points_are_named_by_content(ablation, tmp_path):
    found = make_points(ablation, Ablation(ROWS, (0, 1)), tmp_path)
    assert len({point.workdir for point in found}) == 4
    assert [point.seed for point in found] == [0, 0, 1, 1]
    again = make_points(ablation, Ablation(ROWS, (0, 1)), tmp_path)
    assert [p.workdir for p in again] == [p.workdir for p in found]
    longer = make_points(override(ablation, {"steps": 5}), Ablation(ROWS, (0, 1)), tmp_path)
    assert {p.workdir for p in longer}.isdisjoint(p.workdir for p in found)


def test_labels_say_what_is_set():
    assert (
        row_label({"attention.weighting": "softcap", "attention.cap": 2.0})
        == "weighting=softcap,cap=2.0"
    )
    assert row_label({}) == "default"


def test_keys_that_end_alike_are_told_apart_in_every_row_of_the_ablation(ablation, tmp_path):
    rows = [
        {},
        {"attention.weighting": "softcap", "attention.cap": 20.0},
        {"output.cap": 20.0},
        {"steps": 5},
    ]
    found = make_points(ablation, Ablation(rows, (0,)), tmp_path)
    labels = ["default", "weighting=softcap,attention.cap=20.0", "output.cap=20.0", "steps=5"]
    assert [point.row for point in found] == labels
    assert row_label({"a.b.c": 1, "d.b.c": 2, "c": 3}) == "a.b.c=1,d.b.c=2,c=3"


def test_two_rows_of_one_name_are_refused_before_any_work(ablation, tmp_path):
    plain = ablation.data.source
    rows = [{"data.source": plain, "steps": 5}, {"data.source": f"{plain},steps=5"}]
    with pytest.raises(UserError, match=r"two rows that are both called source=.*,steps=5"):
        make_points(ablation, Ablation(rows, (0,)), tmp_path)


def test_a_row_that_names_another_checkpoint_takes_its_model(ablation, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lm.checkpoints.resolve.with_checkpoint_model",
        lambda c: override(c, {"model.num_layers": 3}),
    )
    rows = [{}, {"init_from": "hf:B"}]
    assert [
        p.config.model.num_layers for p in make_points(ablation, Ablation(rows, (0,)), tmp_path)
    ] == [1, 3]
    with pytest.raises(
        UserError, match=r"layers=2: config.model.num_layers = 2 contradicts .* has 3"
    ):
        make_points(ablation, Ablation([rows[1] | {"model.num_layers": 2}], (0,)), tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"attention.wieghting": 1}],
            "wieghting, which is .*; did you mean attention.weighting.$",
        ),
        ([{"attention.weighting": "sofmax"}], "row weighting=sofmax: .*did you mean softmax"),
        ([{}, {}], "twice"),
        ([{}, {"model.bias": True}], "has default and bias=True, which are one config"),
        ([], "no point"),
    ],
)
def test_an_impossible_row_stops_the_ablation_before_any_work(ablation, tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        make_points(ablation, Ablation(rows, (0,)), tmp_path)
