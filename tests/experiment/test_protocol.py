"""Rows are tuned by equal trials on other seeds, matched in cost, screened and confirmed."""

import json
import math

import pytest

from configs import default
from lm.config import override
from lm.errors import UserError
from lm.experiment.ablation.points import Ablation, load_ablation, make_points
from lm.experiment.ablation.tuning import Tuning
from lm.experiment.ablation.variation import Variation
from lm.experiment.protocol.match import describe_match, match_rows
from lm.experiment.protocol.stages import How, train_ablation
from lm.experiment.protocol.tune import describe, rounds, tune

ROWS = [{"attention.weighting": "softmax"}, {"attention.weighting": "sigmoid"}]
RATE = "optimizer.learning_rate"
RATES = (1e-3, 2e-3, 4e-3)
BEST = {"softmax": 2e-3, "sigmoid": 4e-3}


@pytest.fixture
def config():
    return override(
        default.get_config(),
        {
            "steps": 100,
            "schedule.warmup_steps": 10,
            "model.num_layers": 1,
            "model.d_model": 16,
            "model.num_heads": 2,
            "data.seq_len": 16,
        },
    )


@pytest.fixture
def trained():
    """Points that were "trained": their results are a function of their configs."""
    found = []

    def train(points, **_):
        for point in points:
            if (point.workdir / "result.json").exists():
                continue
            found.append(point)
            wrong = math.log(point.config.optimizer.learning_rate / BEST[kind(point)]) ** 2
            value = wrong + 1e-3 * (point.seed % 7) + (kind(point) == "sigmoid") / 10
            result = {"eval/bits_per_byte": value, "steps": 1, "seconds": 1.0, "config_hash": "x"}
            point.workdir.mkdir(parents=True, exist_ok=True)
            (point.workdir / "result.json").write_text(json.dumps(result))
        return []

    return found, train


def kind(point):
    return point.config.attention.weighting


def test_every_row_is_tuned_by_the_same_trials_on_seeds_that_are_not_the_tables(
    config, trained, tmp_path
):
    tuning = Tuning({RATE: RATES}, seeds=(50, 51))
    found = train_ablation(
        config, Ablation(ROWS, (0, 1), tuning=tuning), tmp_path, How(), trained[1]
    )
    trials = [p for p in trained[0] if p.seed >= 50]
    tried = sorted((kind(p), p.config.optimizer.learning_rate, p.seed) for p in trials)
    expected = [
        (k, rate, seed) for k in ("sigmoid", "softmax") for rate in RATES for seed in (50, 51)
    ]
    assert tried == expected
    assert {(p.row, p.config.optimizer.learning_rate) for p in found.ablated.points} == {
        ("weighting=softmax", 2e-3),
        ("weighting=sigmoid", 4e-3),
    }
    assert [*found.ablated.source.notes] == [
        f"Tuned: {RATE} in 0.001, 0.002, 0.004; 3 trials for each row with seed 50, 51. Chosen: "
        "weighting=softmax: learning_rate=0.002; weighting=sigmoid: learning_rate=0.004.",
        "WARNING: at the edge of the grid, beyond which other values may be better: "
        "weighting=sigmoid.",
    ]
    assert json.loads((tmp_path / "tuning.json").read_text())["choices"][1]["edges"] == [RATE]
    before = len(trained[0])
    train_ablation(config, Ablation(ROWS, (0, 1), tuning=tuning), tmp_path, How(), trained[1])
    assert len(trained[0]) == before


def test_the_command_line_tunes_what_a_file_does_not(tmp_path):
    found = load_ablation("configs/clm.py", "tiny", Variation(tune=(f"{RATE}=1e-3,2e-3",), seeds=2))
    assert found.tuning == Tuning({RATE: [1e-3, 2e-3]})
    with pytest.raises(UserError, match=r"--tune=model\.d_model=x: x must be a whole number"):
        load_ablation("configs/clm.py", "tiny", Variation(tune=("model.d_model=x",), seeds=2))


def test_halving_goes_on_with_the_better_half_of_each_row(config, trained, tmp_path):
    assert rounds(3, halving=True) == [(2, 0.25), (1, 0.5)]
    assert rounds(8, halving=True) == [(4, 0.125), (2, 0.25), (1, 0.5)]
    assert rounds(3, halving=False) == rounds(1, halving=True) == [(1, 1.0)]
    tuning = Tuning({RATE: RATES}, halving=True)
    choices = tune(config, Ablation(ROWS, (0,)), tuning, tmp_path, trained[1])
    assert [choice.settings[RATE] for choice in choices] == [2e-3, 4e-3]
    lengths = [(p.config.steps, p.config.schedule.warmup_steps) for p in trained[0]]
    assert lengths == [(25, 2)] * 6 + [(50, 5)] * 4
    assert {p.config.optimizer.learning_rate for p in trained[0][6:] if kind(p) == "sigmoid"} == {
        2e-3,
        4e-3,
    }


