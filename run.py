"""Trains, evaluates and compares Transformers in which the softmax is the variable.

  python run.py train    --config=FILE[:ARG] --workdir=DIR    train or resume a run
  python run.py eval     --workdir=DIR                        evaluate the latest checkpoint
  python run.py eval     --workdir=DIR --data=FILE            evaluate on other labelled examples
  python run.py eval     --workdir=DIR --text=TEXT --data=FILE     perplexity of texts
  python run.py predict  --workdir=DIR --data=FILE --output=DIR    predictions of a task's run
  python run.py embed    --workdir=DIR --data=FILE --output=FILE.npy    embeddings of texts
  python run.py generate --workdir=DIR --prompt=TEXT ...      continuations of prompts
  python run.py diagnose --workdir=DIR                        rank, gradient, argmax, calibration
  python run.py sweep    --config=FILE[:ARG] --workdir=DIR    train all points of an ablation
  python run.py table    --config=FILE[:ARG] --workdir=DIR    train them and compare them in a table
  python run.py plan     --config=FILE[:ARG] --on=v5e-16      memory and time on a slice, without it
  python run.py status   --workdir=DIR                        finished, running, failed, missing
  python run.py launch   --config=FILE[:ARG] --workdir=DIR --on=v5e-16 --with=sky    on a cluster
  python run.py export   --workdir=DIR --output=DIR           a checkpoint for transformers or peft
  python run.py gallery  --workdir=DIR                        a plot of every weighting

eval, predict, embed, generate and export also take --config=FILE --config.init_from=hf:FOLDER
instead of a workdir. Config keys are set by their dotted name: --config.model.d_model=256
--print_config prints all config keys with their values and runs nothing. COMMAND -h prints the
flags of a command, with --config=FILE also the config keys; --version the versions of packages.
"""

import functools
import sys
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from lm.config import Config, flatten, to_dict
from lm.errors import UserError
from lm.experiment import command_line
from lm.experiment.command_line import Command
from lm.experiment.processes import run_command

if TYPE_CHECKING:
    from etils import epath

_CONFIG = config_flags.DEFINE_config_file("config", None, "experiment: FILE[:ARG]")
_CONFIG_FLAG: Any = flags.FLAGS["config"]
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run, ablation or plots")
_OUTPUT = flags.DEFINE_string("output", None, "new folder for the output; of embed a new file")
_DATA = flags.DEFINE_multi_string("data", [], "file, pattern or source of data; may be repeated")
_TEXT = flags.DEFINE_multi_string("text", [], "a text; may be repeated")
_STEP = flags.DEFINE_integer("step", None, "step of the checkpoint; default: the latest", 0)
_CACHE_DIR = flags.DEFINE_string("cache_dir", "", "folder of prepared data and compiled programs")
_STRIDE = flags.DEFINE_integer(
    "stride", None, "tokens between windows of perplexity; default: their length", 1
)
_POOLING = flags.DEFINE_string(
    "pooling", "mean", "of hidden states: mean, first, last, max or pooler"
)
_NORMALIZE = flags.DEFINE_bool("normalize", False, "scale embeddings to length 1")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "text to continue; may be repeated")
_APPLY_CHAT_TEMPLATE = flags.DEFINE_bool(
    "apply_chat_template", False, "prompts are user messages, formatted by config.task.template"
)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "tokens to generate, at most", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "of sampling; 0 is greedy", 0.0)
_TOP_K = flags.DEFINE_integer("top_k", 0, "sample among the k likeliest tokens; 0 among all", 0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "sample among the top tokens that sum to p", 0.0, 1.0)
_MIN_P = flags.DEFINE_float("min_p", 0.0, "least share of the top probability", 0.0, 1.0)
_SEED = flags.DEFINE_integer("seed", 0, "of sampling", 0, 2**31 - 1)
_STOP_STRINGS = flags.DEFINE_multi_string(
    "stop_strings", [], "text before which generation stops; may be repeated"
)
_NUM_BEAMS = flags.DEFINE_integer("num_beams", 1, "above 1, beam search instead of sampling", 1)
_LENGTH_PENALTY = flags.DEFINE_float(
    "length_penalty", 0.0, "of beam search; higher values prefer longer texts", 0.0
)
_NUM_CONTEXTS = flags.DEFINE_integer("num_contexts", 512, "held-out contexts to measure", 2)
_ADAPTER = flags.DEFINE_bool("adapter", False, "export only the adapter, for peft")
_SEEDS = flags.DEFINE_integer("seeds", None, "number of seeds of the ablation; default: all", 1)
_ON = flags.DEFINE_string("on", None, "slice: v5e-16, v5p-128, h100-8, cpu-8, ...")
_MESH = flags.DEFINE_enum(
    "mesh", "config", ("config", "search"), "mesh to plan: the config's, or the best of all"
)
_SHARE = flags.DEFINE_bool("share", False, "share the workdir with other commands that do so")
_WITH = flags.DEFINE_string(
    "with", "print", "what starts the workers: sky, xpk, slurm, gcloud, print"
)
_WORKERS = flags.DEFINE_integer("workers", 1, "that share the points of a sweep", 1, 1000)
_SPOT = flags.DEFINE_bool("spot", False, "workers may be preempted, at a lower price")
_COMMAND = flags.DEFINE_string(
    "command", None, "of workers: train, sweep or table; default: sweep if the config has sweep()"
)
_IMAGE = flags.DEFINE_string("image", None, "container image with the project in it, for xpk")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "write the files of launch and submit nothing")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of N processes")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "N; default: as the cluster says", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "of this one, from 0 to N - 1", 0)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "print the config and run nothing")


