"""A mistake on the command line is one clear line and status 2, and changes nothing on disk."""

import subprocess
import sys

import pytest

from lm.config import declared
from lm.experiment.config_help import key_comments
from tests.commands import ROOT, run

CLM = "--config=configs/clm.py:tiny"

SEARCH = ("--search=optuna", "--trials=2", "--draw=steps=1:9")
MISTAKES = {
    "a typo in a knob": (
        ["train", CLM, "--config.model.d_modl=64", "--workdir=W"],
        "--config.model.d_modl is not a config key; did you mean config.model.d_model?",
    ),
    "a typo in a command": (["trian", CLM], "did you mean train?"),
    "a typo in a flag": (["train", CLM, "--wrkdir=W"], "Did you mean: workdir"),
    "a word too many": (["train", CLM, "now", "--workdir=W"], "'now' is not a flag"),
    "no config": (["train", "--workdir=W"], "needs --config=FILE[:ARG]"),
    "an ablation without a config": (["sweep", "--workdir=W"], "sweep needs --config=FILE[:ARG]"),
    "a search without a config": (
        ["sweep", "--workdir=W", *SEARCH],
        "sweep needs --config=FILE[:ARG]",
    ),
    "workers without a config": (["sweep", "--workdir=W", "--jobs=2"], "needs --config=FILE[:ARG]"),
    "a search of replicas": (
        ["sweep", CLM, "--workdir=W", *SEARCH, "--replicate=vmap"],
        "--search has no use for --replicate; leave it out",
    ),
    "no workdir": (["train", CLM], "needs --workdir=DIR"),
    "a config that is not there": (
        ["train", "--config=configs/clmm.py", "--workdir=W"],
        "no config configs/clmm.py; did you mean configs/clm.py?",
    ),
    "a size that is not there": (
        ["train", "--config=configs/clm.py:large", "--workdir=W"],
        "has tiny, small, base, xl, not 'large'",
    ),
    "a bucket of another kind": (
        ["train", CLM, "--workdir=foo://bucket/run"],
        "foo://bucket/run is not a folder; give one of this machine, or of a bucket",
    ),
    "a value of the wrong type": (
        ["train", CLM, "--config.steps=many", "--workdir=W"],
        "--config.steps=many",
    ),
    "a variant that is not there": (
        ["train", CLM, "--config.attention.weighting=entmax51", "--workdir=W"],
        "did you mean entmax15?",
    ),
    "an impossible combination": (
        ["train", CLM, "--config.model.num_heads=3", "--workdir=W"],
        "128 is not divisible by config.model.num_heads = 3; use 126 or 129",
    ),
    "a missing file": (
        ["train", CLM, "--config.data.source=files:W/*.txt", "--workdir=W"],
        "matches no file",
    ),
    "a batch that devices do not divide": (
        ["train", CLM, "--config.batch_size=18", "--workdir=W"],
        "config.batch_size = 18 is not divisible by 8 devices (data x fsdp); use 16 or 24",
    ),
    "a workdir without a run": (["eval", "--workdir=W"], "so it is no run's folder"),
    "no file to predict": (
        ["predict", "--workdir=W"],
        "predict needs --data=FILE and --output=DIR",
    ),
    "no prompt": (["generate", "--workdir=W"], "generate needs --prompt=TEXT"),
    "a search that draws": (
        ["generate", "--workdir=W", "--prompt=x", "--num_beams=4", "--top_k=3"],
        "--num_beams=4 does not sample; leave out --top_k",
    ),
    "a penalty without a search": (
        ["generate", "--workdir=W", "--prompt=x", "--length_penalty=1"],
        "--length_penalty needs beam search; add --num_beams=4",
    ),
    "a temperature that is no number": (
        ["generate", "--temperature=nan", "--prompt=x", "--workdir=W"],
        "temperature = nan must be a number from 0 to 3.4e+38",
    ),
    "a share that is no number": (
        ["generate", "--min_p=nan", "--prompt=x", "--workdir=W"],
        "min_p = nan must be a number from 0 to 1",
    ),
    "a penalty that is no number": (
        ["generate", "--length_penalty=nan", "--num_beams=2", "--prompt=x", "--workdir=W"],
        "2 beams with length penalty nan: use at least 1 and at least 0",
    ),
    "an ablation without rows": (["table", CLM, "--workdir=W"], "has no sweep"),
    "a checkpoint that is none of transformers": (
        ["generate", CLM, "--config.init_from=W", "--prompt=x"],
        "is a run's folder; give it as --workdir, or a checkpoint of transformers as hf:FOLDER",
    ),
    "more seeds than there are": (
        ["table", "--config=configs/attention.py", "--seeds=9", "--workdir=W"],
        "--seeds=9 is more than the SEEDS of configs/attention.py: (0, 1, 2, 3, 4)",
    ),
    "steps where epochs say how many": (
        ["train", "--config=configs/finetune.py:tiny", "--config.steps=4", "--workdir=W"],
        "config.steps = 4 is not used where config.epochs = 4.0 says how many",
    ),
    "a seed of twenty digits": (
        ["generate", "--seed=12345678901234567890", "--prompt=x", "--workdir=W"],
        "--seed=12345678901234567890: 12345678901234567890 is not an integer in the range",
    ),
    "a flag of another command": (
        ["train", CLM, "--num_beams=3", "--workdir=W"],
        "train does not read --num_beams, which is a flag of generate; leave it out",
    ),
    "a config's key without a config": (
        ["eval", "--config.seed=3", "--workdir=W"],
        "--config.seed changes a config; give that too, as --config=FILE[:ARG]",
    ),
    "a config that is no Python file": (
        ["train", "--config=README.md", "--workdir=W"],
        "README.md is no Python file",
    ),
    "a knob that the ablation varies": (
        ["table", "--config=configs/attention.py", "--config.seed=3", "--workdir=W"],
        "--config.seed is what the ablation varies",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(mistake, tmp_path, cache):
    arguments, message = MISTAKES[mistake]
    workdir = tmp_path / "work"
    arguments = [a.replace("=W", f"={workdir}").replace(":W", f":{workdir}") for a in arguments]
    if CLM in arguments:
        arguments.append(f"--config.cache_dir={cache}")
    finished = run(*arguments)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"caf\xe9 au lait" * 9, "not UTF-8"), (b"short", "fewer than")],
)
def test_text_that_cannot_be_trained_on_is_one_line_and_status_2(content, message, tmp_path, cache):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_bytes(content + b"%d" % number if content else b"")
    finished = run(
        "train",
        CLM,
        f"--config.cache_dir={cache}",
        f"--config.data.source=files:{tmp_path}/*.txt",
        "--config.data.validation_fraction=0.5",
        f"--workdir={tmp_path / 'work'}",
    )
    assert finished.returncode == 2
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import nowhere_at_all", "own.py line 1: ModuleNotFoundError: No module named"),
        ("x = 1\ndef get_config(arg)\n    pass", "own.py line 2: SyntaxError: expected ':'"),
        ("def get_config(arg):\n    raise KeyError('mesh')", "own.py line 2: KeyError: mesh"),
        ("def get_config(arg):\n    raise SystemExit", "own.py line 2: SystemExit:"),
        ("raise RecursionError", "own.py line 1: RecursionError:"),
        ("get_config = None", "own.py has no get_config(arg) that returns a ConfigDict"),
        ("def get_config(arg):\n    return {}", "returns {}, which is no ConfigDict"),
        ("def get_config():\n    return 1", "get_config() takes 0 positional arguments"),
        (
            "from configs import clm\n\ndef get_config(arg):\n    return clm.missing",
            "module 'configs.clm' has no attribute 'missing'",
        ),
    ],
)
def test_a_mistake_in_a_config_is_one_line_in_its_own_words(content, message, tmp_path):
    (tmp_path / "own.py").write_text(content)
    finished = run("train", f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'work'}")
    assert finished.returncode == 2
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_what_is_no_config_is_said_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"steps": 3}')
    finished = run("eval", f"--workdir={tmp_path}")
    assert finished.returncode == 2
    assert "config.json holds no config: it has no seed" in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_help_names_every_command_and_flag():
    finished = run("--help")
    assert finished.returncode == 0
    for word in ("train", "eval", "generate", "diagnose", "sweep", "table", "--top_p", "--workdir"):
        assert word in finished.stdout


