"""Runs that are trained in one program have the numbers of separate runs, and their files."""

import json

import jax
import numpy as np
import pytest

from lm.checkpoints.restore import restore
from lm.config import override
from lm.experiment.replicas import RunOf, train_replicas
from lm.experiment.train import train


@pytest.fixture
def tiny(small_config):
    return override(
        small_config,
        {"steps": 6, "checkpoint.every": 4, "evaluation.every": 3, "model.dropout": 0.1},
    )


def result_of(workdir):
    timed = ("seconds", "tokens_per_second")
    content = json.loads((workdir / "result.json").read_text())
    return {k: v for k, v in content.items() if k not in timed}


def of_seeds(config, folder, seeds):
    return [
        RunOf(override(config, {"seed": seed}), folder / str(seed), str(seed)) for seed in seeds
    ]


def test_replicas_have_the_bits_and_the_files_of_separate_runs(tiny, tmp_path, losses):
    together = of_seeds(tiny, tmp_path / "together", (0, 3))
    found = train_replicas(together, "map")
    for each, result in zip(together, found, strict=True):
        alone = tmp_path / f"alone-{each.label}"
        train(each.config, alone)
        assert result_of(each.workdir) == result_of(alone)
        assert result == json.loads((each.workdir / "result.json").read_text())
        assert losses(each.workdir) == losses(alone)
        for name in ("config.json", "data.json"):
            assert (each.workdir / name).read_text() == (alone / name).read_text()
        names = [
            sorted(p.name for p in (w / "checkpoints").iterdir()) for w in (each.workdir, alone)
        ]
        assert names[0] == names[1]
        jax.tree.map(
            np.testing.assert_array_equal, restore(each.workdir).params, restore(alone).params
        )
