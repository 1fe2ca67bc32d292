"""Small text and small configs that the tests share; a mesh takes its share of 8 fake devices."""

import functools
import math
import os

import jax
import pytest

from configs import default
from lm.checkpoints import restore
from lm.devices import sharding
from lm.training.metric_writer import read_metrics, untimed
from tests.ablation_points import finished

# Without LLVM's optimization, in one piece, and by the older of two emitters of fused loops where
# there still are two, the same program is there in less than half of the time.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
TEXT = "def add(a, b):\n    return a + b\n\n\nclass Point:\n    x: int\n    y: int = {}\n\n"


def pytest_configure(config):
    """Slow proofs compute for minutes, and want programs that are well compiled."""
    quick = QUICK if config.option.markexpr == "not slow" else ""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8 {quick}"


def pytest_collection_modifyitems(items):
    """The longest test first, so that the others fill the time beside it."""
    items.sort(key=lambda item: "test_docs" not in item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def as_many_devices_as_a_mesh_asks_for():
    """A mesh of 2x1x1x1 is made of the first two of the fake devices; one with -1 of all."""
    whole = sharding.make_mesh

    def make_mesh(data=-1, fsdp=1, sequence=1, tensor=1, devices=None):
        count = math.prod((data, fsdp, sequence, tensor))
        if devices is None and 0 < count < jax.device_count():
            devices = jax.devices()[:count]
        return whole(data, fsdp, sequence, tensor, devices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", make_mesh)
        yield whole


@pytest.fixture
def all_devices(as_many_devices_as_a_mesh_asks_for, monkeypatch):
    """Meshes are of all devices, as outside of tests."""
    monkeypatch.setattr(sharding, "make_mesh", as_many_devices_as_a_mesh_asks_for)


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


@pytest.fixture(scope="session", autouse=True)
def restored_runs_find_the_tests_cache(cache):
    """Nothing that a workdir holds says where it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "CACHE", str(cache))
        yield


@pytest.fixture(scope="session")
def base_config(corpus_folder, cache):
    """A run of 12 steps that takes seconds, to be copied."""
    config = default.get_config()
    config.cache_dir = str(cache)
    config.steps = 12
    config.batch_size = 8
    config.data.source = f"files:{corpus_folder}/*.txt"
    config.data.seq_len = 32
    config.data.validation_fraction = 0.2
    config.model.update(num_layers=1, d_model=32, num_heads=4, max_seq_len=64)
    config.schedule.warmup_steps = 2
    config.checkpoint.every = 5
    config.evaluation.update(every=6, num_examples=16)
    config.log.update(every=1, trackers=())
    config.mesh.update(data=1)
    return config


@pytest.fixture
def small_config(base_config):
    """A run of 12 steps that takes seconds."""
    return base_config.copy_and_resolve_references()


@pytest.fixture(scope="session")
def losses():
    """Gives the numbers of a workdir's metrics.jsonl that do not depend on the clock."""

    def read(workdir):
        return [untimed(record) for record in read_metrics(workdir / "metrics.jsonl")]

    return read


@pytest.fixture
def finish(tmp_path):
    """Makes a finished point of an ablation: `finish(row, seed, bits per byte)`."""
    return functools.partial(finished, tmp_path)
