"""Published results are measured again by recipes, seed by seed, and compared with what was
published.
"""

import ast
import importlib
import json

import pytest
from etils import epath

from configs import finetune
from lm.config import override
from lm.errors import UserError
from lm.experiment.reproduce import expected as expected_module
from lm.experiment.reproduce import list_expected, reproduce_named
from lm.experiment.reproduce.deviation import deviation
from lm.experiment.reproduce.expected import EXPERIMENTS, Quantity, all_expected, read_expected
from lm.experiment.reproduce.measure import read_seed

NETWORK = {"bert_mrpc": "mrpc", "lora_mrpc": "mrpc", "bert_conll2003": "conll2003"}
CLAIM = {
    "title": "Seeds are counted.",
    "source": {"paper": "Nobody 2020", "arxiv": "2000.00001", "place": "Table 1"},
    "minutes": 0.1,
    "needs": "",
    "published_setup": "By hand.",
    "differs": ["By a machine."],
    "quantities": {
        "value": {"what": "seed plus 10", "published": 11, "tolerance": 5},
        "sign": {"what": "seed", "published": "large", "above": 0.5},
    },
}
RECIPE = """
SEEDS = (1, 2, 3)


def measure(seed, folder):
    with open(folder.parent.parent / "calls", "a") as file:
        file.write(str(seed))
    return {"value": seed + 10, "sign": seed}
"""


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """The workdir for a result that was published of counting, and its recipe."""
    monkeypatch.setattr(expected_module, "EXPERIMENTS", tmp_path)
    for folder in ("expected", "recipes", "work"):
        (tmp_path / folder).mkdir()
    (tmp_path / "expected" / "counted.json").write_text(json.dumps(CLAIM))
    (tmp_path / "recipes" / "counted.py").write_text(RECIPE)
    return epath.Path(tmp_path / "work")


def test_every_published_result_has_a_recipe_with_seeds_and_a_measure():
    known = all_expected()
    assert {path.stem for path in (EXPERIMENTS / "recipes").glob("*.py")} == set(known)
    for each in known.values():
        body = ast.parse(each.recipe.read_text()).body
        names = {ast.unparse(y) for x in body if isinstance(x, ast.Assign) for y in x.targets}
        functions = {x.name for x in body if isinstance(x, ast.FunctionDef)}
        assert "SEEDS" in names and "measure" in functions, each.name
        assert each.differs and each.title.endswith("."), each.name


@pytest.mark.parametrize("name, task", NETWORK.items())
def test_a_recipe_that_needs_a_network_sets_keys_that_exist(name, task):
    module = importlib.import_module(f"experiments.recipes.{name}")
    config = override(finetune.get_config(task), module.ROW)
    assert config.init_from.startswith("hf:") and config.data.source.startswith("tfds:")


@pytest.mark.parametrize(
    "change",
    [
        {"quantities": {"x": {"what": "x", "published": 1}}},
        {"quantities": {"x": {"what": "x", "published": 1, "tolerance": 1, "above": 1}}},
        {"quantities": {"x": {"what": "x", "published": "much", "tolerance": 1}}},
        {"quantities": {"x": {"published": 1, "tolerance": 1}}},
        {"needs": "luck"},
        {"page": 3},
    ],
    ids=str,
)
def test_a_file_that_says_too_little_or_too_much_is_refused(change, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(CLAIM | change))
    with pytest.raises(ValueError):
        read_expected(tmp_path / "x.json")


def test_the_list_names_each_result_with_its_source_and_state(counted):
    (line,) = list_expected(counted)[2:]
    assert line.split(" | ")[1:] == [
        "Nobody 2020 (arXiv 2000.00001), Table 1",
        "0.1    ",
        "not run |",
    ]
    reproduce_named(["counted"], counted, seeds=2)
    assert "0 of 2 as published, 2 seeds" in list_expected(counted)[2]


def test_an_unknown_name_is_one_line_with_the_nearest(counted):
    with pytest.raises(UserError, match=r"countd is no published result.*did you mean counted"):
        reproduce_named(["countd"], counted)