def train() -> int:
    """Trains the config in the workdir, or resumes it, and prints the held-out result."""
    from lm.experiment.continual.run_experiment import train_and_report

    print("\n".join(train_and_report(_config(), _workdir(), wait=_SHARE.value)))
    return 0


def evaluate() -> int:
    """Evaluates a checkpoint on its held-out data, other labelled examples (--data), texts (--text,
    --data) or config.prompt.
    """
    from lm.experiment.checkpoint_commands import run_eval

    given = {"texts": _TEXT.value, "data": _DATA.value, "stride": _STRIDE.value}
    lines = run_eval(_restored, _WORKDIR.value, **given, folder=_folder(_OUTPUT.value))
    print("\n".join(lines))
    return 0


def predict() -> int:
    """Writes the predictions of a task's run for examples of --data, with or without labels."""
    from lm.experiment.checkpoint_commands import run_predict

    tokens = _MAX_NEW_TOKENS.value if _MAX_NEW_TOKENS.present else None
    print("\n".join(run_predict(_restored, _DATA.value, _folder(_OUTPUT.value), tokens)))
    return 0


def embed() -> int:
    """Writes an embedding of each text: pooled hidden states of the last layer."""
    from lm.experiment.checkpoint_commands import run_embed

    open_run = functools.partial(_restored, headless=True)
    given = {"texts": _TEXT.value, "data": _DATA.value}
    options = {"pooling": _POOLING.value, "normalize": _NORMALIZE.value}
    print(run_embed(open_run, _folder(_OUTPUT.value), **given, **options))
    return 0


def generate() -> int:
    """Generates a continuation of every prompt; the first is streamed."""
    from lm.generation.generate_command import Request, SamplingParams, generate_texts

    sampled: Any = (_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P)
    given = [flag.name for flag in (*sampled, _SEED) if flag.present]
    if _NUM_BEAMS.value > 1 and given:
        raise UserError(f"--num_beams={_NUM_BEAMS.value} does not sample; leave out --{given[0]}")
    request = Request(
        prompts=_PROMPT.value,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        stop_strings=_STOP_STRINGS.value,
        sampling=SamplingParams(**{flag.name: flag.value for flag in sampled}),
        seed=_SEED.value,
        num_beams=_NUM_BEAMS.value,
        length_penalty=_LENGTH_PENALTY.value,
    )
    pieces, speed = generate_texts(_restored(), request, chat=_APPLY_CHAT_TEMPLATE.value)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(speed, file=sys.stderr)
    return 0


