"""Runs the commands that ask a checkpoint: eval, predict, embed, diagnose and serve. Each checks
what it is given before it reads the checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from lm.checkpoints.restored import Restored
from lm.data.files import write_json
from lm.devices.hosts import from_main, is_main
from lm.errors import UserError
from lm.evaluation import embed, perplexity, predict
from lm.evaluation.diagnostics import diagnose_run
from lm.evaluation.held_out import evaluate
from lm.evaluation.prompting.evaluate_prompts import evaluate_prompts
from lm.finetuning.adapted import max_text_len_of
from lm.training.announce import announced

OpenRun = Callable[[], Restored]


def run_eval(
    open_run: OpenRun,
    name: str | None,
    *,
    texts: Sequence[str],
    data: Sequence[str],
    stride: int | None,
    folder: epath.Path | None,
) -> list[str]:
    """The metrics of `evaluate_run` in lines, under the checkpoint's `name`, or where it is None,
    under the config's init_from.
    """
    predict.check_new_folder(folder)
    run = open_run()
    metrics = evaluate_run(run, texts=texts, data=data, stride=stride, folder=folder)
    lines = [f"  {metric:22} {value:,.6g}" for metric, value in metrics.items()]
    return [f"{name or run.config.init_from} at step {run.step}", *lines]


def run_predict(
    open_run: OpenRun, data: Sequence[str], folder: epath.Path | None, max_new_tokens: int | None
) -> list[str]:
    """Writes the predictions for examples of files to a new folder; describes them in lines."""
    if not data or folder is None:
        raise UserError("predict needs --data=FILE and --output=DIR, a new folder for predictions")
    predict.check_new_folder(folder)
    return predict.predict_files(open_run(), data, folder, max_new_tokens)


def run_embed(
    open_run: OpenRun,
    file: epath.Path | None,
    *,
    texts: Sequence[str],
    data: Sequence[str],
    pooling: str,
    normalize: bool,
) -> str:
    """Writes the embeddings of texts, and of those of files, to a new file; describes it."""
    file = epath.Path(from_main(lambda: str(embed.check_output(file))))
    run = open_run()
    both = [*texts, *embed.read_texts(run.config, data)]
    embeddings = embed.embed(run, both, pooling, normalize)
    if is_main():
        embed.write_embeddings(embeddings, file)
    return embed.describe(embeddings, file)


def run_diagnose(open_run: OpenRun, num_contexts: int, workdir: epath.Path) -> list[str]:
    """Writes what is measured of the output softmax to the workdir; describes it in lines."""
    return diagnose_run(open_run(), num_contexts, workdir)


def run_serve(
    open_run: OpenRun, open_adapter: Callable[[epath.Path], Restored], flags: Mapping[str, Any]
) -> int:
    """Answers over HTTP until a signal comes; see `lm.serving.serve_command`."""
    from lm.serving.serve_command import serve

    serve(open_run, open_adapter, flags)
    return 0


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
