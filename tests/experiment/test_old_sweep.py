"""A sweep that was made when a point's hash came to be what it is, is complete for today's code."""

import pathlib
import shutil

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import default
from lm.checkpoints import identity
from lm.config import declared, override
from lm.errors import UserError
from lm.experiment.ablation import find_folders, load_ablation, make_points, train_points
from lm.experiment.ablation import sweep as sweep_module
from tests.old_sweep import old_sweep

MADE = pathlib.Path(__file__).parents[1] / "old_sweep"


@pytest.fixture
def defaults(monkeypatch):
    """Changes the defaults of config keys, or adds some."""
    original = default.get_config

    def change(settings):
        def get_config(arg=None):
            config = original(arg)
            for key, value in settings.items():
                group, _, name = key.rpartition(".")
                if group not in config:
                    config[group] = ConfigDict()
                config[group][name] = value
            return config

        monkeypatch.setattr(default, "get_config", get_config)
        for cached in (declared, identity.reference_defaults):
            cached.cache_clear()

    yield change
    monkeypatch.undo()
    for cached in (declared, identity.reference_defaults):
        cached.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """A copy of the sweep's folder."""
    return epath.Path(shutil.copytree(MADE, tmp_path / "sweep"))


@pytest.fixture
def sweep(folder, monkeypatch):
    """Runs the sweep; says which points it trains."""

    def run(settings=()):
        trained = []
        monkeypatch.setattr(
            sweep_module,
            "run_experiment",
            lambda config, workdir, name: trained.append(workdir.name) or RESULT,
        )
        config = override(old_sweep.get_config(), {"mesh.data": 1, **dict(settings)})
        ablation = load_ablation(str(MADE / "old_sweep.py"))
        points = find_folders(make_points(config, ablation, folder))
        assert train_points(points) == []
        return trained

    return run


RESULT = {"eval/bits_per_byte": 1.0, "seconds": 1.0}
FOLDERS = sorted(path.parent.name for path in MADE.glob("*/result.json"))


def test_an_old_sweep_is_complete(sweep, capsys):
    assert len(FOLDERS) == 2 and sweep() == []
    assert "trained anew" not in capsys.readouterr().out


def test_an_old_sweep_is_complete_after_a_key_has_been_added(sweep, defaults, capsys):
    defaults({"model.new_key": 0.5, "new_group.new_key": ("a",)})
    assert "new_group.new_key" in declared()
    assert sweep() == []
    assert "trained anew" not in capsys.readouterr().out


def test_an_old_sweep_is_complete_with_evaluations_at_other_steps(sweep):
    assert sweep({"evaluation.every": 2, "log.every": 1}) == []


def test_an_old_sweep_that_has_measured_other_text_is_refused_with_the_key(sweep):
    with pytest.raises(UserError, match=r"finished, with config\.evaluation\.num_examples = 4 ins"):
        sweep({"evaluation.num_examples": 8})


@pytest.mark.parametrize(
    ("setting", "before", "message"),
    [
        ({"model.norm_eps": 1e-5}, 1e-6, "config.model.norm_eps = 1e-05 instead of 1e-06"),
        # A new key, and what the code did before is not its default.
        ({"model.new_key": "b"}, "a", "config.model.new_key = 'b' instead of 'a'"),
    ],
)
def test_a_changed_meaning_is_named_and_trained_anew_beside_the_old_sweep(
    sweep, folder, defaults, monkeypatch, capsys, setting, before, message
):
    (key,) = setting
    monkeypatch.setattr(identity, "CHANGED_DEFAULTS", {key: before})
    defaults(setting)
    trained = sweep()
    assert len(trained) == 2 and not set(trained) & set(FOLDERS)
    assert (
        f"trained anew, beside runs of the same row and seed, with {message}: "
        "weighting=softmax seed 0, weighting=sparsemax seed 0" in capsys.readouterr().out
    )


def test_a_point_is_found_by_its_hash_whatever_its_label_and_by_its_config_whatever_its_hash(
    sweep, folder
):
    first, second = FOLDERS
    (folder / first).rename(folder / f"a-label-of-before{first[first.index('-seed') :]}")
    (folder / second).rename(folder / f"{second[:-12]}0123456789ab")
    assert sweep() == []
    (folder / f"{second[:-12]}0123456789ab").rename(folder / f"other{second[:-12]}0123456789ab")
    assert sweep() == [second]
