"""A table is made from a folder alone, of whatever age, and from several folders."""

import dataclasses
import json

import pytest
from etils import epath

from configs import default
from lm.config import override, to_dict
from lm.errors import UserError
from lm.experiment.ablation.report.compare import join_ablations
from lm.experiment.ablation.report.latex import escape, to_latex
from lm.experiment.ablation.report.output import View, make_tables, report_tables
from lm.experiment.ablation.report.recorded import Ablated, read_ablation
from lm.experiment.ablation.report.table import columns
from lm.experiment.point_list import ListedPoint, Source, read_point_list, record_points
from tests.ablation_points import finished

METRIC = ("eval/bits_per_byte",)


def folder_of(path, config, rows, seeds=2, **changes):
    """A folder as a sweep leaves it, without a list of its points."""
    path.mkdir()
    points = []
    for number, (label, overrides) in enumerate(rows.items()):
        for seed in range(seeds):
            bits = 2 - 0.1 * number + 0.3 * seed + 0.001 * number * seed
            point = finished(path, label, seed, bits, **changes)
            own = to_dict(override(config, {**overrides, "seed": seed}))
            (point.workdir / "config.json").write_text(json.dumps(own))
            points.append(ListedPoint(label, seed, epath.Path(point.workdir), overrides))
    return epath.Path(path), points


ROWS = {
    "softmax": {},
    "sparsemax": {"attention.weighting": "sparsemax"},
    "entmax15": {"attention.weighting": "entmax15", "model.qk_norm": True},
}


@pytest.fixture
def listed(tmp_path, small_config):
    folder, points = folder_of(tmp_path / "a", small_config, ROWS)
    source = Source("configs/x.py:tiny", ("--seeds=2",), METRIC, "Why?")
    record_points(folder, points, source)
    return folder, points, source


def labels_of(table):
    return [row.label for row in table.rows]


def test_the_list_of_points_is_read_as_it_was_written(listed):
    folder, points, source = listed
    found = read_point_list(folder)
    assert found is not None
    assert (list(found.points), found.source) == (points, source)
    never = dataclasses.replace(points[0], seed=9, workdir=folder / "never")
    record_points(folder, [*points, never], source)
    (table,) = make_tables(read_ablation(folder), View())
    assert (labels_of(table), table.rows[0].missing) == (list(ROWS), 1)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "\xff", '{"points": ["a"]}', '{"points": [{}]}']
)
def test_a_folder_without_rows_in_its_list_is_read_by_what_differs_in_its_configs(
    content, tmp_path, small_config
):
    folder, _ = folder_of(tmp_path / "old", small_config, ROWS)
    (folder / "points.json").write_bytes(content.encode("latin-1"))
    for path in folder.glob("*/config.json"):  # as an older version, with a key that went since
        config = json.loads(path.read_text())
        del config["alarm"]
        path.write_text(json.dumps(config | {"long_gone": 3}))
    (table,) = make_tables(read_ablation(folder), View())
    assert labels_of(table) == [
        "weighting=softmax,qk_norm=False",
        "weighting=entmax15,qk_norm=True",
        "weighting=sparsemax,qk_norm=False",
    ]
    assert [row.n for row in table.rows] == [2, 2, 2]
    assert table.rows[2].difference == pytest.approx(-0.1, abs=0.01)


def test_rows_are_selected_and_verdicts_stay_those_of_all(listed):
    ablated = read_ablation(listed[0])
    (whole,), (some,) = (make_tables(ablated, View(rows=rows)) for rows in ((), ("*max15",)))
    assert labels_of(some) == ["softmax", "entmax15"]
    assert some.rows[1] == whole.rows[2]
    assert "Shown are 2 of 3 rows" in "\n".join(some.notes)
    (other,) = make_tables(ablated, View(baseline="sparsemax", rows=("softmax",)))
    assert labels_of(other) == ["softmax", "sparsemax"]
    with pytest.raises(UserError, match="matches no row; rows: softmax, sparsemax, entmax15"):
        make_tables(ablated, View(rows=("relu*",)))
    with pytest.raises(UserError, match=r"--format=latx is not one of .*latex"):
        View(formats=("latx",))


def test_a_folder_of_no_runs_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="does not exist; give the --workdir"):
        read_ablation(tmp_path / "none")
    record_points(epath.Path(tmp_path), [ListedPoint("a", 0, epath.Path(tmp_path / "a"))])
    with pytest.raises(UserError, match="has planned runs, and none has begun"):
        read_ablation(tmp_path)


