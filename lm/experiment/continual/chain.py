"""How are tasks learned one after the other? A chain of ordinary runs in the folders 1, 2, ... of
a workdir, each from the parameters of the one before; after each, the held-out examples of all
tasks are asked.
"""

from typing import Any

import jax
import numpy as np
from etils import epath

from lm.checkpoints.initialize import check_donor
from lm.checkpoints.restore import restore
from lm.checkpoints.resume import FREE, record_changes
from lm.checkpoints.run_files import recorded_config
from lm.config import Config, content_hash, override
from lm.data.files import write_json, write_text
from lm.evaluation.held_out import evaluate
from lm.experiment.continual.forgetting import measures, to_markdown
from lm.experiment.continuation import total_steps
from lm.experiment.primary_metric import check_finite, headline
from lm.experiment.run_dir import claimed, held, open_workdir
from lm.experiment.train import train
from lm.training.metric_writer import Writer, read_metrics
from lm.training.program import corpus_program, prepare_corpus
from lm.training.train_step import check_devices
from lm.training.validate import check

TABLE = "continual.md"


def learn(
    config: Config, workdir: epath.PathLike, label: str = "train", wait: bool = False
) -> dict[str, Any]:
    """Trains a run, or where config.continual.sources names several tasks, the chain of their runs.

    Like `train`, it goes on with what is unfinished and leaves alone what is finished.

    Returns:
      What result.json holds: of a chain, that of its last run, with the mean over tasks under the
      name of their metric, "matrix", metric by run and task (see
      `lm.experiment.continual.forgetting`), and `measures` of it; "steps" and "seconds" are those
      of all runs.

    Raises:
      UserError, Interrupted: as `train`.
    """
    if not config.continual.sources or config.continual.stage:
        return train(config, workdir, label, wait)
    check(config)
    # Runs record the folder of the one before, which must not depend on how a command names it.
    workdir = epath.Path(workdir).resolve()
    finished = open_workdir(config, workdir, FREE)
    if finished is None:
        check_devices(config)
        check_donor(config.init_from)
        with held(workdir, wait):
            finished = open_workdir(config, workdir, FREE) or _begin(config, workdir, label)
    if jax.process_index() == 0:
        print((workdir / TABLE).read_text(), flush=True)
    return finished


def _begin(config: Config, workdir: epath.Path, label: str) -> dict[str, Any]:
    corpus = prepare_corpus(config)
    recorded = workdir / "config.json"
    if recorded.exists() and jax.process_index() == 0:
        record_changes(config, recorded_config(recorded), workdir, 0)  # its runs say what they are
    with claimed(config, workdir, corpus):
        chain = runs(config, workdir, corpus)
        corpus_program(chain[0], prepare_corpus(chain[0]))
    return _finish(config, workdir, chain, corpus, label)


def runs(config: Config, workdir: epath.Path, corpus: Any) -> list[Config]:
    """The configs of a chain's runs, in order."""
    count = len(config.continual.sources)
    alone = [override(config, {"continual.stage": place}) for place in range(1, count + 1)]
    if config.continual.joint:
        steps = [total_steps(run, corpus.only(number)) for number, run in enumerate(alone)]
        return [override(alone[0], {"epochs": None, "steps": sum(steps)})]
    first, *later = alone
    nothing = {
        "continual.replay_fraction": 0.0,
        "continual.memory_size": 0,
        "regularization.ewc": 0.0,
    }
    return [override(first, nothing)] + [
        override(run, {"init_from": str(workdir / str(place))})
        for place, run in enumerate(later, start=1)
    ]


def _finish(
    config: Config, workdir: epath.Path, chain: list[Config], corpus: Any, label: str
) -> dict[str, Any]:
    """Trains and asks what is not recorded yet; writes the table and result.json."""
    judged = headline(config, scored=[f"eval/{name}" for name in corpus.task.measures])
    sources, main = config.continual.sources, jax.process_index() == 0
    names = [f"{judged.name}/{place}" for place in range(1, len(sources) + 1)]
    # One line a run: the scores of all tasks after it, at the steps of all runs so far.
    records = read_metrics(workdir / "metrics.jsonl")
    before = records[-1]["step"] if records else 0
    writer = Writer(workdir, before, before, config.log.tensorboard) if main else None
    results = []
    for place, run in enumerate(chain, start=1):
        folder = workdir / str(place)
        results.append(train(run, folder, f"{label}, {place} of {len(chain)}"))
        if place > len(records):
            scores = dict(zip(names, _asked(run, folder, judged.name), strict=True))
            records.append(scores)
            if writer is not None:
                writer.write(sum(result["steps"] for result in results), scores)
    if writer is None:
        return results[-1]
    writer.close()
    matrix = np.array([[record[name] for name in names] for record in records])
    own = ("interval", "best_step")  # of the last task alone, as are its metrics
    last = {k: v for k, v in results[-1].items() if not k.startswith("eval/") and k not in own}
    result = {judged.name: float(matrix[-1].mean()), **measures(matrix, judged.lower), **last} | {
        "matrix": matrix.tolist(),
        "steps": sum(result["steps"] for result in results),
        "seconds": round(sum(result["seconds"] for result in results), 3),
        "config_hash": content_hash(config),
    }
    check_finite(judged, result)
    write_text(workdir / TABLE, to_markdown(matrix, sources, judged))
    write_json(workdir / "result.json", result)
    return result


def _asked(config: Config, folder: epath.Path, metric: str) -> list[float]:
    """The metric of a finished run on the held-out examples of every task."""
    run = restore(folder, given=config)
    corpus: Any = run.corpus
    parts = [corpus.only(number) for number in range(len(config.continual.sources))]
    with jax.set_mesh(run.program.mesh):
        found = [evaluate(run.program, run.params, part, run.config) for part in parts]
    return [each.metrics[metric] for each in found]
