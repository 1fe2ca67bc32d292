"""Writes an explanation as explanation.json, explanation.html and figures, and in lines."""

from collections.abc import Sequence

import jax
from etils import epath

from lm.checkpoints.restored import Restored
from lm.data.files import write_json, write_text
from lm.devices.hosts import is_main
from lm.evaluation.explanation.explain import PADDING, Plain, explain
from lm.evaluation.explanation.figures import draw_figures, shown
from lm.evaluation.explanation.page import make_page

_SHOWN = 8  # words in the lines


def explain_run(
    run: Restored,
    texts: Sequence[str],
    folder: epath.Path,
    *,
    name: str,
    target: str | None = None,
    replacement: str = PADDING,
) -> list[str]:
    """Explains a run's decision, writes the explanation to a folder, and returns it in lines.

    Args:
      run, texts, target, replacement: see `explain`.
      folder: gets explanation.json, explanation.html and figures.
      name: of the run, in the title.
    """
    with jax.set_mesh(run.program.mesh):
        found = explain(run, texts, target, replacement)
    title = f"{epath.Path(name).name} at step {run.step}"
    written = ["explanation.json", "explanation.html"]
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "explanation.json", found)
        write_text(folder / "explanation.html", make_page(found, title))
        written += draw_figures(found, folder)
    return [title, *lines(found), f"written: {folder / written[0]}, {', '.join(written[1:])}"]


def lines(found: Plain) -> list[str]:
    """What was decided, and the words that had the most to do with it."""
    target, score = found["target"], found["score"].replace("_", "-")
    shown_lines = [f"  {target['name']!r}: {score} {target['score']:.4f}"]
    if "support" in (decided := found["decision"]):
        best = ", ".join(
            f"{each['name']!r} {each['probability']:.3f}" for each in decided["candidates"][:3]
        )
        support = f"{decided['support']:,} of {decided['of']:,} have a probability"
        shown_lines.append(f"  likeliest: {best}; {support}")
    words = sorted(found["words"], key=lambda word: -abs(word["leave_out"]))[:_SHOWN]
    falls = ", ".join(f"{shown(word['text'])} {word['leave_out']:+.3f}" for word in words)
    return [*shown_lines, f"  falls without each word: {falls or 'there is none'}"]
