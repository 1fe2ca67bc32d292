"""Small text and small configs that the tests share; everything runs on 8 fake CPU devices."""

import functools
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import pytest

from configs import default
from lm import partition
from lm.metrics import read_metrics

TEXT = "def add(a, b):\n    return a + b\n\n\nclass Point:\n    x: int\n    y: int = {}\n\n"


def pytest_collection_modifyitems(items):
    """The longest test first, so that the others fill the time beside it."""
    items.sort(key=lambda item: "test_readme" not in item.nodeid)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    """Forty documents of 700 bytes or so."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        text = "".join(TEXT.format(number * 100 + i) for i in range(9))
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small_config(corpus_folder, cache):
    """A run of 12 steps that takes seconds."""
    return small(corpus_folder, cache)


def small(corpus_folder, cache):
    """The config of `small_config`, for fixtures that several tests share."""
    config = default.get_config()
    config.cache = str(cache)
    config.steps = 12
    config.batch_size = 8
    config.data.source = f"files:{corpus_folder}/*.txt"
    config.data.length = 32
    config.data.validation = 0.2
    config.model.update(layers=2, features=32, heads=4, max_length=64)
    config.schedule.warmup = 2
    config.checkpoint.every = 5
    config.evaluation.update(every=6, rows=16)
    config.log.update(every=1, tensorboard=False)
    config.mesh.update(data=8)
    return config


@pytest.fixture
def one_device(monkeypatch):
    """Meshes are of the first device alone."""
    use_one_device(monkeypatch)


def use_one_device(patch):
    """What `one_device` does, for fixtures that several tests share."""
    one = functools.partial(partition.make_mesh, devices=jax.devices()[:1])
    patch.setattr(partition, "make_mesh", one)


@pytest.fixture(scope="session")
def losses():
    """Gives the numbers of a workdir's metrics.jsonl that do not depend on the clock."""
    timed = ("seconds", "tokens_per_second")

    def read(workdir):
        records = read_metrics(workdir / "metrics.jsonl")
        return [{k: v for k, v in record.items() if k not in timed} for record in records]

    return read
