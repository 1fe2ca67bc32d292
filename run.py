"""Trains, evaluates and compares Transformers in which the softmax is the variable.

  python run.py train    --config=FILE[:ARG] --workdir=DIR    train or resume a run
  python run.py eval     --workdir=DIR                        evaluate the latest checkpoint
  python run.py eval     --workdir=DIR --data=FILE            evaluate on other labelled examples
  python run.py eval     --workdir=DIR --text=TEXT --data=FILE     perplexity of texts
  python run.py predict  --workdir=DIR --data=FILE --output=DIR    predictions of a task's run
  python run.py embed    --workdir=DIR --data=FILE --output=FILE.npy    embeddings of texts
  python run.py generate --workdir=DIR --prompt=TEXT ...      continuations of prompts
  python run.py serve    --workdir=DIR --port=8000            answer over HTTP, as OpenAI's API does
  python run.py diagnose --workdir=DIR                        rank, gradient, argmax, calibration
  python run.py explain  --workdir=DIR --prompt=TEXT          which words decide, and what attends
  python run.py sweep    --config=FILE[:ARG] --workdir=DIR    train all points of an ablation
  python run.py table    --config=FILE[:ARG] --workdir=DIR    train them and compare them in a table
  python run.py table    --workdir=DIR --format=md,html       compare what is there; train nothing
  python run.py compare  DIR1 DIR2 ...                        rows of several workdirs in one table
  python run.py plan     --config=FILE[:ARG] --on=v5e-16      memory and time on a slice, without it
  python run.py status   --workdir=DIR                        finished, running, failed, missing
  python run.py launch   --config=FILE[:ARG] --workdir=DIR --on=v5e-16 --with=sky    on a cluster
  python run.py reproduce [NAME ... | all]                  published results, and ours beside them
  python run.py export   --workdir=DIR --output=DIR --format=onnx    for other runtimes, certified
  python run.py gallery  --workdir=DIR                        a plot of every weighting

eval, predict, embed, generate, explain, serve and export take --config=FILE
--config.init_from=hf:FOLDER instead of a workdir. Config keys are set by their dotted name:
--config.model.d_model=256. --print_config prints all config keys with their values and runs
nothing. COMMAND -h prints the flags of a command, with --config=FILE also the config keys;
--version the versions of packages.
"""

import functools
import sys
from typing import Any

from lm.config import flatten, to_dict
from lm.errors import UserError
from lm.experiment import command_line, flags, serving_flags
from lm.experiment.command_line import Command
from lm.experiment.processes import run_command


def train() -> int:
    """Trains the config in the workdir, or resumes it, and prints the held-out result."""
    from lm.experiment.continual.run_experiment import train_and_report

    print("\n".join(train_and_report(flags.load_config(), flags.workdir(), wait=flags.SHARE.value)))
    return 0


def evaluate() -> int:
    """Evaluates a checkpoint on its held-out data, other labelled examples (--data), texts (--text,
    --data) or config.prompt.
    """
    from lm.experiment.checkpoint_commands import run_eval

    given = {"texts": flags.TEXT.value, "data": flags.DATA.value, "stride": flags.STRIDE.value}
    given["folder"] = flags.folder(flags.OUTPUT.value)
    print("\n".join(run_eval(flags.open_checkpoint, flags.WORKDIR.value, **given)))
    return 0


def predict() -> int:
    """Writes the predictions of a task's run for examples of --data, with or without labels."""
    from lm.experiment.checkpoint_commands import run_predict

    tokens = flags.MAX_NEW_TOKENS.value if flags.MAX_NEW_TOKENS.present else None
    folder = flags.folder(flags.OUTPUT.value)
    print("\n".join(run_predict(flags.open_checkpoint, flags.DATA.value, folder, tokens)))
    return 0


def embed() -> int:
    """Writes an embedding of each text: pooled hidden states of the last layer."""
    from lm.experiment.checkpoint_commands import run_embed

    open_run = functools.partial(flags.open_checkpoint, headless=True)
    given = {"texts": flags.TEXT.value, "data": flags.DATA.value}
    options = {"pooling": flags.POOLING.value, "normalize": flags.NORMALIZE.value}
    print(run_embed(open_run, flags.folder(flags.OUTPUT.value), **given, **options))
    return 0


