"""The flags of the command line, and what they name: folders, the config, points, a checkpoint.

run.py says which command reads which.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from lm.config import Config
from lm.errors import UserError
from lm.experiment import serving_flags

if TYPE_CHECKING:
    from etils import epath

    from lm.checkpoints.restored import Restored
    from lm.experiment.ablation import Ablation, Variation, View
    from lm.experiment.ablation.points import Point
    from lm.experiment.point_list import Source
    from lm.experiment.protocol.stages import Trained

CONFIG = config_flags.DEFINE_config_file("config", None, "experiment: FILE[:ARG]")
CONFIG_FLAG: Any = flags.FLAGS["config"]
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run, ablation or plots")
OUTPUT = flags.DEFINE_string("output", None, "new folder for the output; of embed a new file")
DATA = flags.DEFINE_multi_string("data", [], "file, pattern or source of data; may be repeated")
TEXT = flags.DEFINE_multi_string("text", [], "a text; may be repeated")
STEP = flags.DEFINE_integer("step", None, "step of the checkpoint; default: the latest", 0)
COMPRESS = flags.DEFINE_enum(
    "compress", None, ("int8", "int4", "int8_dynamic"), "weights to compress the checkpoint's to"
)
CACHE_DIR = flags.DEFINE_string("cache_dir", "", "folder of prepared data and compiled programs")
STRIDE = flags.DEFINE_integer(
    "stride", None, "tokens between windows of perplexity; default: their length", 1
)
POOLING = flags.DEFINE_string(
    "pooling", "mean", "of hidden states: mean, first, last, max or pooler"
)
NORMALIZE = flags.DEFINE_bool("normalize", False, "scale embeddings to length 1")
PROMPT = flags.DEFINE_multi_string("prompt", [], "text to continue or to explain; may be repeated")
TARGET = flags.DEFINE_string(
    "target", None, "label or next token to explain; default: the likeliest"
)
REPLACEMENT = flags.DEFINE_enum(
    "replacement",
    "padding",
    ("padding", "mask"),
    "what takes the place of a token that is left out",
)
APPLY_CHAT_TEMPLATE = flags.DEFINE_bool(
    "apply_chat_template", False, "prompts are user messages, formatted by config.task.template"
)
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "tokens to generate, at most", 1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "of sampling; 0 is greedy", 0.0)
TOP_K = flags.DEFINE_integer("top_k", 0, "sample among the k likeliest tokens; 0 among all", 0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "sample among the top tokens that sum to p", 0.0, 1.0)
MIN_P = flags.DEFINE_float("min_p", 0.0, "least share of the top probability", 0.0, 1.0)
SEED = flags.DEFINE_integer("seed", 0, "of sampling", 0, 2**31 - 1)
STOP_STRINGS = flags.DEFINE_multi_string(
    "stop_strings", [], "text before which generation stops; may be repeated"
)
NUM_BEAMS = flags.DEFINE_integer("num_beams", 1, "above 1, beam search instead of sampling", 1)
LENGTH_PENALTY = flags.DEFINE_float(
    "length_penalty", 0.0, "of beam search; higher values prefer longer texts", 0.0
)
ASSISTANT_MODEL = flags.DEFINE_string(
    "assistant_model", None, "workdir of a smaller model, which drafts tokens for the large one"
)
NUM_ASSISTANT_TOKENS = flags.DEFINE_integer(
    "num_assistant_tokens", 4, "tokens that --assistant_model drafts at a time", 1
)
NUM_CONTEXTS = flags.DEFINE_integer("num_contexts", 512, "held-out contexts to measure", 2)
ADAPTER = flags.DEFINE_bool("adapter", False, "export only the adapter, for peft")
CERTIFY = flags.DEFINE_bool(
    "certify", True, "run what was exported by its own runtime and compare it with the run"
)
SEEDS = flags.DEFINE_integer("seeds", None, "number of seeds of the ablation; default: all", 1)
VARY = flags.DEFINE_multi_string(
    "vary", [], "KEY=A,B: rows for each value of a config key; may be repeated, which makes a grid"
)
DRAW = flags.DEFINE_multi_string(
    "draw", [], "KEY=LOW:HIGH, KEY=log:LOW:HIGH or KEY={A,B}: values to draw; may be repeated"
)
TRIALS = flags.DEFINE_integer("trials", None, "number of draws", 1)
TUNE = flags.DEFINE_multi_string(
    "tune", [], "KEY=A,B: values to try for each row before the table; may be repeated"
)
SEARCH = flags.DEFINE_enum(
    "search", None, ("optuna",), "what suggests each draw by the results of those before it"
)
STUDY = flags.DEFINE_string(
    "study", None, "file or database URL of the search's study; default: in the workdir"
)
BASELINE = flags.DEFINE_string(
    "baseline", None, "label of the row that others are compared with; default: the first"
)
ROWS = flags.DEFINE_multi_string(
    "rows", [], "pattern of labels of rows to show, such as *max*; may be repeated"
)
AGAINST = flags.DEFINE_list(
    "against", [], "config keys; rows are compared with the first row that agrees in them"
)
MARGIN = flags.DEFINE_float(
    "margin", None, "difference that does not matter, for tests of equivalence"
)
FORMAT = flags.DEFINE_list(
    "format",
    None,
    "of a table: md, csv, png, latex, html, default: the first three; of export: hf (the default), "
    "gguf, stablehlo, onnx, litert",
)
ON = flags.DEFINE_string("on", None, "slice: v5e-16, v5p-128, h100-8, cpu-8, ...")
MESH = flags.DEFINE_enum(
    "mesh", "config", ("config", "search"), "mesh to plan: the config's, or the best of all"
)
SHARE = flags.DEFINE_bool("share", False, "share the workdir with other commands that do so")
RETRY = flags.DEFINE_bool("retry", False, "train points again that failed before")
PROTOCOL = flags.DEFINE_enum(
    "protocol",
    "all",
    ("all", "screen", "confirm"),
    "all rows, all rows with the few seeds of a screening, or the best of those with fresh seeds",
)
SHORTLIST = flags.DEFINE_integer("shortlist", 6, "rows to confirm, besides baselines", 1)
MATCH = flags.DEFINE_enum(
    "match",
    None,
    ("flops", "parameters", "memory", "time"),
    "make rows equal to the baseline in this, by their steps or width",
)
JOBS = flags.DEFINE_integer(
    "jobs", 1, "workers on this machine, each with its share of the cores or accelerators", 1
)
EXECUTOR = flags.DEFINE_enum(
    "executor", "local", ("local", "ray"), "what trains points: this machine, or tasks of Ray"
)
REPLICAS = flags.DEFINE_integer("replicas", 1, "seeds of a row to train in one program", 1)
REPLICATE = flags.DEFINE_enum(
    "replicate",
    "map",
    ("map", "vmap"),
    "replicas one after the other, with the numbers of separate runs, or all at once",
)
WITH = flags.DEFINE_string(
    "with", "print", "what starts the workers: sky, xpk, slurm, gcloud, print"
)
WORKERS = flags.DEFINE_integer("workers", 1, "that share the points of a sweep", 1, 1000)
SPOT = flags.DEFINE_bool("spot", False, "workers may be preempted, at a lower price")
COMMAND = flags.DEFINE_string(
    "command", None, "of workers: train, sweep or table; default: sweep if the config has sweep()"
)
IMAGE = flags.DEFINE_string("image", None, "container image with the project in it, for xpk")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "write the files of launch and submit nothing")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of N processes")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "N; default: as the cluster says", 1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "of this one, from 0 to N - 1", 0)
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "print the config and run nothing")

flags.adopt_module_key_flags(serving_flags)

# What does not choose the points of an ablation, and changes no config of theirs.
_INCIDENTAL = ("config", "workdir", "share", "retry", "jobs", "executor", "print_config")
_INCIDENTAL += ("baseline", "against", "margin", "rows", "format")
_INCIDENTAL += ("coordinator", "num_processes", "process_id")


def defined() -> list[Any]:
    """The flags of this file, in its order, and those of `serving_flags`."""
    return flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])


def given(names: str) -> list[str]:
    """Of the command line, the config with its keys, and the flags of these names, separated by
    spaces; as arguments of another command.
    """
    found = [x for x in sys.argv[2:] if x.lstrip("-").startswith(("config=", "config."))]
    for flag in defined():
        if flag.present and flag.name in names.split() and flag.name != "config":
            several = isinstance(flag.value, list)
            found += [f"--{flag.name}={x}" for x in flag.value] if several else [flag.serialize()]
    return found


def folder(name: str | None) -> "epath.Path | None":
    """The folder that a flag names; None where it was not given.

    Raises:
      UserError: where it is neither of this machine nor in a bucket.
    """
    from etils import epath

    scheme, bucket, _ = (name or "").partition("://")
    if bucket and scheme not in ("gs", "s3"):
        raise UserError(
            f"{name} is not a folder; give one of this machine, or of a bucket, as "
            "gs://BUCKET/NAME or s3://BUCKET/NAME"
        )
    return epath.Path(name).expanduser() if name else None


def workdir(default: str | None = None) -> "epath.Path":
    """The folder of --workdir, else the default; raises UserError where there is neither."""
    found = folder(WORKDIR.value or default)
    if found is None:
        raise UserError(f"{sys.argv[1]} needs --workdir=DIR, a folder for what it writes")
    return found


def load_config() -> Config:
    """The config, completed from the checkpoint and the adapter that it names."""
    from lm.checkpoints.resolve import resolve_init

    if CONFIG.value is None:
        raise UserError(f"{sys.argv[1]} needs --config=FILE[:ARG], such as configs/clm.py:tiny")
    return resolve_init(CONFIG.value, CONFIG_FLAG.override_values)


def variation() -> "Variation":
    """What the command line makes of the config file's ablation."""
    from lm.experiment.ablation import Variation

    return Variation(VARY.value, DRAW.value, TRIALS.value, SEEDS.value, TUNE.value)


