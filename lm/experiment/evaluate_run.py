"""Evaluates a run in the way that it and what is given ask for: held-out rows, labelled examples,
texts or prompts.
"""

from collections.abc import Sequence

import jax
from etils import epath

from lm.checkpoints.restored import Restored
from lm.data.files import write_json
from lm.devices.hosts import is_main
from lm.errors import UserError
from lm.evaluation import perplexity, predict
from lm.evaluation.held_out import evaluate
from lm.evaluation.prompting.evaluate_prompts import evaluate_prompts
from lm.finetuning.adapted import max_text_len_of
from lm.training.announce import announced


@announced("compiling and evaluating")
def evaluate_run(
    run: Restored,
    *,
    texts: Sequence[str] = (),
    data: Sequence[str] = (),
    stride: int | None = None,
    folder: epath.Path | None = None,
) -> dict[str, float]:
    """The metrics of a run; prints a table where there are several documents.

    Args:
      texts: texts whose perplexity is computed.
      data: files or sources: labelled examples for a run of a task, texts for a language model.
      stride: of perplexity; see `lm.evaluation.perplexity.document_likelihoods`.
      folder: where reports are written; None: nowhere.

    Raises:
      UserError: the model does not support the evaluation.
    """
    if texts or (data and not run.config.task.name):
        found = perplexity.document_likelihoods(run, perplexity.read_documents(texts, data), stride)
        length = max_text_len_of(run.program.model)
        print(f"texts of more than {length} tokens: windows with stride {stride or length}")
        for line in perplexity.format_table(found):
            print(line)
        if folder is not None and is_main():
            perplexity.write_likelihoods(found, folder)
        return perplexity.total(found).metrics
    if stride is not None:
        raise UserError("--stride needs texts, --text or --data of a language model; leave it out")
    if data:
        return predict.evaluate_files(run, data, folder)
    if run.config.prompt.source:
        return evaluate_prompts(run, folder)
    with jax.set_mesh(run.program.mesh):
        metrics, write_report = evaluate(run.program, run.params, run.corpus, run.config)
    if folder is not None and is_main():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "metrics.json", metrics)
        write_report(folder)
    return metrics