def diagnose() -> int:
    """Measures the output softmax of a checkpoint; writes diagnose.json and diagnose.png."""
    from lm.experiment.checkpoint_commands import run_diagnose

    print("\n".join(run_diagnose(_restored, _NUM_CONTEXTS.value, _workdir())))
    return 0


def sweep() -> int:
    """Trains the points of an ablation that are not finished."""
    from lm.experiment.ablation import train_points

    points, _ = _ablation()
    return 1 if train_points(points, _SHARE.value) else 0


def table() -> int:
    """Trains the points that are not finished, prints their table, and writes table.md, table.csv
    and table.png.
    """
    from lm.experiment.ablation import report_tables, train_points

    points, metrics = _ablation()
    failed = train_points(points, _SHARE.value)
    print(report_tables(points, _config(), metrics, _workdir()))
    return 1 if failed else 0


def plan() -> int:
    """Compiles a config for a slice that need not be there, and prints what its steps take of each
    device and how fast they can be at best.
    """
    from lm.experiment.plan.command import plan_file, plan_meshes

    if not _ON.value:
        raise UserError("plan needs --on=SLICE, such as v5e-16, v5p-32, h100-8 or cpu-8")
    config, name, on = _config(), _CONFIG_FLAG.config_filename, _ON.value
    if _MESH.value == "search":
        lines = plan_meshes(config, name, on)
    else:
        lines = plan_file(config, name, on, _SEEDS.value, _CONFIG_FLAG.override_values)
    for line in lines:
        print(line, flush=True)
    return 0


def status() -> int:
    """Tells of a run, or of each run of an ablation, whether it is finished, running (where, and at
    which step), interrupted, failed or missing; reads the folder alone.
    """
    from lm.experiment.status import describe_status

    print("\n".join(describe_status(_workdir())))
    return 0


def launch() -> int:
    """Starts train, sweep or table on a cluster: writes what the engine --with takes, and submits
    it where the engine's program is installed.
    """
    from lm.experiment.launch.command import Request, check_config, make_job, submit

    if _CONFIG.value is None or not _WORKDIR.value or not _ON.value:
        raise UserError("launch needs --config=FILE[:ARG], --workdir=DIR and --on=SLICE")
    given = [x for x in sys.argv[2:] if x.lstrip("-").startswith(("config=", "config.", "seeds="))]
    request = Request(
        engine=_WITH.value,
        arguments=given,
        config=_CONFIG_FLAG.config_filename,
        workdir=str(_workdir()),
        on=_ON.value,
        workers=_WORKERS.value,
        spot=_SPOT.value,
        image=_IMAGE.value,
        command=_COMMAND.value,
    )
    job = make_job(request)
    if job.arguments[0] == "train":
        check_config(_config())
    else:
        _ablation()  # checks the config of every point
    print("\n".join(submit(job, _WITH.value, _OUTPUT.value, dry_run=_DRY_RUN.value)))
    return 0


def export() -> int:
    """Writes a checkpoint as a folder for transformers, with adapters merged, or only the adapter
    for peft.
    """
    from lm.checkpoints.export import export

    if not _OUTPUT.value:
        raise UserError("export needs --output=DIR, a new folder for the checkpoint")
    print(f"written: {export(_restored(), _OUTPUT.value, adapter=_ADAPTER.value)}")
    return 0


def gallery() -> int:
    """Plots every weighting in gallery.png."""
    from lm.softmax.gallery import draw

    path = _workdir() / "gallery.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path)
    print(f"written: {path}")
    return 0


def _config() -> Config:
    """The config, completed from the checkpoint and the adapter that it names."""
    from lm.checkpoints.resolve import resolve_init

    if _CONFIG.value is None:
        raise UserError(f"{sys.argv[1]} needs --config=FILE[:ARG], such as configs/clm.py:tiny")
    return resolve_init(_CONFIG.value, _CONFIG_FLAG.override_values)


