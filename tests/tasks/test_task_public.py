"""GLUE and CoNLL-2003 are read by the builders of TensorFlow Datasets from files in their own raw
formats, without a network and without TensorFlow, to the end of a small fine-tuning.
"""

import os
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.text import glue

from configs import finetune
from lm.config import override
from lm.experiment.train import train
from lm.tasks.prepare import prepare_task

WORDS = ("calm", "storm", "river", "stone", "lamp", "field")


def _pairs(start, count):
    for n in range(start, start + count):
        first, second = WORDS[n % 6], WORDS[(n + n % 2) % 6]
        yield n % 2, n, f'the "{first} was here {n}', f"there was a {second}"


def _mrpc(folder):
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    lines = [f"{label}\t{n}\t{n + 1}\t{a}\t{b}\n" for label, n, a, b in _pairs(0, 48)]
    (folder / "msr_paraphrase_train.txt").write_text("\ufeff" + head + "".join(lines))
    (folder / "msr_paraphrase_test.txt").write_text(head + lines[0])
    (folder / "mrpc_dev_ids.tsv").write_text("".join(f"{n}\t{n + 1}\n" for n in range(0, 48, 3)))


def _sst2(folder):
    for name, start in (("train", 0), ("dev", 100)):
        lines = [f"{a} \t{label}\n" for label, _, a, _ in _pairs(start, 24)]
        (folder / "SST-2").mkdir(exist_ok=True)
        (folder / "SST-2" / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    (folder / "SST-2" / "test.tsv").write_text("index\tsentence\n0\tthe calm\n")


def _stsb(folder):
    columns = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
    for name, start in (("train", 0), ("dev", 100)):
        lines = [
            "\t".join([str(n), *["x"] * 6, a, b, f"{label * 4.5:.3f}"]) + "\n"
            for label, n, a, b in _pairs(start, 24)
        ]
        (folder / "STS-B").mkdir(exist_ok=True)
        text = columns.replace(" ", "\t") + "\n" + "".join(lines)
        (folder / "STS-B" / f"{name}.tsv").write_text(text)
    header = columns.rpartition(" ")[0].replace(" ", "\t")
    (folder / "STS-B" / "test.tsv").write_text(header + "\n" + "\t".join(["0", *"xxxxxxab"]) + "\n")


def _conll2003(folder):
    for name, start in (("train", 0), ("valid", 100), ("test", 200)):
        text = "-DOCSTART- -X- -X- O\n\n"
        for n in range(start, start + 24):
            text += (
                f"We PRP B-NP O\nsaw VBD B-VP O\n{WORDS[n % 6]} NNP B-NP B-LOC\n{n} CD I-NP O\n\n"
            )
        (folder / f"{name}.txt").write_text(text)


RAW = {"mrpc": _mrpc, "sst2": _sst2, "stsb": _stsb, "conll2003": _conll2003}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Gives the config of a dataset whose downloads are local files in its raw format."""
    folder = tmp_path / "raw"
    folder.mkdir()

    def local(self, urls):
        if isinstance(urls, dict):
            return {name: local(self, url) for name, url in urls.items()}
        name = urls.partition("?")[0].rpartition("/")[2].rpartition("%2F")[2]
        return folder / name if (folder / name).exists() else folder

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(tfds.download.DownloadManager, "download", local)
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", local)

    def make(name):
        RAW[name](folder)
        return override(
            finetune.get_config(name),
            {
                "cache_dir": str(tmp_path / "cache"),
                "init_from": "",
                "steps": 3,
                "epochs": None,
                "batch_size": 8,
                "data.seq_len": 48,
                "model.num_layers": 1,
                "model.d_model": 16,
                "model.num_heads": 2,
                "schedule.warmup_steps": 1,
                "evaluation.every": 0,
                "log.trackers": (),
                "mesh.data": 1,
            },
        )

    return make


@pytest.mark.parametrize("name", RAW)
def test_raw_files_become_rows_with_the_splits_of_the_dataset(raw, name, tmp_path):
    data = prepare_task(raw(name), tmp_path / "prepared")
    train_rows, held_out = (data.manifest["splits"][s]["examples"] for s in ("train", "validation"))
    assert (train_rows, held_out) == ((32, 16) if name == "mrpc" else (24, 24))
    labels = {
        "mrpc": ("not_equivalent", "equivalent"),
        "sst2": ("negative", "positive"),
        "conll2003": ("O", "B-LOC", "I-LOC"),
        "stsb": (),
    }[name]
    assert data.labels == labels


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "qqp", "qnli", "rte", "wnli"])
def test_the_second_label_is_that_of_which_glue_takes_f1(name):
    names = glue.Glue(config=name).info.features["label"].names
    assert (tuple(finetune.get_config(name).task.labels) or tuple(sorted(names))) == tuple(names)


@pytest.mark.parametrize("name", ["mrpc", pytest.param("conll2003", marks=pytest.mark.slow)])
def test_raw_files_are_fine_tuned_on_to_the_end(raw, name, tmp_path):
    config = raw(name)
    result = train(config, tmp_path / "run")
    metric = {"mrpc": "eval/f1", "conll2003": "eval/entity_f1"}[name]
    assert 0 <= result[metric] <= 1
    assert Path(os.environ["TFDS_DATA_DIR"]).exists()
    assert (tmp_path / "run" / "predictions.jsonl").exists()
