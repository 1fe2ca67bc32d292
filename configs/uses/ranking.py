"""Recommendation: films in the order in which they will please, by what was said of them.

Command   python experiments/archives.py movie.tsv minilm
          python experiments/uses/ranking.py data
          python run.py train --config=configs/uses/ranking.py --workdir=runs/ranking
          python experiments/uses/ranking.py measure runs/ranking
Text      1,325 lists of eight sentences of film reviews; the relevance of each, 0 to 4, is what 20
          people felt in it (VADER); a fifth of the lists is held out
Model     all-MiniLM-L6-v2, of which the last block is trained, with ListNet's loss over the list
Time      17 minutes on two very busy CPU cores
Expect    NDCG@3 0.853, no better than 0.863 of a ridge regression on words; one seed
"""

from configs import finetune


def get_config(arg: str | None = None):
    """The config; it takes no argument."""
    if arg:
        raise ValueError(f"configs/uses/ranking.py takes no argument, not {arg!r}")
    config = finetune.get_config("tweets")
    config.data.source = f"files:{finetune.ARCHIVES}/film_lists.jsonl"
    config.data.seq_len = 32
    config.task.name = "ranking"
    config.task.text = ()
    config.task.choices = ("items",)
    config.task.label = "relevance"
    config.output.head = "softmax"
    config.output.bias = None
    config.finetuning.method = "layers"
    config.optimizer.learning_rate = 5e-4
    config.schedule.warmup_steps = 10
    config.batch_size = 8
    config.epochs = 1.0
    config.evaluation.every = 0
    return config
