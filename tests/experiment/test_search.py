"""A search by Optuna: its trials are in folders of points, which are the truth of what is done."""

import collections
import json
import sys
import threading
import time

import pytest
from etils import epath

pytest.importorskip("optuna")

from configs import default
from lm.config import override, to_dict
from lm.errors import UserError
from lm.experiment.ablation import search as search_module
from lm.experiment.ablation.points import Ablation
from lm.experiment.ablation.search import JOURNAL, Search, run_search
from lm.experiment.claim import claim
from lm.experiment.point_list import recorded_points
from tests.claims import held_elsewhere

RATE = "optimizer.learning_rate"
DRAW = (f"{RATE}=log:1e-4:3e-2", "attention.weighting={softmax,sigmoid}")


@pytest.fixture
def trained(monkeypatch):
    """Points that take only a moment, and are best at a rate of 2e-3, with how often each was."""
    counts = collections.Counter()

    def train_point(point):
        with claim(point.workdir):
            if not (point.workdir / "result.json").exists():
                counts[point.workdir.name] += 1
                time.sleep(0.01)
                if point.config.optimizer.learning_rate > 1e-2:
                    (point.workdir / "error.txt").write_text("FloatingPointError: no luck")
                    return True
                bits = 2 + abs(point.config.optimizer.learning_rate - 2e-3) + point.seed / 10
                result = {"eval/bits_per_byte": bits, "steps": 1, "seconds": 1.0}
                (point.workdir / "config.json").write_text(json.dumps(to_dict(point.config)))
                text = json.dumps(result | {"config_hash": "0"})
                (point.workdir / "result.json").write_text(text)
        return False

    monkeypatch.setattr(search_module, "train_point", train_point)
    monkeypatch.setattr(search_module, "POLL", 0.01)
    return counts


@pytest.fixture
def search(tmp_path):
    """Makes a search of six trials of two seeds, or with other attributes."""
    (tmp_path / "work").mkdir()

    def make(**changes):
        given = {
            "config": default.get_config(),
            "ablation": Ablation([{}], (0, 1)),
            "drawn": DRAW,
            "trials": 6,
            "workdir": epath.Path(tmp_path / "work"),
        }
        return Search(**(given | changes))

    return make


def states(search):
    worker = search_module._Worker(search, search_module.distributions(search.drawn))
    return [each.state for each in worker.study.trials()]


def test_trials_are_searched_and_a_second_command_trains_nothing(search, trained, capsys):
    failed = run_search(search())
    assert len(states(search())) == 6 and states(search()).count("fail") == failed > 0
    assert set(trained.values()) == {1}
    shown = capsys.readouterr().out
    assert "6 trials: " in shown and f"use --config.{RATE}=" in shown
    assert set(recorded_points(search().workdir)) == set(trained)
    before = dict(trained)
    assert run_search(search()) == failed and trained == before
    run_search(search(trials=7))
    assert len(states(search())) == 7 and set(trained.values()) == {1}


def test_a_lost_study_is_made_again_from_the_folders(search, trained):
    run_search(search())
    before = dict(trained)
    (search().workdir / JOURNAL).unlink()
    run_search(search())
    assert trained == before and len(states(search())) == 6


def test_a_lost_workers_trial_is_taken_up_where_it_stopped(search, trained):
    lost = search_module._Worker(search(), search_module.distributions(DRAW))
    trial = lost.study.ask(6)
    assert trial is not None
    search_module.train_point(lost._points(trial)[0])  # and not the second seed
    run_search(search())
    assert len(states(search())) == 6 and "running" not in states(search())
    assert set(trained.values()) == {1}
    assert [trained[point.workdir.name] for point in lost._points(trial)] == [1, 1]


def test_a_trial_that_another_worker_is_at_is_left_to_it(search, trained):
    other = search_module._Worker(search(), search_module.distributions(DRAW))
    trial = other.study.ask(2)
    assert trial is not None
    point = other._points(trial)[0]
    with held_elsewhere(point.workdir):
        worker = threading.Thread(target=run_search, args=(search(trials=2),))
        worker.start()
        worker.join(0.5)
        assert worker.is_alive() and point.workdir.name not in trained
    worker.join()
    assert trained[point.workdir.name] == 1 and len(states(search())) == 2


def test_workers_on_one_study_train_every_trial_once(search, trained):
    workers = [threading.Thread(target=run_search, args=(search(trials=8),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(states(search())) == 8 and "running" not in states(search())
    assert set(trained.values()) == {1}


def test_a_trial_worse_than_the_median_over_the_same_seeds_is_pruned(search, trained, capsys):
    run_search(search(drawn=(f"{RATE}=1e-3:9e-3",), trials=12))
    found = states(search(drawn=(f"{RATE}=1e-3:9e-3",)))
    assert found[:5] == ["complete"] * 5 and 0 < found.count("pruned") < 7
    assert sum(trained.values()) == 12 + found.count("complete")
    assert "pruned after 1 seed" in capsys.readouterr().out
    assert len(recorded_points(search().workdir)) == sum(trained.values())


def test_an_impossible_config_fails_its_trial_alone(search, trained, capsys):
    drawn = ("model.d_model={128,130}",)
    assert run_search(search(drawn=drawn, trials=6)) == states(search(drawn=drawn)).count("fail")
    assert {"complete", "fail"} <= set(states(search(drawn=drawn)))
    assert "130 is not divisible by config.model.num_heads" in capsys.readouterr().err


def test_what_cannot_be_searched_is_one_line(search, trained, monkeypatch):
    run_search(search(trials=1))
    other = override(default.get_config(), {"steps": 7})
    mistakes = [
        (search(config=other), "is of another search: "),
        (search(ablation=Ablation([{}, {"steps": 3}], (0,))), "there are 2 rows; leave out --vary"),
        (search(study="gs://bucket/study"), "a study is no object of a bucket, such as gs://"),
        (search(study="nosuch://x"), "--study=nosuch://x cannot be opened: "),
    ]
    for each, message in mistakes:
        with pytest.raises(UserError, match=message) as caught:
            run_search(each)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"--search=optuna needs Optuna: pip install -e"):
        run_search(search())
