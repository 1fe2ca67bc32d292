"""The report is one whole page of HTML, in which nothing is asked of a network."""

import html
import html.parser
import itertools
import json
import math
import re
import shutil
import subprocess

import pytest
from etils import epath

from configs import default
from lm.config import override, to_dict
from lm.experiment.ablation.report import plot
from lm.experiment.ablation.report.effects import by_effect, effect_range, simultaneous
from lm.experiment.ablation.report.html import make_page
from lm.experiment.ablation.report.html.axis import Axis, minus
from lm.experiment.ablation.report.html.facts import config_differences
from lm.experiment.ablation.report.html.figures import draw_costs, draw_seeds
from lm.experiment.ablation.report.labels import common_part, shorten
from lm.experiment.ablation.report.output import View, make_tables
from lm.experiment.ablation.report.recorded import Ablated
from lm.experiment.ablation.statistics.comparison import tabulate
from lm.experiment.point_list import Source
from tests.ablation_points import start

CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, CHROMIUM)), None)
SOURCE = Source(
    config="configs/attention.py:tiny",
    flags=("--seeds=3", "--config.steps=7"),
    metrics=("eval/bits_per_byte",),
    description="Does <it> help?\n\nExpect   nothing.",
)


class Page(html.parser.HTMLParser):
    """The elements of a page, each closed where it was opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def ablated(finish, tmp_path):
    points = [finish("softmax", s, 2 + 0.1 * s, commit="abc") for s in range(3)]
    for i in range(7):
        cost = {"parameters": 1000 + i, "flops_per_token": 5e6 + i, "commit": "abc"}
        points += [finish(f"a<{i}>", s, 1.9 + 0.1 * (s + i) + s * i / 99, **cost) for s in range(3)]
    return Ablated([*points, start(tmp_path, "a&b", 0)], SOURCE, default.get_config())


def page_of(ablated, *view):
    return make_page(ablated, make_tables(ablated, View(*view)), "runs/x")


def test_the_page_is_whole_and_asks_for_nothing(ablated):
    text = page_of(ablated)
    page = Page(text)
    for word in ("http:", "https:", "@import", "url(", " src="):
        assert word not in text
    assert all(link["href"].startswith("#") for link in page.all("a"))
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids)) and {link["href"][1:] for link in page.all("a")} == set(ids)
    assert len(text) < 100_000


# Presses the heads of "n" and twice of "difference", and leaves in the title what the table shows,
# and how wide the window and the page are.
PRESSING = """<script>
const shown = [];
for (const index of [2, 3, 3]) {
  const table = document.querySelector("table.sortable");
  table.tHead.rows[0].cells[index].querySelector("button").click();
  const orders = [...table.tHead.rows[0].cells].map((head) => head.getAttribute("aria-sort"));
  shown.push([orders[index], orders.filter((each) => each).length,
              [...table.tBodies[0].rows].map((row) => row.cells[0].textContent)]);
}
const root = document.documentElement;
document.title = JSON.stringify([root.clientWidth, root.scrollWidth, ...shown]);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_sorts_the_table_shows_all_of_the_page_and_reports_no_error(
    width, ablated, tmp_path
):
    page, command = tmp_path / "page.html", [BROWSER, "--headless", "--no-sandbox", "--disable-gpu"]
    page.write_text(page_of(ablated).replace("</body>", f"{PRESSING}</body>"))
    command += [f"--window-size={width},900", "--enable-logging=stderr", "--dump-dom"]
    command += [page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ":CONSOLE" not in done.stderr
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    inner, outer, by_n, rising, falling = json.loads(html.unescape(title[1]))
    labels = [f"a<{i}>" for i in range(7)]
    assert width - 20 <= inner <= width and outer == inner
    assert by_n == ["ascending", 1, ["a&b", "softmax", *labels]]
    assert rising == ["ascending", 1, [*labels, "a&b", "softmax"]]  # those without one are last
    assert falling == ["descending", 1, [*labels[::-1], "a&b", "softmax"]]


def test_every_figure_has_a_name_and_every_table_a_caption(ablated):
    page = Page(page_of(ablated))
    outer = [each for each in page.all("svg") if each.get("class") != "inside"]
    named = [each for each in outer if each.get("aria-label")]
    assert len(named) >= len(outer) - 2  # the axes of lanes are hidden from screen readers
    assert len(page.all("caption")) == len(page.all("table"))
    assert page.all("html") == [{"lang": "en"}]


def test_the_page_says_what_was_asked_found_and_done(ablated):
    page = Page(page_of(ablated))
    assert "Does <it> help?" in page.text and "a<3>" in page.text
    assert "8 rows against softmax:" in page.text and "1 missing" in page.text
    assert "24 of 25 finished" in page.text and "a&b seed 0: not finished" in page.text
    again = "--config=configs/attention.py:tiny --seeds=3 --config.steps=7 --workdir=runs/x"
    assert f"git checkout abc\npython run.py table {again}" in page.text


def test_a_page_is_made_of_whatever_there_is(finish, tmp_path):
    lonely = Ablated([finish("one", 0, 2.0)], Source(), default.get_config())
    assert "not recorded" in Page(page_of(lonely)).text
    begun = Ablated([start(tmp_path, row, 0) for row in "ab"], SOURCE, default.get_config())
    assert "No run has recorded a curve" in Page(page_of(begun)).text


def test_the_rows_of_each_group_are_shown_with_their_own_baseline(finish, small_config, tmp_path):
    points = []
    for i, (width, name) in enumerate(itertools.product((8, 16), ("softmax", "relu"))):
        for seed in (0, 1):
            points.append(finish(f"{width} {name}", seed, 2.0 + i + 0.1 * seed + 0.01 * i * seed))
            own = {"model.d_model": width, "attention.weighting": name, "seed": seed}
            config = to_dict(override(small_config, own))
            (points[-1].workdir / "config.json").write_text(json.dumps(config))
    ablated = Ablated(points, SOURCE, small_config)
    (table,) = make_tables(ablated, View(against=("d_model",)))
    text = make_page(ablated, [table], "runs/x")
    assert Page(text).text.count("(baseline)") == 2  # of 8 and of 16, above the curves
    assert "2 rows against the first row of the same d_model:" in Page(text).text
    assert config_differences(ablated, table)["16 relu"] == {"attention.weighting": "relu"}
    places = [each["x1"] for each in Page(text).all("line") if each.get("class") == "zero"]
    assert len(set(places)) == 3  # no difference; the means of both baselines
    # The group without the first row of all.
    part = View(against=("d_model",), rows=("16 relu",))
    assert "8 softmax" not in Page(make_page(ablated, make_tables(ablated, part), "runs/x")).text
    plot.draw(make_tables(ablated, part)[0], epath.Path(tmp_path / "table.png"))


def test_intervals_of_all_rows_together_are_those_of_bonferroni(ablated):
    (table,) = make_tables(ablated, View())
    row = next(row for row in table.rows if row.label == "a<2>")
    alone, together = simultaneous(row, 1), simultaneous(row, 8)
    assert alone == pytest.approx(row.interval)
    ratio = (together[1] - together[0]) / (alone[1] - alone[0])
    assert ratio == pytest.approx(12.590 / 4.3027, rel=1e-3)  # t(1 - 0.05 / 16, 2), t(0.975, 2)
    (part,) = make_tables(ablated, View(rows=("a<2>",)))
    assert part.comparisons == table.comparisons == 8


def test_effects_are_in_order_and_the_axis_has_zero_and_no_outlier(ablated):
    (table,) = make_tables(ablated, View())
    rows = by_effect(table)
    assert [row.label for row in rows[:2]] == ["a<0>", "a<1>"] and rows[-1].label == "a&b"
    low, high = effect_range(rows)
    assert low < 0 < high < 2


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_a_row_that_is_far_better_is_within_the_axes_and_one_far_worse_is_beyond(finish, better):
    far = 1.0 if better == "lower" else 3.0
    values = {"base": 2.0, "near": 2.01, "next": 1.99, "best": far, "worst": 4 * (2 - far) + 2}
    points = [
        finish(row, seed, value + seed / 99, parameters=1000 + number)
        for number, (row, value) in enumerate(values.items())
        for seed in (0, 1)
    ]
    table = tabulate(points, better=better)
    names = dict.fromkeys(values, "x")
    lines = draw_seeds(table.rows, table, names, names).split("<li>")
    beyond = [row for row, line in zip(values, lines[1:], strict=False) if "beyond" in line]
    costs = draw_costs(table, "parameters", "parameters", names, {row: row for row in values})
    outside = [row for row in values if f'outside" r="5"><title>{row}:' in costs]
    assert beyond == outside == ["worst"]


@pytest.mark.parametrize(
    ("labels", "short", "common"),
    [
        (["weighting=softmax", "weighting=relu"], ["softmax", "relu"], "weighting"),
        (["a=1,b=2", "a=3,b=2"], ["1", "3"], "a"),
        (["a=1,b=2", "a=1,b=3"], ["2", "3"], "a=1,b"),
        (["w=x", "m=x"], ["w=x", "m=x"], ""),
        (["a", "a,b=1"], ["a", "a,b=1"], ""),
        (["runs/a=1", "runs/a=2"], ["1", "2"], "runs/a"),
        (["default"], ["default"], ""),
    ],
)
def test_labels_lose_what_all_have_in_common(labels, short, common):
    assert list(shorten(labels).values()) == short
    assert common_part(labels) == common


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-0.031, 0.117), (3.0, 3.02), (1e6, 7e6)])
def test_ticks_are_round_and_within_the_axis(ends):
    axis = Axis(*ends)
    ticks = axis.labels()
    assert 3 <= len(ticks) <= 8
    for value, text in ticks:
        assert 0 <= axis.at(value) <= 100 + 1e-9
        shown = float(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))
        assert math.isclose(shown, value, abs_tol=1e-12)


def test_only_a_hyphen_before_a_number_is_a_minus():
    assert minus("t-test -0.1 [-2, 1e-5]") == "t-test \u22120.1 [\u22122, 1e-5]"
