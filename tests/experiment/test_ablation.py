"""An ablation's file says rows, seeds and metrics; each mistake in it is one line that names it."""

import pytest

from configs import default
from lm.errors import UserError
from lm.experiment.ablation.points import Ablation, Variation, load_ablation, make_points

SWEEP = "def sweep(arg=None):\n    {}\n\nSEEDS = (0, 1)\n"
MISTAKES = {
    "sweep() returns nothing": (SWEEP.format("return None"), "sweep() returns None; let it yield"),
    "sweep() returns a string": (SWEEP.format("return 'ab'"), "sweep() returns 'ab'; let it yield"),
    "sweep() returns one row": (
        SWEEP.format("return {'steps': 3}"),
        "sweep() returns {'steps': 3}; let it yield",
    ),
    "sweep() returns a number": (SWEEP.format("return 3"), "TypeError: 'int' object is not iter"),
    "sweep() yields a string": (SWEEP.format("yield 'softmax'"), "yields 'softmax', which is not"),
    "a row's key is a number": (SWEEP.format("yield {3: 4}"), "yields {3: 4}, which is not a dict"),
    "sweep() raises": (SWEEP.format("raise RuntimeError('why')"), " line 2: RuntimeError: why"),
    "sweep() raises at its second row": (
        SWEEP.format("yield {}; yield 1 / 0"),
        " line 2: ZeroDivisionError: division by zero",
    ),
    "sweep() exits": (SWEEP.format("exit(3)"), " line 2: SystemExit: 3"),
    "sweep() takes no argument": ("def sweep(): yield {}\nSEEDS = [0]", "takes 0 positional"),
    "sweep is no function": ("sweep = [{}]\nSEEDS = [0]", "TypeError: 'list' object is not call"),
    "SEEDS is a number": (SWEEP.format("yield {}") + "SEEDS = 3", "SEEDS = 3 is not a list of"),
    "a seed is a word": (SWEEP.format("yield {}") + "SEEDS = ('a',)", "SEEDS = ('a',) is not a"),
    "AGAINST is a number": (
        SWEEP.format("yield {}") + "AGAINST = 3",
        "AGAINST = 3 is not a list of config keys",
    ),
    "METRIC is a list": (
        SWEEP.format("yield {}") + "METRIC = ['a']",
        "METRIC = ['a'] is not the name",
    ),
    "ALSO is a string": (SWEEP.format("yield {}") + "ALSO = 'a'", "ALSO = 'a' is not a list of m"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_an_ablation_is_one_line_that_names_it(mistake, tmp_path):
    content, message = MISTAKES[mistake]
    path = tmp_path / "own.py"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_ablation(str(path))
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [{"": 1}, {"steps": object()}, {"attention": 3}, {"steps.a": 1}])
def test_a_row_that_sets_no_config_key_is_refused_before_training(row, tmp_path):
    with pytest.raises(UserError, match="sweep"):
        make_points(default.get_config(), Ablation([row], (0,)), tmp_path)


def test_an_ablation_has_its_rows_in_order_and_its_first_seeds(tmp_path):
    path = tmp_path / "own.py"
    text = SWEEP.format("yield {'steps': 3}; yield {'steps': 4}")
    path.write_text(text + "METRIC = 'eval/f1'\nAGAINST = 'model.d_model'")
    found = load_ablation(str(path), variation=Variation(seeds=1))
    assert found.rows == [{"steps": 3}, {"steps": 4}]
    assert found.seeds == (0,)
    assert found.metrics == ("eval/f1",)
