"""Files of a word a line are read whole: comments, documents and other words' spaces are none."""

import pytest

from lm.config import override
from lm.data.text_pairs import of_lines
from lm.errors import UserError
from lm.tasks import build_task
from lm.tasks.records import records


def read(tmp_path, text, name="a.conll", **options):
    (tmp_path / name).write_text(text)
    return [record.values for record in records(f"files:{tmp_path}/{name}", **options)]


@pytest.mark.parametrize("space", ["\u00a0", "\u2028", "\u3000", "\x0b", "\x85", "\u2009"])
@pytest.mark.parametrize("between", [" ", "\t", "  "])
def test_only_spaces_and_tabs_part_columns_and_only_line_ends_part_lines(tmp_path, space, between):
    (found,) = read(tmp_path, f"10{space}000{between}B-NUM\nkm{between}O\n")
    assert found == {"tokens": [f"10{space}000", "km"], "tags": ["B-NUM", "O"]}


@pytest.mark.parametrize("between", [" ", "\t"])
def test_comments_are_no_words_and_a_number_sign_with_a_tag_is_one(tmp_path, between):
    lines = ["# sent_id = 1", "# text = We # 5", "We O", "# O", "#tag B-X", "# newpar id = p1"]
    text = "\n".join(line.replace(" ", between) if line[:2] != "# " else line for line in lines)
    text = text.replace("# O", f"#{between}O")
    (found,) = read(tmp_path, f"{text}\n# just words to read\n\n")
    assert found == {"tokens": ["We", "#", "#tag"], "tags": ["O", "O", "B-X"]}


@pytest.mark.parametrize(
    "line", ["-DOCSTART-", "-DOCSTART- -X- O O", "-DOCSTART-\tO", "-DOCSTART- "]
)
def test_the_line_that_opens_a_document_ends_a_sentence_however_bare(tmp_path, line):
    found = read(tmp_path, f"{line}\n\na O\n{line}\nb O\n-DOCSTART-x O\n")
    assert [each["tokens"] for each in found] == [["a"], ["b", "-DOCSTART-x"]]


UNIVERSAL = """# sent_id = 1
1-2\tdu\t_\t_\t_\t_\t_\t_\t_\t_
1\tde\tde\tADP\tIN\t_\t3\tcase\t_\t_
2\tle\tle\tDET\tDT\t_\t3\tdet\t_\t_
3\t10 000\t10000\tNUM\tCD\t_\t0\troot\t_\t_
3.1\telided\t_\tVERB\t_\t_\t_\t_\t_\t_

1\t#\t#\tSYM\t#\t_\t0\troot\t_\t_
"""


def test_conll_u_is_read_by_its_own_columns_without_ranges_and_empty_nodes(tmp_path):
    first, second = read(tmp_path, UNIVERSAL, "a.conllu")
    assert first["tokens"] == ["de", "le", "10 000"]
    assert first["tags"] == first["upos"] == ["ADP", "DET", "NUM"]
    assert first["xpos"] == ["IN", "DT", "CD"] and second["tokens"] == ["#"]
    assert read(tmp_path, UNIVERSAL, form="conllu") == [first, second]
    with pytest.raises(UserError, match=r"a.conll looks like CoNLL-U.*format='conllu'"):
        read(tmp_path, UNIVERSAL)
    with pytest.raises(UserError, match=r"a\.conllu line 1 is no line of CoNLL-U, which has 10"):
        read(tmp_path, "We\tO\n", "a.conllu")


def test_pairs_are_parted_at_line_ends_alone():
    text = "a\u2028b\tc\x0bd\r\n\ne\u0085\tf\n"
    found = dict(of_lines("a.tsv", text))
    assert found == {1: ("a\u2028b", "c\x0bd"), 3: ("e\u0085", "f")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "text, label\nx,1\n",
            "no column 'label', only text, ' label'; the name is ' label' there",
        ),
        ("text,Label\nx,1\n", "only text, Label; the name is 'Label' there"),
        ("text;label\nx;1\n", "only text;label; columns seem to be parted by semicolons"),
        ("text\tlabel\nx\t1\n", r"columns seem to be parted by tabs"),
        ("text;label\nx, y;1\n", "line 2 has 2 columns, not 1 .* by semicolons: .*, or name the"),
        ("text,,label \nx,y,1\n", "only text, '', 'label '; the name is"),
        ("text,text\nx,1\n", "a.csv has two columns 'text' in its first line; rename one"),
    ],
)
def test_a_column_that_is_not_found_is_told_from_those_that_are(
    tmp_path, text, message, task_config
):
    (tmp_path / "a.csv").write_text(text)
    task = build_task(override(task_config, {"task.text": ("text",)}))
    with pytest.raises(UserError, match=message):
        [task.read_label(record) for record in records(f"files:{tmp_path}/a.csv")]
