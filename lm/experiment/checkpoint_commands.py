"""Runs the commands that ask a checkpoint: eval, predict, embed, diagnose, explain,
export and serve. Each checks what it is given before it reads the checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from lm.checkpoints.export.command import HF, export
from lm.checkpoints.restored import Restored
from lm.devices.hosts import from_main, is_main
from lm.errors import UserError
from lm.evaluation import embed, predict
from lm.evaluation.diagnostics import diagnose_run
from lm.evaluation.explanation import explain_run
from lm.experiment.evaluate_run import evaluate_run

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
    weights = f", weights {run.compression}" if run.compression else ""
    return [f"{name or run.config.init_from} at step {run.step}{weights}", *lines]


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


def run_explain(
    open_run: OpenRun,
    folder: epath.Path | None,
    name: str | None,
    *,
    texts: Sequence[str],
    target: str | None,
    replacement: str,
) -> list[str]:
    """Writes the explanation of a decision to a folder; describes it in lines, under the
    checkpoint's `name`, or where it is None, under the config's init_from.
    """
    if not texts:
        raise UserError("explain needs --prompt=TEXT, the text to explain")
    if folder is None:
        raise UserError("explain needs --output=DIR, a folder for what it writes, or --workdir=DIR")
    run = open_run()
    given = {"target": target, "replacement": replacement}
    return explain_run(run, texts, folder, name=name or run.config.init_from, **given)


def run_export(
    open_run: OpenRun,
    formats: Sequence[str] | None,
    folder: str | None,
    *,
    adapter: bool,
    certified: bool,
) -> tuple[list[str], bool]:
    """Writes a checkpoint for another runtime; describes it in lines, and says whether what that
    computes agrees with the run.
    """
    if not folder:
        raise UserError("export needs --output=DIR, a new folder for the checkpoint")
    kind, *others = formats or (HF,)
    if others:
        raise UserError(f"export writes one format at a time; leave out --format={others[0]}")
    return export(open_run(), kind, folder, adapter=adapter, certified=certified)


def run_serve(
    open_run: OpenRun, open_adapter: Callable[[epath.Path], Restored], flags: Mapping[str, Any]
) -> int:
    """Answers over HTTP until a signal comes; see `lm.serving.serve_command`."""
    from lm.serving.serve_command import serve

    serve(open_run, open_adapter, flags)
    return 0