def test_help_of_a_command_names_its_own_flags_and_defaults():
    finished = run("generate", "-h")
    assert finished.returncode == 0
    assert "--max_new_tokens       tokens to generate, at most; default 256" in finished.stdout
    assert "--num_contexts" not in finished.stdout


def test_help_with_a_config_lists_its_keys_with_type_value_and_comment():
    finished = run("train", "-h", CLM)
    assert finished.returncode == 0
    assert (
        "  --config.steps=300  (int)\n      Optimizer updates in the whole run." in finished.stdout
    )
    missing = run("train", "-h", "--config=configs/clmm.py")
    assert missing.returncode == 2 and "did you mean configs/clm.py?" in missing.stderr


def test_every_config_key_has_a_comment():
    comments = key_comments()
    of_attention = ("encoder_attention.", "cross_attention.")
    assert [k for k in declared() if not (comments.get(k) or k.startswith(of_attention))] == []


def test_the_printed_config_has_every_key_and_what_the_command_line_set():
    finished = run("train", CLM, "--config.model.d_model=96", "--print_config")
    assert finished.returncode == 0
    assert "model.d_model = 96\n" in finished.stdout
    assert "seed = 0\n" in finished.stdout


def test_the_version_names_what_decides_a_runs_numbers():
    finished = run("--version")
    assert finished.returncode == 0
    for name in ("softmax-laboratory", "python", "jax", "flax", "optax"):
        assert f"{name} " in finished.stdout


def test_reading_the_flags_imports_no_jax():
    code = "import run, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
