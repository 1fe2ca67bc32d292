"""A tuned run keeps only what it trained, resumes on its own base, and refuses another."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from lm.config import override
from lm.errors import UserError
from lm.restore import restore
from lm.train import train
from lm.tune import count


@pytest.fixture
def base(small_config, tmp_path):
    sizes = {"model.layers": 1, "model.features": 16, "model.heads": 2, "steps": 4}
    config = override(small_config, sizes | {"evaluation.every": 0, "checkpoint.every": 2})
    train(config, tmp_path / "base")
    return override(config, {"init_from": str(tmp_path / "base"), "tune.method": "lora"})


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_tuned_run_from_start_to_end(base, tmp_path, losses):
    workdir = tmp_path / "lora"
    result = train(base, workdir)
    before, after = restore(tmp_path / "base"), restore(workdir)
    assert result["trained_parameters"] == 2 * (2 * 16 * 8) < result["parameters"]
    frozen = after.program.init(jax.random.key(0)).frozen
    assert count(frozen) == count(before.params)
    for path, leaf in flatten_dict(before.params).items():
        np.testing.assert_array_equal(flatten_dict(after.params)[path], leaf)
    moved = after.params["stack"]["layer_0"]["attention"]["query"]["lora"]["b_kernel"]
    assert (np.asarray(moved) != 0).any()
    # Only what was trained is kept.
    step = str(base.steps)
    assert size(workdir / "checkpoints" / step) < size(tmp_path / "base" / "checkpoints" / step) / 2
    # Without its result, the run goes on from its checkpoint and its base to the same numbers.
    expected = losses(workdir)
    (workdir / "result.json").unlink()
    again = train(base, workdir)
    assert again["eval/nats_per_token"] == result["eval/nats_per_token"]
    assert losses(workdir) == expected
    # A base that has changed since is refused.
    recorded = json.loads((workdir / "base.json").read_text())
    assert recorded["origin"].endswith("at step 4")
    (workdir / "base.json").write_text(json.dumps(recorded | {"hash": "0" * 12}))
    with pytest.raises(UserError, match=r"hash 0{12}.*restore that base"):
        restore(workdir)


def test_a_fresh_parameter_that_is_not_trained_is_refused(base, tmp_path):
    config = override(base, {"output.tied": False})
    with pytest.raises(UserError, match=r"has no head/table .* use lora\+head"):
        train(config, tmp_path / "untied")
