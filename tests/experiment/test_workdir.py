"""A workdir belongs to the run that began in it."""

import subprocess
import types

import pytest
from etils import epath

from configs import default
from lm.checkpoints.run_files import read_result, read_run_json
from lm.data.files import replacing, write_json
from lm.errors import UserError
from lm.experiment import provenance, run_dir
from lm.experiment.run_dir import claimed, open_workdir
from lm.training.metric_writer import read_metrics

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


RESULT = {"steps": 3, "seconds": 1.0, "config_hash": "abc", "eval/accuracy": None}


@pytest.mark.parametrize(
    "content", ['{"steps": 3, "sec', "[]", "{}", "3", "", "\0\0", '{"steps": 3}', "[" * 10_000]
)
def test_a_result_that_is_not_whole_is_none(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    assert read_result(epath.Path(tmp_path)) is None
    write_json(tmp_path / "result.json", RESULT)
    found = read_result(epath.Path(tmp_path))
    assert found is not None and found["steps"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"hash": "12', "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[" * 10_000, "is not JSON"),
        ("[1, 2]", "is no JSON object"),
        ("{}", "has no text 'hash'"),
        ('{"hash": 3}', "has no text 'hash'"),
        ('{"hash": "1", "tokenizer": []}', "has no text 'tokenizer.hash'"),
    ],
)
def test_a_record_of_another_shape_is_one_line(tmp_path, content, message):
    path = epath.Path(tmp_path / "data.json")
    (tmp_path / "data.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as error:
        read_run_json(path, "hash", "tokenizer.hash")
    assert "\n" not in str(error.value)


GOOD = b'{"step": 1, "train/loss": null, "seconds": 0.5}'


@pytest.mark.parametrize("line", [b"[1]", b"3", b'{"step": "1"}', b"{}", b'{"st', b"\xff", b""])
def test_a_line_that_is_no_record_is_named_and_left_out_where_it_is_the_last(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([GOOD, line]))
    assert [record["step"] for record in read_metrics(path)] == [1]
    path.write_bytes(b"\n".join([GOOD, line, GOOD]))
    with pytest.raises(UserError, match=r"metrics.jsonl line 2 is not a JSON object with a step"):
        read_metrics(path)


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, RESULT)
    before = path.read_bytes()
    with pytest.raises(OSError), replacing(path) as partial:
        partial.write_text("half")
        raise OSError("disk full")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_several_processes_do_not_train_in_a_bucket_that_checkpoints_are_uploaded_to(monkeypatch):
    monkeypatch.setattr(run_dir, "process_count", lambda: 2)
    held = run_dir.held(epath.Path("s3://bucket/run"))
    with pytest.raises(UserError, match="s3://bucket/run: 2 processes write the parts"), held:
        pass


def test_a_commit_is_clean_whatever_results_were_measured_at_it(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    for folder in ("lm", "experiments/results"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "lm" / "provenance.py"))
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    (tmp_path / "experiments/results/new.json").write_text("{}")
    clean = provenance.commit()
    (tmp_path / "lm" / "provenance.py").touch()
    assert clean and len(clean) == 12
    assert provenance.commit() == clean + "+"