def load_ablation(varied: "Variation | None" = None) -> "tuple[Config, Ablation]":
    """The config, and the ablation of its file, with what the command line makes of it or another
    variation.
    """
    from lm.experiment.ablation import load_ablation

    config, given = load_config(), CONFIG_FLAG.override_values
    path, _, arg = CONFIG_FLAG.config_filename.partition(":")
    return config, load_ablation(path, arg or None, varied or variation(), given)


def run_search() -> int:
    """Works on the search that the flags describe; how many trials have failed."""
    from lm.experiment.ablation.search import Search, run_search

    if not DRAW.value or not TRIALS.value:
        raise UserError(f"--search={SEARCH.value} needs --draw=KEY=LOW:HIGH and --trials=N")
    for flag in (RETRY, PROTOCOL, SHORTLIST, MATCH, TUNE, EXECUTOR, REPLICAS, REPLICATE):
        if flag.present:
            raise UserError(f"--search has no use for --{flag.name}; leave it out")
    once = dataclasses.replace(variation(), trials=1)  # to know its seeds, and to check the keys
    config, found = load_ablation(once)
    given = Search(config, found, DRAW.value, TRIALS.value, workdir(), STUDY.value, source())
    return run_search(given)


def train_ablation() -> "Trained":
    """Trains what is not finished of the ablation, as its flags say."""
    from lm.experiment.protocol.stages import How, train_ablation

    how = How(PROTOCOL.value, SHORTLIST.value, MATCH.value)
    return train_ablation(*load_ablation(), workdir(), how, _trainer(), source())


