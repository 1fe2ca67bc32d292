"""A workdir belongs to the run that began in it."""

import types

import pytest
from etils import epath

from configs import default
from lm.errors import UserError
from lm.workdir import claimed, open_workdir

CORPUS = types.SimpleNamespace(manifest={"hash": "0" * 64, "tokenizer": {"hash": "1" * 64}})


def test_a_mistake_that_is_found_before_the_first_step_lets_go_of_the_workdir(tmp_path):
    config, workdir = default.get_config(), epath.Path(tmp_path / "run")
    with pytest.raises(UserError, match="rows"), claimed(config, workdir, CORPUS):
        (workdir / "checkpoints").mkdir()
        raise UserError("train has 3 rows")
    config.batch_size = 2
    assert open_workdir(config, workdir) is None
    assert not list(workdir.iterdir())


def test_a_later_leg_keeps_what_is_there(tmp_path):
    config, workdir = default.get_config(), epath.Path(tmp_path / "run")
    with claimed(config, workdir, CORPUS):
        pass
    before = sorted(workdir.iterdir())
    with pytest.raises(UserError), claimed(config, workdir, CORPUS):
        raise UserError("no device is left")
    assert sorted(workdir.iterdir()) == before


def test_a_run_whose_record_of_the_text_is_gone_keeps_its_checkpoints(tmp_path):
    config, workdir = default.get_config(), epath.Path(tmp_path / "run")
    with claimed(config, workdir, CORPUS):
        (workdir / "checkpoints").mkdir()
    (workdir / "data.json").unlink()
    with pytest.raises(UserError), claimed(config, workdir, CORPUS):
        raise UserError("a checkpoint is damaged")
    assert (workdir / "checkpoints").exists() and (workdir / "config.json").exists()
