"""Prompts: zero-shot and few-shot evaluation of language models on labelled examples.

Command   python run.py eval --config=configs/prompt.py:tiny --workdir=runs/clm
          python run.py eval --config=configs/prompt.py:sst2 --config.init_from=hf:FOLDER
Tasks     :tiny     the continuation of 64 lines of Python, of two choices: for configs/clm.py:tiny
          :masked   the same lines, for configs/mlm.py:tiny
          :sst2     the sentiment of a film review, by two verbalizers; GLUE, by TensorFlow Datasets
          :rte      whether one sentence follows from another, likewise
Shots     --config.prompt.num_shots=4 shows four answered examples before each; of :sst2 and :rte
          also --config.prompt.balanced=True, as many of each label
Model     of :sst2 and :rte a decoder; an encoder with --config.objective=masked and
          --config.model.architecture=encoder
Time      :tiny takes half a minute on 2 CPU cores.
Expect    :tiny an accuracy of 0.77, between 0.66 and 0.88; guessing gives 0.5.
"""

from configs import clm, default, mlm
from configs.sizes import pick


def get_config(arg: str | None = None):
    """The config of a task: "tiny", "masked", "sst2" or "rte"."""
    return pick(arg, {"tiny": _tiny, "masked": _masked, "sst2": _sst2, "rte": _rte})()


def _tiny():
    return _python(clm.get_config("tiny"))


def _masked():
    return _python(mlm.get_config("tiny"))


def _python(config):
    """Pairs of continuations, of which one is correct Python or far more common."""
    config.prompt.source = "files:configs/python.jsonl"
    config.prompt.template = "{text}{answer}"
    return config


def _sst2():
    config = _glue("sst2", ("negative", "positive"), (" terrible", " great"))
    config.prompt.template = "Review: {sentence}\nSentiment:{answer}"
    return config


def _rte():
    config = _glue("rte", ("entailment", "not_entailment"), (" True", " False"))
    config.prompt.template = "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:{answer}"
    return config


def _glue(name: str, labels: tuple[str, ...], words: tuple[str, ...]):
    config = default.get_config()
    config.evaluation.num_examples = 0
    config.task.labels = labels
    config.prompt.source = f"tfds:glue/{name}"
    config.prompt.verbalizers = words
    config.prompt.content_free = ("N/A", "", "[MASK]")
    return config
