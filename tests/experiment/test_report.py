"""A table's files are whole, and its picture shows all of it."""

import struct

import pytest
from etils import epath

from lm.experiment.ablation.report import plot
from lm.experiment.ablation.report.output import View, make_tables, write_tables
from lm.experiment.ablation.report.recorded import Ablated
from lm.experiment.ablation.report.table import to_markdown
from lm.experiment.ablation.statistics.comparison import tabulate
from lm.experiment.point_list import Source
from tests.ablation_points import start


def size_of(path: epath.Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def test_write_leaves_three_whole_files_and_a_failure_leaves_the_old_ones(
    finish, tmp_path, monkeypatch, small_config
):
    points = [finish("softmax", 0, 2.0), finish("x", 0, 1.9)]
    table, ablated = tabulate(points), Ablated(points, Source(), small_config)
    formats = ("md", "csv", "png")
    assert write_tables(ablated, [table], formats, tmp_path / "out") == [
        *("table.md", "table.csv", "table.png")
    ]
    folder = epath.Path(tmp_path / "out")
    names = ["table.csv", "table.md", "table.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "table.md").read_text() == to_markdown(table)
    write_tables(ablated, [table, table], formats, tmp_path / "both")
    both = (tmp_path / "both" / "table.md").read_text()
    assert both == f"{to_markdown(table)}\n{to_markdown(table)}"
    size = size_of(folder / "table.png")

    def fail(table, path):
        path.write_text("half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(plot, "draw", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tables(ablated, [table], formats, folder)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert size_of(folder / "table.png") == size


def test_a_table_is_made_beside_a_point_whose_result_is_torn(finish, small_config):
    torn, whole = finish("softmax", 0, 2.0), finish("x", 0, 1.9)
    (torn.workdir / "result.json").write_text('{"eval/')
    (table,) = make_tables(Ablated([torn, whole], Source(), small_config), View())
    assert [row.n for row in table.rows] == [0, 1]


def test_a_figure_of_thirty_rows_is_taller_than_one_of_two(finish, tmp_path):
    points = [finish(f"row $ {i}", s, 2 + i / 99 + s / 7) for i in range(30) for s in range(2)]
    many, few = epath.Path(tmp_path / "many.png"), epath.Path(tmp_path / "few.png")
    plot.draw(tabulate(points), many)
    plot.draw(tabulate(points[:4]), few)
    assert size_of(many)[1] > 1.5 * size_of(few)[1]


def test_a_figure_is_drawn_when_nothing_has_finished(tmp_path):
    table = tabulate([start(tmp_path, row, 0) for row in ("a", "b")])
    assert [row.verdict for row in table.rows] == ["baseline", "missing"]
    plot.draw(table, epath.Path(tmp_path / "table.png"))
    assert size_of(epath.Path(tmp_path / "table.png"))[0] > 1000