def generate() -> int:
    """Generates a continuation of every prompt; the first is streamed."""
    from lm.generation.generate_command import Request, SamplingParams, generate_texts

    sampled: Any = (flags.TEMPERATURE, flags.TOP_K, flags.TOP_P, flags.MIN_P)
    request = Request(
        given=tuple(flag.name for flag in flags.defined() if flag.present),
        prompts=flags.PROMPT.value,
        max_new_tokens=flags.MAX_NEW_TOKENS.value,
        stop_strings=flags.STOP_STRINGS.value,
        sampling=SamplingParams(**{flag.name: flag.value for flag in sampled}),
        seed=flags.SEED.value,
        num_beams=flags.NUM_BEAMS.value,
        length_penalty=flags.LENGTH_PENALTY.value,
        num_assistant_tokens=flags.NUM_ASSISTANT_TOKENS.value,
        chat=flags.APPLY_CHAT_TEMPLATE.value,
    )
    pieces, speed = generate_texts(flags.open_checkpoint(), request, flags.open_assistant())
    for piece in pieces:
        print(piece, end="", flush=True)
    print(speed, file=sys.stderr)
    return 0


def serve() -> int:
    """Answers requests over HTTP, as OpenAI's API does, until SIGTERM or Ctrl-C."""
    from lm.experiment.checkpoint_commands import run_serve

    return run_serve(flags.open_checkpoint, flags.open_adapter, flags.serving())


def diagnose() -> int:
    """Measures the output softmax of a checkpoint; writes diagnose.json and diagnose.png."""
    from lm.experiment.checkpoint_commands import run_diagnose

    print("\n".join(run_diagnose(flags.open_checkpoint, flags.NUM_CONTEXTS.value, flags.workdir())))
    return 0


def explain() -> int:
    """Explains the label or next token of a text; writes explanation.json, a page and figures."""
    from lm.experiment.checkpoint_commands import run_explain

    given = {"texts": flags.PROMPT.value, "target": flags.TARGET.value}
    given["replacement"] = flags.REPLACEMENT.value
    folder = flags.folder(flags.OUTPUT.value or flags.WORKDIR.value)
    print("\n".join(run_explain(flags.open_checkpoint, folder, flags.WORKDIR.value, **given)))
    return 0


def sweep() -> int:
    """Trains the points of an ablation that are not finished."""
    if flags.JOBS.value > 1:
        return flags.train_by_workers(_SWEEP + "search study ")
    if flags.SEARCH.value:
        return 1 if flags.run_search() else 0
    if flags.STUDY.value:
        raise UserError("--study is of a search; add --search=optuna")
    return 1 if flags.train_ablation().failed else 0


def table() -> int:
    """Prints the table of an ablation and writes it as --format says. With --config, trains the
    points that are not finished before; without, reads the folder of an ablation or a run.
    """
    from lm.experiment.ablation import read_ablation, report_tables

    view = flags.view()
    if flags.CONFIG.value is None:
        print(report_tables(read_ablation(flags.workdir()), view, flags.workdir()))
        return 0
    status = flags.train_by_workers(_SWEEP) if flags.JOBS.value > 1 else 0
    if status > 1:
        return status
    trained = flags.train_ablation()
    print(report_tables(trained.ablated, view, trained.folder))
    return 1 if trained.failed else status


def compare(*workdirs: str) -> int:
    """Prints a table of the rows of several workdirs, of ablations or single runs, and writes it
    to the folder --output.
    """
    from lm.experiment.ablation import join_ablations, report_tables

    folders = [folder for name in workdirs if (folder := flags.folder(name))]
    print(report_tables(join_ablations(folders), flags.view(), flags.folder(flags.OUTPUT.value)))
    return 0


def plan() -> int:
    """Compiles a config for a slice that need not be there, and prints what its steps take of each
    device and how fast they can be at best.
    """
    from lm.experiment.plan.command import plan_file, plan_meshes

    if not flags.ON.value:
        raise UserError("plan needs --on=SLICE, such as v5e-16, v5p-32, h100-8 or cpu-8")
    config, name, on = flags.load_config(), flags.CONFIG_FLAG.config_filename, flags.ON.value
    if flags.MESH.value == "search":
        lines = plan_meshes(config, name, on)
    else:
        lines = plan_file(config, name, on, flags.variation(), flags.CONFIG_FLAG.override_values)
    for line in lines:
        print(line, flush=True)
    return 0


def status() -> int:
    """Tells of a run, or of each run of an ablation, whether it is finished, running (where, and at
    which step), interrupted, failed or missing; reads the folder alone.
    """
    from lm.experiment.status import describe_status

    print("\n".join(describe_status(flags.workdir())))
    return 0


