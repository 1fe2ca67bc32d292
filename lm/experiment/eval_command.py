"""Chooses what `run.py eval` measures of a model: its own held-out rows, other labelled examples,
the perplexity of given texts, or its answers to the questions of config.prompt.
"""

from collections.abc import Sequence

import jax
from etils import epath

from lm.checkpoints.restore import Restored
from lm.data.files import write_json
from lm.errors import UserError
from lm.evaluation import perplexity
from lm.evaluation.held_out import evaluate
from lm.evaluation.predict import measure
from lm.evaluation.prompting.evaluate_prompts import ask
from lm.evaluation.task_report import write_report
from lm.finetuning.adapted import max_text_len_of
from lm.tasks.prepare import TaskData


def evaluate_on(
    run: Restored,
    *,
    texts: Sequence[str] = (),
    data: Sequence[str] = (),
    stride: int | None = None,
    folder: epath.Path | None = None,
) -> dict[str, float]:
    """The metrics of a run; prints those of each document where there are several.

    Args:
      run: the model.
      texts: whose perplexity is wanted.
      data: files or sources: of a task's run labelled examples; of a language model texts.
      stride: of perplexity; see `lm.evaluation.perplexity.measure`.
      folder: where reports are written; None: nowhere.

    Raises:
      UserError: the model cannot be measured so.
    """
    if texts or (data and not run.config.task.name):
        found = perplexity.measure(run, perplexity.documents(texts, data), stride)
        length = max_text_len_of(run.program.model)
        print(f"texts of more than {length} tokens: windows that move by {stride or length}")
        for line in perplexity.lines(found):
            print(line)
        if folder is not None:
            perplexity.write(found, folder)
        return perplexity.total(found).metrics
    if stride is not None:
        raise UserError("--stride is of the perplexity of --text or --data; leave it out")
    if data:
        return measure(run, data, folder)
    if run.config.prompt.source:
        return ask(run, folder)
    with jax.set_mesh(run.program.mesh):
        metrics, said = evaluate(run.program, run.params, run.corpus, run.config)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "metrics.json", metrics)
        if isinstance(run.corpus, TaskData):
            write_report(folder, run.corpus, said)
    return metrics