def _trainer() -> "Callable[..., list[Point]]":
    """What trains the points of each stage of an ablation."""
    from lm.experiment.ablation.ray_executor import train_by_ray
    from lm.experiment.ablation.sweep import failed_points, train_points
    from lm.experiment.replicas import Replication

    if JOBS.value > 1:  # whose workers have trained what they could
        return lambda points, **_: failed_points(points)
    replication = Replication(REPLICAS.value, REPLICATE.value)
    if EXECUTOR.value == "ray":
        if replication.number > 1:
            raise UserError(
                f"--executor=ray trains one run in each task, and --replicas={replication.number} "
                "several in one program; leave out one of them"
            )
        return functools.partial(train_by_ray, retry=RETRY.value)
    given = {"share": SHARE.value, "retry": RETRY.value, "replication": replication}
    return functools.partial(train_points, **given)


def train_by_workers(names: str) -> int:
    """Trains what is not finished of the ablation by workers of this machine, which are given the
    flags of these names; their exit status.
    """
    from lm.experiment.ablation import make_points
    from lm.experiment.workers import train_by_workers

    if EXECUTOR.value != "local":
        raise UserError(f"--jobs={JOBS.value} is of this machine; leave it out, or --executor")
    make_points(*load_ablation(), workdir())  # checks the config of every point
    return train_by_workers(JOBS.value, given(names))


def source() -> "Source":
    """The config file, and the flags that choose points or change their configs, as they would be
    given again.
    """
    from lm.experiment.point_list import Source

    own = " ".join(flag.name for flag in defined() if flag.name not in _INCIDENTAL)
    found = [x for x in given(own) if not x.lstrip("-").startswith("config=")]
    return Source(CONFIG_FLAG.config_filename, tuple(found))


def view() -> "View":
    """What --baseline, --against, --margin, --rows and --format show of an ablation."""
    from lm.experiment.ablation import View

    shown = tuple(ROWS.value), tuple(FORMAT.value or ("md", "csv", "png"))
    return View(BASELINE.value, *shown, tuple(AGAINST.value), MARGIN.value)


def serving() -> "dict[str, Any]":
    """The values of the flags of `serve` by name, and `name`, that of the workdir."""
    own = flags.FLAGS.get_key_flags_for_module(serving_flags)
    values: dict[str, Any] = {flag.name: flag.value for flag in (*own, POOLING, NORMALIZE)}
    named, adapters = folder(WORKDIR.value), folder(serving_flags.ADAPTERS.value)
    return values | {"adapters": adapters, "name": named and named.name}


def open_assistant() -> "Restored | None":
    """The newest checkpoint of --assistant_model; None where it was not given."""
    place = folder(ASSISTANT_MODEL.value)
    return None if place is None else open_adapter(place)


def open_adapter(place: "epath.Path") -> "Restored":
    """The newest checkpoint of another run, such as one whose adapter a server is to load."""
    from lm.checkpoints.restore import open_model

    return open_model(place, None, cache=CACHE_DIR.value)


def open_checkpoint(headless: bool = False) -> "Restored":
    """The checkpoint of the workdir, or without one that of the config's init_from, which may lack
    its head where `headless`.
    """
    from lm.checkpoints.restore import open_model

    config = None if CONFIG.value is None else load_config()
    pretrained = not WORKDIR.value and config is not None and config.init_from
    place = None if pretrained else workdir()
    how = {"headless": headless, "cache": CACHE_DIR.value, "compress": COMPRESS.value}
    return open_model(place, config, STEP.value, **how)