def test_a_report_has_ours_theirs_and_what_differs_and_finished_seeds_are_kept(counted, capsys):
    assert reproduce_named(["all"], counted) == 0
    report = (counted / "counted" / "report.md").read_text()
    assert capsys.readouterr().out.endswith(report + "\n")
    first, second = (line for line in report.splitlines() if line.startswith("| seed"))
    assert [cell.strip() for cell in first.split("|")[2:6]] == [
        "12",
        "11 ± 5",
        "+1 [-1.5, +3.5]",
        "within tolerance",
    ]
    assert "above 0.5 (large)" in second and "not decided" in second
    assert "- By a machine." in report and "Nobody 2020 (arXiv 2000.00001), Table 1" in report
    reproduce_named(["counted"], counted)
    assert (counted / "calls").read_text() == "123"
    recipe = expected_module.EXPERIMENTS / "recipes" / "counted.py"
    recipe.write_text(RECIPE + "\n")
    assert read_seed(all_expected()["counted"], 1, counted / "counted") is None
    reproduce_named(["counted"], counted, seeds=1)
    assert (counted / "calls").read_text() == "1231"


@pytest.mark.parametrize("content", ["{", "{}", '{"recipe": 1}'])
def test_a_damaged_file_of_a_seed_is_measured_again_and_a_damaged_report_named(content, counted):
    reproduce_named(["counted"], counted)
    for name in ("seed-2.json", "report.json"):
        (counted / "counted" / name).write_text(content)
    assert "damaged report" in list_expected(counted)[2]
    reproduce_named(["counted"], counted)
    assert (counted / "calls").read_text() == "1232"
    assert "as published, 3 seeds" in list_expected(counted)[2]


def test_a_value_that_is_no_number_is_read_again_as_such(counted):
    recipe = expected_module.EXPERIMENTS / "recipes" / "counted.py"
    recipe.write_text(RECIPE.replace("seed + 10", "float('nan')"))
    for _ in range(2):
        reproduce_named(["counted"], counted)
        assert "| nan " in (counted / "counted" / "report.md").read_text()
    assert (counted / "calls").read_text() == "123"


def test_a_recipe_of_the_project_finds_what_was_published(tmp_path):
    reproduce_named(["ssmax_fading"], epath.Path(tmp_path))
    report = (tmp_path / "ssmax_fading" / "report.md").read_text()
    assert report.count("| as published") == 2
    assert "Nakanishi 2025 (arXiv 2501.19399), Figure 1" in report


def test_an_interrupted_recipe_keeps_its_finished_seeds(counted):
    recipe = expected_module.EXPERIMENTS / "recipes" / "counted.py"
    stop = "    if seed == 3:\n        raise KeyboardInterrupt\n    return"
    recipe.write_text(RECIPE.replace("    return", stop))
    with pytest.raises(KeyboardInterrupt):
        reproduce_named(["counted"], counted)
    assert "in progress (2 of 3)" in (counted / "counted" / "report.md").read_text()
    assert "in progress (2 of 3)" in list_expected(counted)[2]


@pytest.mark.parametrize(
    "expected, values, result",
    [
        ({"tolerance": 0.1, "limit": 1.0}, [1.01, 1.02, 1.03], "within tolerance"),
        ({"tolerance": 0.1, "limit": 1.0}, [1.2, 1.21, 1.22], "outside tolerance"),
        ({"tolerance": 0.1, "limit": 1.0}, [1.0, 1.1, 1.2], "not decided"),
        ({"tolerance": 0.25, "limit": 1.0}, [1.25, 1.25, 1.25], "within tolerance"),
        ({"bound": "at_most", "limit": 17.0}, [17.0, 17.0, 17.0], "as published"),
        ({"bound": "below", "limit": 17.0}, [17.0, 17.0, 17.0], "not as published"),
        ({"bound": "above", "limit": 0.0}, [1.0, 1.1, 1.2], "as published"),
        ({"bound": "at_least", "limit": 2.0}, [1.0, 1.1, 1.2], "not as published"),
        ({"bound": "above", "limit": 0.0}, [-1.0, 1.0, 1.2], "not decided"),
        ({"bound": "above", "limit": 0.0}, [1.0, 1.0], "in progress (2 of 3)"),
        ({"bound": "above", "limit": 0.0}, [1.0], "one seed"),
    ],
)
def test_a_result_is_as_published_where_its_whole_interval_is(expected, values, result):
    quantity = Quantity(**{"what": "", "published": "", "tolerance": None, "bound": ""} | expected)
    planned = 1 if len(values) == 1 else 3
    assert deviation(quantity, values, planned, seeds=3).result == result
