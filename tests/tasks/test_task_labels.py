"""One class has one name however its cells are written, and labels of choices have one reading."""

import math

import pytest

from configs import default
from lm.errors import UserError
from lm.tasks import build_task
from lm.tasks.labels import class_name, ordered
from lm.tasks.records import Record


def task(name, **options):
    config = default.get_config()
    config.task.name = name
    config.task.update(options)
    return build_task(config)


def labelled(name, labels, **columns):
    """The task's examples of records that differ in their labels."""
    fields = {"text": "t"} | columns
    made = [Record(f"line {n}", fields | {"label": label}) for n, label in enumerate(labels, 1)]
    return [task(name).example(record) for record in made]


@pytest.mark.parametrize(
    "ways",
    [
        (1, 1.0, "1", "1.0", " 1 ", "1."),
        (True, "true", "TRUE", "True "),
        ("pos", "pos ", "\tpos", "pos\u00a0"),
        ("caf\u00e9", "cafe\u0301"),
        (-3, "-3.00", -3.0),
    ],
)
def test_one_class_has_one_name_however_it_is_written(ways):
    examples = labelled("classification", [*ways, "other"])
    assert len({class_name(way) for way in ways}) == 1
    assert len(task("classification").collect_labels(examples)) == 2


def test_what_differs_stays_apart():
    names = ["1.5", "01", "1", "10", "v1.0", "US", "us", "0.10"]
    assert [class_name(name) for name in names] == names


def test_numbers_stand_in_their_own_order_also_with_fractions():
    assert ordered(["10.0", "2.5", "-1", "2.25"]) == ("-1", "2.25", "2.5", "10.0")
    assert ordered(class_name(x) for x in (10.0, 2.0, 1.5)) == ("1.5", "2", "10")
    assert ordered(["1e3", "20", "3"]) == ("3", "20", "1e3")
    assert ordered(["10", "2", "x"]) == ("10", "2", "x")


@pytest.mark.parametrize("cell", [None, math.nan, "", "  ", "\u00a0", "nan", "NaN", "<NA>"])
def test_a_cell_without_a_value_trains_no_class(cell):
    with pytest.raises(UserError, match=r"line 1 has (no|the) label .*(remove|pandas)"):
        labelled("classification", [cell])


def test_nan_is_a_class_where_the_config_names_it_and_labels_are_found_as_the_config_writes_them():
    named = task("classification", labels=("nan", "2.0"))
    examples = [named.example(Record("here", {"text": "t", "label": x})) for x in ("nan", 2)]
    assert [named.collect_labels(examples).index(each["label"]) for each in examples] == [0, 1]


def test_a_list_is_no_class():
    with pytest.raises(UserError, match=r"line 1: the label .* is no single class"):
        labelled("classification", [["a", "b"]])


def test_truth_values_and_numbers_in_one_column_are_refused_and_case_alone_is_said():
    with pytest.raises(UserError, match="line 2 has the label 'false' and line 3 the label '0'"):
        task("classification").infer_options(labelled("classification", [1, False, 0, True]))
    given = labelled("classification", ["Pos", "neg", "pos"])
    _, notes = task("classification").infer_options(given)
    assert notes == [
        "3 classes: Pos, neg, pos",
        "'Pos' and 'pos' differ in case alone and are two classes",
    ]


def chosen(labels, choices, **options):
    """The numbers of the choices that labels mean, all read together."""
    judge = task("multiple_choice", **options)
    fields = {"text": "q", "choices": choices}
    examples = [judge.example(Record(f"line {n}", fields | {"label": x})) for n, x in labels]
    settled, _ = judge.infer_options(examples)
    return [each["label"] for each in examples], settled.get("choice_labels")


DIGITS = ["2", "3", "4", "9"]


@pytest.mark.parametrize(
    ("labels", "numbers", "reading"),
    [
        (["2", "0", "3"], [2, 0, 3], "index"),
        (["2", "9", "3"], [0, 3, 1], "typed"),
        ([2, 0, 1.0], [2, 0, 1], "index"),
        ([2, 0, "9", "2"], [2, 0, 3, 0], "typed"),
    ],
)
def test_digits_are_numbers_or_texts_of_choices_in_all_rows_alike(labels, numbers, reading):
    assert chosen(list(enumerate(labels)), DIGITS) == (numbers, reading)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["2", "3"], "not the same in line 0; set config.task.choice_labels to index or text"),
        (["0", "9"], "the label of line 0 is a number, and that of line 1 the text"),
        ([1, 2, 1], "no label of 3 examples is 0"),
        (["2", "A"], "'A', which is neither a choice nor a number from 0 to 3; .*: index, number"),
        ([4, 1], "4, which is neither a choice nor a number from 0 to 3"),
    ],
)
def test_labels_of_choices_that_may_mean_several_things_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        chosen(list(enumerate(labels)), DIGITS)


@pytest.mark.parametrize(
    ("reading", "labels", "numbers"),
    [
        ("letter", ["A", "d", " C"], [0, 3, 2]),
        ("number", ["1", 4, 3.0], [0, 3, 2]),
        ("index", ["2", "3"], [2, 3]),
        ("text", ["2", 9, 3.0], [0, 3, 1]),
    ],
)
def test_labels_of_choices_are_read_as_the_config_says(reading, labels, numbers):
    assert chosen(list(enumerate(labels)), DIGITS, choice_labels=reading)[0] == numbers
    with pytest.raises(UserError, match="mend it, or say"):
        chosen([(1, "Z")], DIGITS, choice_labels=reading)
