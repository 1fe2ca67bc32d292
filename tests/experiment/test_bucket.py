"""A workdir in a bucket is one like on a disk: claimed once, resumed to the same bits, compared."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from lm.checkpoints.checkpointer import Checkpoints
from lm.checkpoints.restore import restore
from lm.config import override
from lm.data.files import create_text
from lm.errors import Interrupted, UserError, explain
from lm.experiment import claim as claim_module
from lm.experiment.claim import Held, claim, holder, last_claim
from lm.experiment.status import describe_status
from lm.experiment.train import train
from lm.training.metric_writer import Writer, read_metrics
from tests.claims import write_claim
from tests.experiment.test_train import interrupt_at
from tests.memory_bucket import bucket  # noqa: F401 (a fixture)


def test_the_second_is_told_who_holds_the_workdir(bucket):  # noqa: F811
    workdir = epath.Path(bucket) / "run"
    other = claim_module.Holder("node7", "other", 42, None, "now", "x")
    with claim(workdir):
        assert holder(workdir) is not None
        path = workdir / ".claim-1"
        assert not create_text(path, json.dumps(dataclasses.asdict(other)))
    assert holder(workdir) is None
    path.write_text(json.dumps(dataclasses.asdict(other)))
    with pytest.raises(Held, match="held by process 42 on node7"), claim(workdir):
        raise AssertionError


def test_a_claim_in_a_bucket_is_over_when_it_was_not_refreshed(bucket, monkeypatch):  # noqa: F811
    workdir = epath.Path(bucket) / "run"
    write_claim(workdir, machine="other", host="node7")
    assert last_claim(workdir).in_force
    monkeypatch.setattr(claim_module, "STALE", -1.0)
    assert not last_claim(workdir).in_force


def test_a_server_that_makes_an_object_twice_cannot_be_shared(bucket, monkeypatch):  # noqa: F811
    workdir = epath.Path(bucket) / "run"
    with claim(workdir, wait=True):
        pass
    monkeypatch.setattr(
        claim_module, "create_text", lambda path, text: path.write_text(text) or True
    )
    with pytest.raises(UserError, match="leave out --share"), claim(workdir, wait=True):
        raise AssertionError
    with claim(workdir):
        pass
    assert not workdir.exists()


def test_lines_are_in_the_bucket_when_they_are_asked_for(bucket):  # noqa: F811
    workdir = epath.Path(bucket) / "run"
    writer = Writer(workdir, 0, 0)
    writer.write(1, {"train/loss": 3.0})
    assert read_metrics(workdir / "metrics.jsonl") == []
    writer.sync()
    writer.write(2, {"eval/loss": 2.0})  # evaluations are few, and copied at once
    assert [each["step"] for each in read_metrics(workdir / "metrics.jsonl")] == [1, 2]
    writer.write(3, {"train/loss": 2.0})
    writer.close()
    resumed = Writer(workdir, 2, 2)
    resumed.close()
    assert [each["step"] for each in read_metrics(workdir / "metrics.jsonl")] == [1, 2]


def test_an_interrupted_run_in_a_bucket_ends_as_an_undisturbed_one_on_a_disk(
    small_config,
    bucket,  # noqa: F811
    tmp_path,
    monkeypatch,
    losses,
    capsys,
):
    train(small_config, tmp_path / "whole")
    workdir = epath.Path(bucket) / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(7, patch)
        train(small_config, workdir)
    assert "interrupted: step 7 of 12; checkpoint of step 7" in describe_status(workdir)[0]
    capsys.readouterr()
    train(override(small_config, {"log.trackers": ("tensorboard",)}), workdir)
    assert "resumes at step 7;" in capsys.readouterr().out
    assert losses(workdir) == losses(tmp_path / "whole")
    expected = restore(epath.Path(tmp_path / "whole")).params
    jax.tree.map(np.testing.assert_array_equal, restore(workdir).params, expected)
    assert Checkpoints(workdir).steps == [10, 12]
    assert any(name.name.startswith("events") for name in (workdir / "tensorboard").iterdir())
    assert not [child for child in workdir.iterdir() if child.name.startswith(".")]
    assert "finished: 12 steps" in describe_status(workdir)[0]


def test_a_bucket_that_cannot_be_read_is_one_line():
    error = ImportError("Install s3fs to access S3")
    assert explain(error) == 'Install s3fs to access S3: buckets need pip install -e ".[bucket]"'
    missing = FileNotFoundError("The specified bucket does not exist")
    assert "there is no such bucket" in explain(missing)
    kind = type("EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"})
    assert "the bucket cannot be read or written (gone): check" in explain(kind("gone"))
