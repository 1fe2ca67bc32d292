"""Any config is an ablation from the command line: a grid of values, draws, and both."""

import itertools

import pytest

from configs import default
from lm.errors import UserError
from lm.experiment.ablation import Variation, load_ablation, make_points
from lm.experiment.ablation.draw import draw_rows
from lm.experiment.ablation.vary import vary_rows
from tests.commands import run

CLM, ATTENTION = "configs/clm.py", "configs/attention.py"
RATE = "optimizer.learning_rate"


def test_every_combination_is_a_row_and_the_first_is_the_baseline():
    grid = ["attention.weighting=softmax,sigmoid", f"{RATE}=1e-3,3e-3"]
    found = load_ablation(CLM, "tiny", Variation(grid, seeds=3))
    pairs = itertools.product(("softmax", "sigmoid"), (1e-3, 3e-3))
    assert found.rows == [{"attention.weighting": w, RATE: r} for w, r in pairs]
    assert list(found.seeds) == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("steps=20,1e3", [20, 1000]),
        ("epochs=None,2", [None, 2.0]),
        ("model.bias=true,False", [True, False]),
        ("data.source=stdlib,'files:a,b'", ["stdlib", "files:a,b"]),
        ("attention.gate=None,'None',head", [None, "None", "head"]),
        ("attention.learn=(),(alpha),[cap,'bias']", [(), ("alpha",), ("cap", "bias")]),
        ("attention.anneal=(alpha, 1.0, 1.5, 1000)", [("alpha", 1.0, 1.5, 1000)]),
        ("special_tokens=((), (1,), (0,)),None", [((), (1,), (0,)), None]),
    ],
)
def test_values_have_the_type_of_their_key(text, values):
    key = text.partition("=")[0]
    assert [row[key] for row in vary_rows([{}], [text])] == values


def test_a_grid_multiplies_the_rows_of_a_config_that_has_some():
    own = [row["attention.weighting"] for row in load_ablation(ATTENTION, "tiny").rows]
    found = load_ablation(ATTENTION, "tiny", Variation([f"{RATE}=1e-3,3e-3"], seeds=2))
    expected = list(itertools.product(own, (1e-3, 3e-3)))
    assert [(row["attention.weighting"], row[RATE]) for row in found.rows] == expected
    assert found.seeds == (0, 1)


def test_every_row_has_the_same_draws_and_more_trials_keep_the_first(tmp_path):
    draw = [f"{RATE}=log:1e-4:3e-2", "model.num_layers=1:3"]
    found = [
        load_ablation(CLM, "tiny", Variation(["attention.weighting=softmax,sigmoid"], draw, n))
        for n in (5, 9)
    ]
    assert found[1].rows[:10] == found[0].rows and len(found[1].rows) == 18
    for first, second in zip(found[1].rows[::2], found[1].rows[1::2], strict=True):
        assert first == {**second, "attention.weighting": "softmax"}
        assert 1e-4 <= first[RATE] <= 3e-2 and 1 <= first["model.num_layers"] <= 3
    points = make_points(default.get_config(), found[0], tmp_path)
    assert len({point.workdir for point in points}) == 10


def test_draws_are_spread_over_their_range_and_the_same_for_ever():
    rates = [row[RATE] for row in draw_rows([{}], [f"{RATE}=log:1e-4:1e-2"], 16)]
    assert sum(rate < 1e-3 for rate in rates) == 8 and len(set(rates)) == 16
    assert rates[:2] == [0.0006605, 0.003215]
    whole = [row["steps"] for row in draw_rows([{}], ["steps=1:8"], 8)]
    assert sorted(whole) == list(range(1, 9))
    chosen = [row["model.bias"] for row in draw_rows([{}], ["model.bias={true,false}"], 2)]
    assert sorted(chosen) == [False, True]


MISTAKES = {
    "an unknown key": (
        ["--vary=attention.wieghting=softmax"],
        "attention.wieghting is no config key; did you mean attention.weighting?",
    ),
    "a key with config. before it": (
        ["--vary=config.steps=3"],
        "config.steps is no config key; did you mean steps?",
    ),
    "a text for a number": (["--vary=steps=many,3"], "many must be a whole number"),
    "a fraction of steps": (["--vary=steps=1.5"], "1.5 must be a whole number"),
    "a number for a truth value": (["--vary=model.bias=2"], "2 must be true or false"),
    "no tuple": (["--vary=attention.learn=alpha"], "alpha must be a tuple such as (a,b)"),
    "None where it is no value": (["--vary=steps=None"], "None must be a whole number"),
    "an open parenthesis": (["--vary=attention.learn=(a"], "')' is missing at its end"),
    "an empty value": (["--vary=steps=1,,2"], "a value is empty"),
    "no values": (["--vary=steps"], "--vary=steps is not of the form --vary=KEY=A,B"),
    "a value twice": (["--vary=steps=3,3"], "names 3 twice"),
    "a key twice": (["--vary=steps=3", "--vary=steps=4"], "steps is given twice"),
    "a key in both": (
        ["--vary=steps=3", "--draw=steps=1:9", "--trials=2"],
        "--draw=steps=...: the ablation varies steps already",
    ),
    "seeds": (["--vary=seed=0,1"], "use --seeds=N, or SEEDS in the config's file"),
    "a key that is set as well": (
        ["--vary=steps=3,4", "--config.steps=5"],
        "--config.steps is what the ablation varies; change --vary or --draw",
    ),
    "an impossible row": (
        ["--vary=attention.weighting=softmax,sofmax"],
        "row weighting=sofmax: config.attention.weighting = 'sofmax' is not one of",
    ),
    "rows that are one": (
        ["--vary=model.qkv_bias=None", "--vary=model.bias=true", "--draw=steps=3:4", "--trials=3"],
        "--trials=3 is more than the 2 values that --draw has; use 2, or --vary",
    ),
    "trials of nothing": (["--trials=3"], "--trials=3 needs --draw=KEY=LOW:HIGH"),
    "draws without a number": (["--draw=steps=1:9"], "--draw=steps=1:9 needs --trials=N"),
    "an empty range": (["--draw=steps=9:1", "--trials=2"], "9 is not below 1"),
    "a logarithm of 0": ([f"--draw={RATE}=log:0:1", "--trials=2"], "begins above 0, not at 0"),
    "no distribution": ([f"--draw={RATE}=normal:0:1", "--trials=2"], "says no distribution; use"),
    "a bound of another type": (["--draw=steps=1.5:9", "--trials=2"], "'1.5' is no whole number"),
    "a range of names": (
        ["--draw=attention.weighting=a:b", "--trials=2"],
        "attention.weighting is no number; name its values by a list such as {1,2,4}",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, tmp_path):
    given, message = MISTAKES[mistake]
    values = {"vary": [], "draw": [], "trials": [None], "config.steps": []}
    for flag in given:
        name, _, value = flag[2:].partition("=")
        values[name].append(value)
    trials = int(values["trials"][-1]) if values["trials"][-1] else None
    asked = Variation(values["vary"], values["draw"], trials)
    set_keys = ["steps"] if values["config.steps"] else []
    with pytest.raises(UserError) as caught:
        ablation = load_ablation(CLM, "tiny", asked, set_keys)
        make_points(default.get_config(), ablation, tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_on_the_command_line_is_status_2(tmp_path):
    finished = run("sweep", f"--config={CLM}:tiny", f"--workdir={tmp_path}", "--vary=steps=many")
    assert finished.returncode == 2
    assert finished.stderr == "run.py: --vary=steps=many: many must be a whole number\n"
