"""Formats the comparison of an ablation as a LaTeX table with the rules of booktabs."""

from lm.experiment.ablation.report.table import columns
from lm.experiment.ablation.statistics.rows import Table

_TEXT = ("row", "verdict")  # columns of words, aligned left
_ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
}


def to_latex(table: Table) -> str:
    """Formats the table as a `table` environment, whose caption says what the numbers are.

    It needs the packages booktabs and, for wide tables, graphicx; every character of the labels
    that LaTeX would read as a command is escaped. The notes are comments above it.
    """
    found = columns(table)
    kinds = "".join("l" if name in _TEXT else "r" for name in found)
    head = " & ".join(map(escape, found))
    body = [" & ".join(map(_cell, cells)) for cells in zip(*found.values(), strict=True)]
    notes = [*table.notes, *(f"Missing: {line}" for line in table.missing)]
    caption = (
        f"{table.unit}, {table.better} is better: mean and standard error over $n$ seeds, and the "
        f"difference from {escape(table.compared_with)} within seeds."
    )
    lines = [
        *(f"% {' '.join(note.split())}" for note in notes),
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption[0].upper()}{caption[1:]}}}",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{{kinds}}}",
        r"    \toprule",
        rf"    {head} \\",
        r"    \midrule",
        *(rf"    {line} \\" for line in body),
        r"    \bottomrule",
        r"  \end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """The text as LaTeX prints it."""
    return "".join(_ESCAPED.get(letter, letter) for letter in text)


def _cell(text: str) -> str:
    """A cell; numbers have a true minus sign, and a leading bracket is no option of the line."""
    escaped = escape(text)
    if text[:1] in "+-" and text[1:2].isdigit():
        escaped = "".join(rf"${c}$" if c in "+-" else c for c in escaped)
    return f"{{}}{escaped}" if text.startswith("[") else escaped