def test_halving_shortens_rows_that_were_matched_by_their_steps(config, trained, tmp_path):
    ablation = Ablation(ROWS, (0,)).with_settings([{}, {"steps": 200, "schedule.warmup_steps": 20}])
    tune(config, ablation, Tuning({RATE: RATES}, halving=True), tmp_path, trained[1])
    lengths = {(kind(p), p.config.steps, p.config.schedule.warmup_steps) for p in trained[0]}
    assert lengths == {
        ("softmax", 25, 2),
        ("softmax", 50, 5),
        ("sigmoid", 50, 5),
        ("sigmoid", 100, 10),
    }


def test_halving_shortens_epochs_where_these_say_how_long_a_row_is(config, trained, tmp_path):
    config = override(config, {"epochs": 4.0})
    tune(config, Ablation(ROWS, (0,)), Tuning({RATE: RATES}, halving=True), tmp_path, trained[1])
    assert {(p.config.epochs, p.config.steps) for p in trained[0]} == {(1.0, 100), (2.0, 100)}


def test_only_numbers_are_at_the_edge_of_a_grid(config, trained, tmp_path):
    tuning = Tuning({RATE: (1e-3, 2e-3, 4e-3, 8e-3), "model.qk_norm": (True, False)})
    choices = tune(config, Ablation(ROWS, (0,)), tuning, tmp_path, trained[1])
    assert [each.edges for each in choices] == [(), ()]


def test_a_row_none_of_whose_trials_finishes_is_said_to_be_untuned(config, trained, tmp_path):
    def train(points):
        trained[1]([point for point in points if kind(point) == "softmax"])

    tuning = Tuning({RATE: RATES})
    choices = tune(config, Ablation(ROWS, (0,)), tuning, tmp_path, train)
    assert choices[1].settings == {}
    note = "WARNING: untuned, since no trial finished: weighting=sigmoid."
    assert describe(choices, tuning)[-1] == note


@pytest.mark.parametrize(
    ("tuning", "part"),
    [
        (Tuning({RATE: RATES}, seeds=(1,)), "TUNE_SEEDS has 1, which is a seed of the table"),
        (Tuning({"attention.weighting": ("softmax",)}), "which sweep() sets"),
        (Tuning({"steps": (1, 2)}, halving=True), "TUNE_HALVING shortens runs, and steps is"),
        (Tuning({"optimizer.learning_rat": (1.0,)}), "learning_rat"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused_before_anything_is_trained(
    tuning, part, config, trained, tmp_path
):
    with pytest.raises(UserError, match=part.replace("(", r"\(").replace(")", r"\)")):
        train_ablation(config, Ablation(ROWS, (0, 1), tuning=tuning), tmp_path, How(), trained[1])
    assert not trained[0]


def test_the_best_of_a_screening_are_confirmed_with_fresh_seeds(config, trained, tmp_path):
    rows = [*ROWS, ROWS[0] | {RATE: 3e-3}, ROWS[0] | {RATE: 9e-3}]
    ablation = Ablation(rows, range(10), screen_seeds=(70, 71))
    with pytest.raises(UserError, match="run --protocol=screen to its end first"):
        train_ablation(config, ablation, tmp_path, How("confirm", shortlist=1), trained[1])
    screened = train_ablation(config, ablation, tmp_path, How("screen"), trained[1])
    assert screened.folder == tmp_path / "screen"
    assert {point.seed for point in screened.ablated.points} == {70, 71}
    found = train_ablation(config, ablation, tmp_path, How("confirm", shortlist=1), trained[1])
    assert len(found.ablated.points) == 2 * 10
    assert {p.config.optimizer.learning_rate for p in found.ablated.points} == {
        config.optimizer.learning_rate,
        3e-3,
    }
    assert (
        "Confirmed: the 1 best row of a screening with other seeds (70, 71)"
        in found.ablated.source.notes[0]
    )
    with pytest.raises(UserError, match="confirm trains at least 10 seeds, and there are 2"):
        train_ablation(config, Ablation(rows, (0, 1)), tmp_path, How("confirm"), trained[1])
    with pytest.raises(UserError, match="SCREEN_SEEDS has 1, which is a seed of the table"):
        few = Ablation(rows, range(10), screen_seeds=(1,))
        train_ablation(config, few, tmp_path, How("screen"), trained[1])


@pytest.mark.parametrize("how", ["failed", "not finite"])
def test_a_row_of_which_a_seed_of_the_screening_failed_is_not_confirmed(
    config, trained, tmp_path, how
):
    rows = [*ROWS, ROWS[0] | {RATE: 2.1e-3}]
    ablation = Ablation(rows, range(10), screen_seeds=(70, 71))
    points = train_ablation(config, ablation, tmp_path, How("screen"), trained[1]).ablated.points
    (folder,) = [p.workdir for p in points if "0.0021" in p.row and p.seed == 71]  # the best row
    if how == "failed":
        (folder / "result.json").unlink()
        (folder / "error.txt").write_text("FloatingPointError: no luck")
    else:
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"eval/bits_per_byte": math.nan}))
    found = train_ablation(config, ablation, tmp_path, How("confirm", shortlist=2), trained[1])
    assert {point.row for point in found.ablated.points} == {
        "weighting=softmax",
        "weighting=sigmoid",
    }


