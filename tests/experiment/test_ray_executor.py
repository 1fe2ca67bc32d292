"""Points are tasks of Ray, each with the devices that its mesh asks for."""

import importlib
import json
import sys
import types

import pytest

from lm.config import override
from lm.errors import UserError
from lm.experiment.ablation import ray_executor
from lm.experiment.ablation.points import Ablation, make_points
from lm.experiment.ablation.ray_executor import train_by_ray
from lm.experiment.attempts import read_attempts
from lm.experiment.failures import reason

ROWS = [{"attention.weighting": "softmax"}, {"attention.weighting": "sparsemax"}]


@pytest.fixture
def points(small_config, tmp_path):
    config = override(small_config, {"steps": 4, "checkpoint.every": 2})
    return make_points(config, Ablation(ROWS, (0,)), tmp_path / "sweep")


def test_without_ray_one_line_says_what_to_install(points, monkeypatch):
    monkeypatch.setattr(ray_executor, "begin", lambda points, *_: points)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UserError, match=r"--executor=ray needs Ray .*: pip install -e '.\[sweep\]'"
    ):
        train_by_ray(points)


def test_a_cluster_that_is_gone_is_one_line(points, monkeypatch):
    def init(**_):
        raise RuntimeError("Failed to connect to GCS.\nmore")

    ray = types.SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setattr(ray_executor, "begin", lambda points, *_: points)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(UserError, match=r"\(Failed to connect to GCS.\); start it, or set RAY_A"):
        train_by_ray(points)


@pytest.mark.parametrize(
    ("there", "platforms", "mesh", "options"),
    [
        ({"CPU": 8.0}, "", {}, {"num_cpus": 1}),
        ({"CPU": 8.0, "GPU": 4.0}, "", {"mesh.fsdp": 2}, {"num_gpus": 2}),
        ({"CPU": 8.0, "GPU": 4.0}, "cpu", {}, {"num_cpus": 1}),
        (
            {"CPU": 8.0, "TPU": 4.0},
            "",
            {"mesh.data": 2, "mesh.tensor": 2},
            {"resources": {"TPU": 4}},
        ),
    ],
)
def test_a_task_takes_the_devices_of_its_mesh(
    small_config, monkeypatch, there, platforms, mesh, options
):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    ray = types.SimpleNamespace(cluster_resources=lambda: there)
    config = override(small_config, {"mesh.data": -1, **mesh})
    assert ray_executor._options(ray_executor._amount(ray, config)) == options


def test_one_is_told_what_no_node_has(capsys):
    nodes = [
        {"Alive": True, "Resources": {"GPU": 4.0}},
        {"Alive": False, "Resources": {"GPU": 8.0}},
    ]
    ray = types.SimpleNamespace(nodes=lambda: nodes)
    ray_executor._tell_what_is_missing(ray, [{"GPU": 4}, {"GPU": 8}, {"GPU": 8}])
    assert capsys.readouterr().out == "waits for a node with 8 GPUs; the largest of 1 has 4\n"


def test_a_point_whose_node_is_lost_too_often_has_failed(points, monkeypatch, capsys):
    lost, other = (type(name, (Exception,), {}) for name in ("NodeDiedError", "Other"))

    def get(_):
        raise lost("no node\nmore")

    task = types.SimpleNamespace(options=lambda **_: task, remote=lambda point, *_: point.row)
    ray = types.SimpleNamespace(
        exceptions=types.SimpleNamespace(
            TaskCancelledError=other, RayTaskError=other, RayError=lost
        ),
        is_initialized=lambda: True,
        cluster_resources=lambda: {"CPU": 2.0},
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}],
        remote=lambda _: task,
        wait=lambda waiting, timeout: (waiting, []),
        get=get,
    )
    monkeypatch.setattr(ray_executor, "begin", lambda points, *_: points)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert train_by_ray(points) == points
    assert "weighting=softmax seed 0 failed: no node more" in capsys.readouterr().err
    assert reason(points[0].workdir).endswith("NodeDiedError: no node")


@pytest.mark.slow
def test_a_local_cluster_trains_points_as_a_sweep_does(points, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("XLA_FLAGS", "")  # one device for each task
    try:
        assert train_by_ray(points) == []
    finally:
        importlib.import_module("ray").shutdown()
    for point in points:
        assert [each["how"] for each in read_attempts(point.workdir)] == ["finished"]
        assert json.loads((point.workdir / "result.json").read_text())["steps"] == 4
    assert train_by_ray(points) == []  # without a cluster, since nothing is left