def test_the_time_of_a_step_is_a_column_where_it_was_measured_in_turns(listed):
    folder = listed[0]
    (before,) = make_tables(read_ablation(folder), View())
    assert "step time" not in columns(before)
    speeds = {"softmax": {"seconds": 0.2, "ratio": 1.0}, "sparsemax": {"seconds": 3, "ratio": 1.5}}
    (folder / "speed.json").write_text(json.dumps(speeds))
    (table,) = make_tables(read_ablation(folder), View())
    assert columns(table)["step time"] == ["1.00", "1.50", ""]
    assert "Step time:" in " ".join(table.notes)
    (other,) = make_tables(read_ablation(folder), View(baseline="sparsemax"))
    assert columns(other)["step time"][0] == "0.67"
    for content in (b"{", b"\xff"):
        (folder / "speed.json").write_bytes(content)
        (broken,) = make_tables(read_ablation(folder), View())
        assert broken == before


def test_rows_of_several_folders_are_paired_by_seed(listed, tmp_path, small_config):
    folder, points, _ = listed
    other, _ = folder_of(tmp_path / "b", small_config, {"softmax": {}}, seeds=1)
    joined = join_ablations([folder, other, epath.Path(points[2].workdir)])
    (table,) = make_tables(joined, View())
    assert labels_of(table) == [*(f"a/{row}" for row in ROWS), "b", "sparsemax-0"]
    assert table.rows[3].pairs == (0,) and table.rows[3].difference == 0
    assert table.rows[4].difference == pytest.approx(-0.1)


def test_folders_that_cannot_be_compared_are_refused_by_name(listed, tmp_path, small_config):
    folder, _, _ = listed
    foreign, _ = folder_of(tmp_path / "b", small_config, {"softmax": {}}, data_hash="beef")
    (table,) = make_tables(join_ablations([folder, foreign]), View())
    assert table.rows[3].verdict == "not comparable"
    assert "WARNING: data_hash is d41d in 6 points but beef in b seed 0" in "\n".join(table.notes)
    masked = override(small_config, {"objective": "masked"})
    third, _ = folder_of(tmp_path / "c", masked, {"softmax": {}})
    with pytest.raises(UserError, match=r"c is judged by eval/nats_per_token and .*a by eval/bits"):
        join_ablations([folder, third])
    for given in ([folder], [folder, folder]):
        with pytest.raises(UserError, match=r"compare needs two|given twice"):
            join_ablations(given)


# A parser of the tables of LaTeX: what stands between two columns, and nothing else.


def cells_of(line: str) -> list[str]:
    """The cells of a line; fails for a character that LaTeX would take for a command."""
    assert line.endswith(r"\\")
    cells, rest = [""], line[:-2].strip()
    while rest:
        command = next((c for c in COMMANDS if rest.startswith(c)), None)
        if command is not None:
            cells[-1] += COMMANDS[command]
            rest = rest[len(command) :]
            continue
        assert rest[0] not in '\\{}$#%_^~<>|"', f"{rest[0]!r} in {line}"
        cells = [*cells, ""] if rest[0] == "&" else [*cells[:-1], cells[-1] + rest[0]]
        rest = rest[1:]
    return [cell.strip() for cell in cells]


COMMANDS = {escape(c): c for c in '\\{}$&#%_^~<>|"±'} | {"$-$": "-", "$+$": "+", "{}": ""}


def test_latex_has_the_cells_of_markdown_with_every_label_escaped(finish):
    labels = ("a_b & {c}", "100 % of $x^2$", r"\input{x}~#|<>", "[8pt]")
    points = [
        finish(x, s, 2 + s + i / 7 + s * i / 99) for i, x in enumerate(labels) for s in (0, 1)
    ]
    ablated = Ablated(points, Source(metrics=METRIC), default.get_config())
    (table,) = make_tables(ablated, View())
    lines = to_latex(table).splitlines()
    begin, end = lines.index(r"    \midrule"), lines.index(r"    \bottomrule")
    assert [line.strip() for line in lines if "rule" in line] == [
        *(r"\toprule", r"\midrule", r"\bottomrule")
    ]
    body = [cells_of(line) for line in lines[begin + 1 : end]]
    assert [cells[0] for cells in body] == list(labels)
    assert body[1][3] == columns(table)["difference [95 %]"][1]
    assert all(line.startswith("%") for line in lines[: len(table.notes)])


def test_a_table_is_printed_and_written_in_the_formats_that_were_asked_for(listed, tmp_path):
    ablated, out = read_ablation(listed[0]), epath.Path(tmp_path / "out")
    printed = report_tables(ablated, View(formats=("latex", "csv")), out)
    assert printed.endswith(f"\n\nwritten: {out}/table.csv, table.tex")
    assert "\n\n\n" not in printed
    assert sorted(path.name for path in out.iterdir()) == ["table.csv", "table.tex"]
    for nothing in (
        report_tables(ablated, View(), None),
        report_tables(ablated, View(formats=()), out),
    ):
        assert "written" not in nothing
