"""Commands on s3://, against a server of its protocol: pip install -e ".[bucket-test]"."""

import importlib.util
import time

import pytest
from etils import epath

from tests.commands import start_fresh

INSTALLED = all(importlib.util.find_spec(name) for name in ("moto", "s3fs"))
pytestmark = [
    pytest.mark.slow,  # each command is a process of its own, and the extra is not light
    pytest.mark.skipif(not INSTALLED, reason='needs pip install -e ".[bucket-test]"'),
]


@pytest.fixture(scope="module")
def s3():
    """The address of a bucket of a server on this machine."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture
def settings(corpus_folder, cache):
    given = {
        "cache_dir": cache,
        "data.source": f"files:{corpus_folder}/*.txt",
        "data.seq_len": 32,
        "data.validation_fraction": 0.2,
        "model.d_model": 16,
        "model.num_heads": 2,
        "model.num_layers": 1,
        "batch_size": 4,
        "steps": 300,
        "checkpoint.every": 20,
        "evaluation.every": 100,
        "evaluation.num_examples": 16,
        "log.every": 1,
    }
    return [f"--config.{key}={value}" for key, value in given.items()]


def finished(*arguments):
    process = start_fresh(*arguments)
    out, err = process.communicate()
    return process.returncode, out, err


def test_a_killed_run_on_s3_resumes_to_the_same_lines_and_a_second_is_told_who_holds_it(
    s3, settings, tmp_path, losses
):
    command = ["train", "--config=configs/clm.py:tiny", *settings]
    status, _, err = finished(*command, f"--workdir={tmp_path / 'whole'}")
    assert status == 0, err
    workdir = epath.Path(s3) / "run"
    process = start_fresh(*command, f"--workdir={workdir}")
    while not (workdir / "checkpoints/20/manifest.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    second = finished(*command, f"--workdir={workdir}") if process.poll() is None else None
    process.kill()
    process.communicate()
    if second is not None and not (workdir / "result.json").exists():
        assert second[0] == 2 and "is held by process" in second[2]
    status, out, err = finished(*command, f"--workdir={workdir}")
    assert status == 0 and "resumes at step" in out, err
    assert losses(workdir) == losses(tmp_path / "whole")
    status, out, err = finished("eval", f"--workdir={workdir}", f"--cache_dir={tmp_path}")
    assert status == 0 and "at step 300" in out, err


def test_a_table_is_made_in_a_bucket(s3, settings):
    steps = ["--config.steps=4", "--config.schedule.warmup_steps=1", "--seeds=1"]
    steps += ["--config.data.tokenizer=bytes", "--config.data.vocab_size=256"]
    config = ["--config=configs/output.py:tiny", *settings, *steps]
    status, out, err = finished("table", *config, f"--workdir={s3}/heads")
    assert status == 0, err
    assert (epath.Path(s3) / "heads/table.md").read_text() in out
    assert (epath.Path(s3) / "heads/table.png").exists()


def test_a_bucket_that_is_not_there_is_one_line(s3, settings):
    config = ["--config=configs/clm.py:tiny", *settings]
    status, _, err = finished("train", *config, "--workdir=s3://missing/run")
    assert status == 1 and len(err.splitlines()) == 1 and "there is no such bucket" in err