def _ablation() -> tuple[Any, Any]:
    """The points of the config file's ablation, and the metrics of its tables."""
    from lm.experiment.ablation import load_ablation, make_points

    config = _config()
    path, _, arg = _CONFIG_FLAG.config_filename.partition(":")
    ablation = load_ablation(path, arg or None, _SEEDS.value, _CONFIG_FLAG.override_values)
    return make_points(config, ablation, _workdir()), ablation.metrics


def _restored(headless: bool = False) -> Any:
    """The checkpoint of the workdir, or without one that of the config's init_from, which may lack
    its head where `headless`.
    """
    from lm.checkpoints.restore import open_model

    config = None if _CONFIG.value is None else _config()
    pretrained = not _WORKDIR.value and config is not None and config.init_from
    workdir = None if pretrained else _workdir()
    return open_model(workdir, config, _STEP.value, headless=headless, cache=_CACHE_DIR.value)


def _workdir() -> "epath.Path":
    folder = _folder(_WORKDIR.value)
    if folder is None:
        raise UserError(f"{sys.argv[1]} needs --workdir=DIR, a folder for what it writes")
    return folder


def _folder(name: str | None) -> "epath.Path | None":
    """The folder of a flag; None where it was not given."""
    from etils import epath

    scheme, bucket, _ = (name or "").partition("://")
    if bucket and scheme not in ("gs", "s3"):
        raise UserError(
            f"{name} is not a folder; give one of this machine, or of a bucket, as "
            "gs://BUCKET/NAME or s3://BUCKET/NAME"
        )
    return epath.Path(name).expanduser() if name else None


# Each command and the flags that it reads.
_HOSTS = "coordinator num_processes process_id "
_RUN = "config workdir cache_dir step print_config "
_ASK = _RUN + _HOSTS
COMMANDS = {
    "train": Command(train, "config workdir share print_config " + _HOSTS),
    "eval": Command(evaluate, _ASK + "data text stride output"),
    "predict": Command(predict, _ASK + "data output max_new_tokens"),
    "embed": Command(embed, _ASK + "data text output pooling normalize"),
    "generate": Command(
        generate,
        _ASK + "prompt apply_chat_template max_new_tokens temperature top_k top_p min_p seed "
        "stop_strings num_beams length_penalty",
    ),
    "diagnose": Command(diagnose, _ASK + "num_contexts"),
    "sweep": Command(sweep, "config workdir seeds share print_config " + _HOSTS),
    "table": Command(table, "config workdir seeds share print_config " + _HOSTS),
    "plan": Command(plan, "config on mesh seeds print_config"),
    "status": Command(status, "workdir", computes=False),
    "launch": Command(
        launch,
        "config workdir with on workers spot command image output dry_run seeds print_config",
        computes=False,
    ),
    "export": Command(export, _RUN + "output adapter"),
    "gallery": Command(gallery, "workdir"),
}


def main(argv: list[str]) -> int:
    """Runs a command. A mistake of the user is one line on stderr and status 2, a failure of the
    machine one line and status 1.
    """
    own = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(command_line.help_text(str(__doc__), own, COMMANDS))
        return 0
    if argv[1] == "--version":
        print("\n".join(command_line.version_lines()))
        return 0
    try:
        return _run(argv, own)
    except BaseException as error:
        return command_line.report(error)


def _run(argv: list[str], own: Any) -> int:
    command = command_line.find_command(argv[1], COMMANDS)
    if {"-h", "--help"} & set(argv[2:]):
        about = f"{argv[1]}: {command.run.__doc__}\n"
        print(command_line.help_text(about, own, COMMANDS, argv[1]))
        print("\n".join(command_line.config_help(argv)), end="")
        return 0
    command_line.parse(argv[:1] + argv[2:])
    command_line.check_flags(argv[1], own, COMMANDS)
    if _PRINT_CONFIG.value:
        for key, value in flatten(to_dict(_config())).items():
            print(f"{key} = {value!r}")
        return 0
    values = {flag.name: flag.value for flag in own}
    return run_command(argv[1], command, values, _config, command_line.report)


def cli() -> int:
    """The console script softmax-lab."""
    return main(sys.argv)


if __name__ == "__main__":
    sys.exit(cli())
