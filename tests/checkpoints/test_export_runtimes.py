"""Small trained models by other runtimes: their numbers are ours, and their labels."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from experiments.export_certificates import (
    BERT,
    KINDS,
    SHOWN_HEADS,
    SHOWN_WEIGHTINGS,
    measure,
    with_random_weights,
    write_examples,
)
from experiments.export_certificates import config_of as small_config
from lm.checkpoints.export.certificate import TOLERANCE
from lm.checkpoints.export.command import export
from lm.checkpoints.hf import with_checkpoint_model
from lm.checkpoints.layer_layout import named_leaves
from lm.checkpoints.pretrained import open_pretrained
from lm.checkpoints.restore import restore
from lm.errors import UserError
from lm.evaluation.predict import predict
from lm.experiment.train import train

pytestmark = pytest.mark.slow
SHOWN = [(weighting, "softmax") for weighting in SHOWN_WEIGHTINGS]
SHOWN += [("softmax", head) for head in SHOWN_HEADS[1:]]
LLAMA = {
    "model.norm": "rmsnorm",
    "model.bias": False,
    "model.activation": "swiglu",
    "model.position_embedding": "rotary",
}
PACKAGES = {
    "stablehlo": (),
    "onnx": ("onnx", "onnxruntime"),
    "litert": ("litert_converter", "ai_edge_litert"),
}
TEXTS = ["a fine film by Ada", "a dull film by Ben", "poor", "great and lovely"]
SENTENCES = ["Ada went to Rome", "Finn went to Lima", "Cairo"]
QUESTIONS = [("Where?", f"{name} went to {place} by train.") for name, place in
             (("Ada", "Oslo"), ("Eve", "Cairo"), ("Zed", "Rome"))]  # fmt: skip


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    write_examples(folder)
    return folder


def available():
    def there(packages):
        return all(pytest.importorskip(name) for name in packages)

    return tuple(name for name, packages in PACKAGES.items() if there(packages))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting, head", SHOWN)
def test_every_runtime_is_certified(kind, weighting, head, examples, cache):
    keys = {"attention.weighting": weighting, "output.head": head, "cache_dir": str(cache)}
    for form, found in measure(kind, keys, available(), examples):
        if kind == "qa" and head != "softmax":  # which cannot point at positions
            assert "points at places of a row, which head" in found["refused"]
            continue
        assert found.get("passed"), (form, found)
        assert found["max_difference"] < TOLERANCE and found["argmax_agreement"] == 1.0


@pytest.mark.parametrize(
    "form, loop", [("onnx", "gather by several axes"), ("litert", "tfl.while")]
)
def test_a_head_of_whole_rows_is_refused_by_name(form, loop, examples, cache):
    for package in PACKAGES[form]:
        pytest.importorskip(package)
    keys = {"output.head": "crf", "cache_dir": str(cache)}
    ((_, found),) = measure("tagger", keys, (form,), examples)
    assert loop in found["refused"] and "\n" not in found["refused"]


def trained(kind, examples, cache, folder, **keys):
    """A run that has learned its examples, and its folder for transformers, certified."""
    keys = BERT | {"steps": 60, "model.scan": False, "cache_dir": str(cache)} | keys
    config = small_config(kind, examples, **keys)
    train(config, folder / "run")
    run = restore(folder / "run")
    lines, passed = export(run, "hf", str(folder / "hf"))
    assert passed, lines
    return run, str(folder / "hf")


def predicted(run, path, rows):
    path.write_text("\n".join(rows) + "\n")
    return [each["predicted"] for each in predict(run, [f"files:{path}"]).predictions]


def test_a_pipeline_gives_texts_the_labels_of_predict(examples, cache, tmp_path):
    transformers = pytest.importorskip("transformers")
    run, folder = trained(
        "classifier", examples, cache, tmp_path, **{"task.pooling": "pooler_tanh"}
    )
    ours = predicted(run, tmp_path / "texts.csv", ["text", *TEXTS])
    theirs = transformers.pipeline("text-classification", model=folder)(TEXTS)
    assert [each["label"] for each in theirs] == ours and len(set(ours)) == 2


def test_a_pipeline_gives_words_the_tags_of_predict(examples, cache, tmp_path):
    transformers = pytest.importorskip("transformers")
    run, folder = trained("tagger", examples, cache, tmp_path)
    rows = [f"{word} O" if word else "" for text in SENTENCES for word in [*text.split(), ""]]
    ours = predicted(run, tmp_path / "words.conll", rows)
    tag = transformers.pipeline("token-classification", model=folder, ignore_labels=[])
    for text, tags in zip(SENTENCES, ours, strict=True):
        starts = {each["start"]: each["entity"] for each in tag(text)}
        firsts = itertools.accumulate((len(word) + 1 for word in text.split()[:-1]), initial=0)
        assert [starts[first] for first in firsts] == tags
    assert "B-PER" in str(ours) and "B-LOC" in str(ours)


def test_a_pipeline_gives_questions_the_answers_of_predict(examples, cache, tmp_path):
    transformers = pytest.importorskip("transformers")
    run, folder = trained("qa", examples, cache, tmp_path, **{"output.bias": None})
    rows = [json.dumps({"question": q, "context": c, "answers": None}) for q, c in QUESTIONS]
    ours = predicted(run, tmp_path / "asked.jsonl", rows)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    for (question, context), answer in zip(QUESTIONS, ours, strict=True):
        given = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        offsets = given.pop("offset_mapping")[0].numpy()
        of_context = np.array(given.sequence_ids(0), object) == 1
        found = model(**given)
        scores = (found.start_logits[0, :, None] + found.end_logits[0]).detach().numpy()
        allowed = np.triu(np.outer(of_context, of_context))
        first, last = np.unravel_index(np.where(allowed, scores, -1e9).argmax(), scores.shape)
        assert context[offsets[first, 0] : offsets[last, 1]] == answer


def test_a_gguf_file_is_certified_and_read_here_as_the_same_model(examples, cache, tmp_path):
    for package in ("gguf", "transformers"):
        pytest.importorskip(package)
    config = small_config("decoder", examples, **LLAMA, cache_dir=str(cache))
    train(config, tmp_path / "run")
    run = restore(tmp_path / "run")
    lines, passed = export(run, "gguf", str(tmp_path / "out"))
    assert passed, lines
    init = {"init_from": f"hf:{tmp_path / 'out' / 'model.gguf'}", "cache_dir": str(cache)}
    opened = open_pretrained(
        with_checkpoint_model(small_config("decoder", examples, **LLAMA, **init))
    )
    for name, leaf in named_leaves(run.params).items():
        np.testing.assert_array_equal(named_leaves(opened.params)[name], leaf)


def test_a_tokenizer_that_llama_cpp_has_not_is_refused_by_name(examples, cache, tmp_path):
    pytest.importorskip("gguf")
    bpe = {"data.tokenizer": "bpe", "data.vocab_size": 300, "cache_dir": str(cache)}
    config = small_config("decoder", examples, **LLAMA, **bpe)
    with pytest.raises(UserError, match="gguf has no form here for the tokenizer bpe, only for"):
        export(with_random_weights(config), "gguf", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_that_were_merged_are_those_of_the_run(examples, cache, tmp_path):
    pytest.importorskip("transformers")
    keys = {"model.position_embedding": "learned", "model.activation": "gelu", "output.tied": True}
    base = small_config("decoder", examples, **keys, cache_dir=str(cache))
    train(base, tmp_path / "base")
    method = {"init_from": str(tmp_path / "base"), "finetuning.method": "lora"}
    tuned = small_config("decoder", examples, **keys, **method, cache_dir=str(cache))
    train(tuned, tmp_path / "lora")
    lines, passed = export(restore(tmp_path / "lora"), "hf", str(tmp_path / "hf"))
    assert passed and pathlib.Path(tmp_path / "hf" / "certificate.json").exists(), lines