def launch() -> int:
    """Starts train, sweep or table on a cluster: writes what the engine --with takes, and submits
    it where the engine's program is installed.
    """
    from lm.experiment.ablation import make_points
    from lm.experiment.launch.command import Request, check_config, make_job, submit

    if flags.CONFIG.value is None or not flags.WORKDIR.value or not flags.ON.value:
        raise UserError("launch needs --config=FILE[:ARG], --workdir=DIR and --on=SLICE")
    request = Request(
        engine=flags.WITH.value,
        arguments=flags.given(_ABLATION + _STAGES),
        config=flags.CONFIG_FLAG.config_filename,
        workdir=str(flags.workdir()),
        on=flags.ON.value,
        workers=flags.WORKERS.value,
        spot=flags.SPOT.value,
        image=flags.IMAGE.value,
        command=flags.COMMAND.value,
    )
    job = make_job(request)
    if job.arguments[0] == "train":
        check_config(flags.load_config())
    else:
        make_points(*flags.load_ablation(), flags.workdir())  # checks the config of every point
    print("\n".join(submit(job, flags.WITH.value, flags.OUTPUT.value, dry_run=flags.DRY_RUN.value)))
    return 0


def reproduce(*names: str) -> int:
    """Measures published results again and compares them with ours: those named, or all; without a
    name, lists them.
    """
    from lm.experiment.reproduce import list_expected, reproduce_named

    workdir = flags.workdir("runs/reproduce")
    if not names:
        print("\n".join(list_expected(workdir)))
        return 0
    return reproduce_named(names, workdir, flags.SEEDS.value)


def export() -> int:
    """Writes a checkpoint for transformers, with adapters merged, or as --format says for other
    runtimes, and compares what these compute with the run; with --adapter the adapter for peft.
    """
    from lm.experiment.checkpoint_commands import run_export

    given = {"adapter": flags.ADAPTER.value, "certified": flags.CERTIFY.value}
    lines, passed = run_export(
        flags.open_checkpoint, flags.FORMAT.value, flags.OUTPUT.value, **given
    )
    print("\n".join(lines))
    return 0 if passed else 1


def gallery() -> int:
    """Plots every weighting in gallery.png."""
    from lm.softmax.gallery import draw

    path = flags.workdir() / "gallery.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path)
    print(f"written: {path}")
    return 0


# Each command and the flags that it reads.
_HOSTS = "coordinator num_processes process_id "
_RUN = "config workdir cache_dir step compress print_config "
_ASK = _RUN + _HOSTS
_ABLATION = "config seeds vary draw trials print_config "
_STAGES = "tune protocol shortlist match "
_SWEEP = _ABLATION + _STAGES + "workdir share retry jobs executor replicas replicate "
COMMANDS = {
    "train": Command(train, "config workdir share print_config " + _HOSTS),
    "eval": Command(evaluate, _ASK + "data text stride output"),
    "predict": Command(predict, _ASK + "data output max_new_tokens"),
    "embed": Command(embed, _ASK + "data text output pooling normalize"),
    "generate": Command(
        generate,
        _ASK + "prompt apply_chat_template max_new_tokens temperature top_k top_p min_p seed "
        "stop_strings num_beams length_penalty assistant_model num_assistant_tokens",
    ),
    "serve": Command(serve, _RUN + serving_flags.SERVING),
    "diagnose": Command(diagnose, _ASK + "num_contexts"),
    "explain": Command(explain, _RUN + "prompt target replacement output"),
    "sweep": Command(sweep, _SWEEP + "search study " + _HOSTS),
    "table": Command(table, _SWEEP + "baseline against margin rows format " + _HOSTS),
    "compare": Command(compare, "baseline against margin rows format output", words=True),
    "plan": Command(plan, _ABLATION + "on mesh"),
    "status": Command(status, "workdir", computes=False),
    "launch": Command(
        launch,
        _ABLATION + _STAGES + "workdir with on workers spot command image output dry_run",
        computes=False,
    ),
    "reproduce": Command(reproduce, "workdir seeds", words=True),
    "export": Command(export, _RUN + "output format adapter certify"),
    "gallery": Command(gallery, "workdir"),
}


def main(argv: list[str]) -> int:
    """Runs a command. A mistake of the user is one line on stderr and status 2, a failure of the
    machine one line and status 1.
    """
    own = flags.defined()
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
    words = command_line.parse(argv[:1] + argv[2:])
    command_line.check_flags(argv[1], own, COMMANDS, words)
    if flags.PRINT_CONFIG.value:
        for key, value in flatten(to_dict(flags.load_config())).items():
            print(f"{key} = {value!r}")
        return 0
    values = {flag.name: flag.value for flag in own}
    command = command._replace(run=functools.partial(command.run, *words))
    return run_command(argv[1], command, values, flags.load_config, command_line.report)


def cli() -> int:
    """The console script softmax-lab."""
    return main(sys.argv)


if __name__ == "__main__":
    sys.exit(cli())