def test_confirmed_rows_bring_the_baselines_of_their_groups(config, trained, tmp_path):
    rows = [row | {"model.d_model": width} for width in (16, 32) for row in ROWS]
    against = ["model.d_model"]
    ablation = Ablation(rows, range(10), screen_seeds=(70, 71), against=against)
    train_ablation(config, ablation, tmp_path, How("screen"), trained[1])
    ablated = train_ablation(
        config, ablation, tmp_path, How("confirm", shortlist=1), trained[1]
    ).ablated
    assert len({point.row for point in ablated.points}) == 2
    assert len({point.config.model.d_model for point in ablated.points}) == 1
    assert ablated.source.against == ("model.d_model",)


def test_rows_have_the_parameters_and_the_flops_of_the_baseline(config, tmp_path):
    rows = [{"model.num_layers": 2}, {"model.num_layers": 1}]
    by_width = match_rows(config, Ablation(rows, (0,)), "parameters", tmp_path)
    assert by_width[1].amount == pytest.approx(by_width[1].baseline, rel=0.02)
    assert by_width[1].settings["model.mlp_dim"] > 2 * 64
    by_steps = match_rows(config, Ablation(rows, (0,)), "flops", tmp_path)
    assert by_steps[1].settings["steps"] > 100
    assert by_steps[1].amount == pytest.approx(by_steps[1].baseline, rel=0.005)
    assert "Matched in flops with num_layers=2" in describe_match(by_steps, "flops")
    with pytest.raises(UserError, match="no time of a step of num_layers=2; measure"):
        match_rows(config, Ablation(rows, (0,)), "time", tmp_path)
    times = {
        label: {"seconds": seconds} for label, seconds in (("num_layers=2", 3), ("num_layers=1", 2))
    }
    for broken in (3, {}, {"seconds": None}, {"seconds": 0}):
        (tmp_path / "speed.json").write_text(json.dumps(times | {"num_layers=1": broken}))
        with pytest.raises(UserError, match="no time of a step of num_layers=1; measure"):
            match_rows(config, Ablation(rows, (0,)), "time", tmp_path)
    (tmp_path / "speed.json").write_text(json.dumps(times))
    found = match_rows(config, Ablation(rows, (0,)), "time", tmp_path)
    assert [each.settings.get("steps") for each in found] == [None, 150]
    matched = Ablation(rows, (0,)).with_settings([each.settings for each in found])
    assert [p.config.steps for p in make_points(config, matched, tmp_path)] == [100, 150]
    assert [p.row for p in make_points(config, matched, tmp_path)] == [each.row for each in found]


def test_a_match_by_a_key_that_the_rows_set_is_refused(config, tmp_path):
    rows = [{"model.mlp_dim": 8}, {"model.mlp_dim": 16}]
    with pytest.raises(UserError, match=r"sets model.mlp_dim, which sweep\(\) varies"):
        match_rows(config, Ablation(rows, (0,)), "parameters", tmp_path)
    with pytest.raises(UserError, match="sets steps, which is tuned; leave out one"):
        tuned = Ablation(ROWS, (0,), tuning=Tuning({"steps": (50, 100)}))
        match_rows(config, tuned, "flops", tmp_path)


def test_the_warm_up_of_a_row_stays_its_share_of_the_steps(config, tmp_path):
    rows = [{"model.num_layers": 1}, {"model.num_layers": 1, "schedule.warmup_steps": 40}]
    labels = Ablation(rows, (0,)).labels
    times = {label: {"seconds": seconds} for label, seconds in zip(labels, (2, 1), strict=True)}
    (tmp_path / "speed.json").write_text(json.dumps(times))
    found = match_rows(config, Ablation(rows, (0,)), "time", tmp_path)
    assert found[1].settings == {"steps": 200, "schedule.warmup_steps": 80}
