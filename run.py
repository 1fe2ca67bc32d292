"""Trains, evaluates and compares Transformers in which the softmax is the variable.

  python run.py train    --config=FILE[:ARG] --workdir=DIR    one run, or go on with it
  python run.py eval     --workdir=DIR                        a run's newest checkpoint
  python run.py eval     --workdir=DIR --data=FILE            the same on other labelled examples
  python run.py eval     --workdir=DIR --text=TEXT --data=FILE     perplexity of given texts
  python run.py predict  --workdir=DIR --data=FILE --output=DIR    a task's run on any examples
  python run.py embed    --workdir=DIR --data=FILE --output=FILE.npy    vectors of texts
  python run.py generate --workdir=DIR --prompt=TEXT ...      continue prompts
  python run.py diagnose --workdir=DIR                        rank, gradient, argmax, calibration
  python run.py sweep    --config=FILE[:ARG] --workdir=DIR    all points of an ablation
  python run.py table    --config=FILE[:ARG] --workdir=DIR    the same, and then its table
  python run.py export   --workdir=DIR --output=DIR           a checkpoint of transformers
  python run.py gallery  --workdir=DIR                        a picture of every weighting

eval, predict, embed, generate and export also take --config=FILE --config.init_from=hf:FOLDER
instead of a workdir.
Any knob of a config is set by its dotted name: --config.model.d_model=256
--print_config shows every key of the config and its value, and runs nothing; COMMAND -h the flags
of a command, and --version the versions that decide a run's numbers.
"""

import os
import sys

from absl import flags
from ml_collections import config_flags

from lm.config import flatten, to_dict
from lm.errors import Interrupted, UserError, explain
from lm.experiment.ablation.points import Ablation, load_ablation
from lm.experiment.command_line import Command, check_flags, find_command, help_text, parse

_CONFIG = config_flags.DEFINE_config_file("config", None, "experiment: FILE[:ARG]")
_CONFIG_FLAG = flags.FLAGS["config"]
_WORKDIR = flags.DEFINE_string("workdir", None, "folder for everything that the command writes")
_ADAPTER = flags.DEFINE_bool("adapter", False, "what was added alone, as the package peft reads it")
_DATA = flags.DEFINE_multi_string(
    "data", [], "other examples or texts than the run's: a file, pattern or source; repeatable"
)
_TEXT = flags.DEFINE_multi_string("text", [], "a text; may be repeated")
_STRIDE = flags.DEFINE_integer(
    "stride", None, "of perplexity, tokens by which windows over a long text move; the context", 1
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "a new folder for what is written; of embed a file, .npy or .jsonl"
)
_POOLING = flags.DEFINE_string(
    "pooling", "mean", "of hidden states: mean, first (or cls), last, max or pooler"
)
_NORMALIZE = flags.DEFINE_bool("normalize", False, "make each vector's length 1")
_STEP = flags.DEFINE_integer("step", None, "which checkpoint; the newest", 0)
_PROMPT = flags.DEFINE_multi_string("prompt", [], "text to continue; may be repeated")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "tokens to generate, at most", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "of sampling; 0 is greedy", 0.0)
_TOP_K = flags.DEFINE_integer("top_k", 0, "sample among the k likeliest tokens; 0 among all", 0)
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "sample among the likeliest tokens that sum to p", 0.0, 1.0
)
_MIN_P = flags.DEFINE_float(
    "min_p", 0.0, "sample among tokens p times as likely as the likeliest", 0.0, 1.0
)
_CONTEXTS = flags.DEFINE_integer("contexts", 512, "rows of the log-probabilities", 2)
_APPLY_CHAT_TEMPLATE = flags.DEFINE_bool(
    "apply_chat_template", False, "prompts are user messages, formatted by config.task.template"
)
_STOP_STRINGS = flags.DEFINE_multi_string(
    "stop_strings", [], "text before which generation stops; may be repeated"
)
_NUM_BEAMS = flags.DEFINE_integer("num_beams", 1, "above 1, beam search instead of sampling", 1)
_LENGTH_PENALTY = flags.DEFINE_float(
    "length_penalty", 0.0, "of beam search; higher values prefer longer texts", 0.0
)
_SEED = flags.DEFINE_integer("seed", 0, "of sampling", 0, 2**31 - 1)
_SAMPLING = (_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P, _SEED)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "print the config and run nothing")
_SEEDS = flags.DEFINE_integer("seeds", None, "the ablation's first N; all", 1)
_CACHE = flags.DEFINE_string(
    "cache", "", "where prepared text and compiled programs are; no workdir decides that"
)
_SHARE = flags.DEFINE_bool(
    "share",
    False,
    "with other commands in this workdir: takes what nobody holds, waits for the rest",
)


def train() -> int:
    """Trains the config in the workdir and prints the held-out result."""
    from lm.checkpoints.run_files import read_result
    from lm.experiment.continual.chain import run_experiment
    from lm.experiment.primary_metric import summary

    config, workdir = _config(), _workdir()
    before = read_result(workdir)
    result = run_experiment(config, workdir, wait=_SHARE.value)
    if result == before:  # and not a run that went on to more steps
        print(f"{workdir} is finished already; its result:")
    print(f"eval: {summary(result, config)}")
    return 0


def evaluate() -> int:
    """Evaluates a checkpoint on its held-out rows, on other labelled examples (--data) or texts
    (--text, --data), or asks it config.prompt.
    """
    from lm.evaluation.predict import check_new_folder
    from lm.experiment.eval_command import evaluate_on
    from lm.training.announce import announced

    check_new_folder(folder := _folder(_OUTPUT.value))
    run = _restored()
    texts, stride = _TEXT.value, _STRIDE.value
    with announced("compiling and evaluating"):
        metrics = evaluate_on(run, texts=texts, data=_DATA.value, stride=stride, folder=folder)
    print(f"{_WORKDIR.value or run.config.init_from} at step {run.step}")
    for name, value in metrics.items():
        print(f"  {name:22} {value:,.6g}")
    return 0


def predict() -> int:
    """Says what a task's run makes of every example of --data, whether it has a label or not."""
    from lm.evaluation.predict import check_new_folder, predict_files

    folder = _folder(_OUTPUT.value)
    if not _DATA.value or folder is None:
        raise UserError("predict needs --data=FILE and --output=DIR, a new folder for predictions")
    check_new_folder(folder)
    tokens = _MAX_NEW_TOKENS.value if _MAX_NEW_TOKENS.present else None
    print("\n".join(predict_files(_restored(), _DATA.value, folder, tokens)))
    return 0


def embed() -> int:
    """Writes a vector of each text: hidden states, pooled."""
    from lm.evaluation.embed import check_output, embed_files

    file, run = check_output(_folder(_OUTPUT.value)), _restored(headless=True)
    options = {"pooling": _POOLING.value, "normalize": _NORMALIZE.value}
    print(embed_files(run, file, texts=_TEXT.value, names=_DATA.value, **options))
    return 0


def generate() -> int:
    """Continues every prompt, or answers it; the first is streamed, the others follow."""
    import jax

    from lm.generation.beam import BeamSearchParams
    from lm.generation.generate_command import check_request, generate_texts
    from lm.generation.sample import SamplingParams

    beams = BeamSearchParams(_NUM_BEAMS.value, _LENGTH_PENALTY.value)
    sampling = SamplingParams(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MIN_P.value)
    check_request(_PROMPT.value, _MAX_NEW_TOKENS.value, beams, _STOP_STRINGS.value)
    given = [flag.name for flag in _SAMPLING if flag.present]
    if beams.num_beams > 1 and given:
        raise UserError(f"--num_beams={beams.num_beams} does not sample; leave out --{given[0]}")
    run = _restored()
    with jax.set_mesh(run.program.mesh):
        pieces, speed = generate_texts(
            run,
            _PROMPT.value,
            max_new_tokens=_MAX_NEW_TOKENS.value,
            beams=beams,
            sampling=sampling,
            seed=_SEED.value,
            stop_strings=_STOP_STRINGS.value,
            chat=_APPLY_CHAT_TEMPLATE.value,
        )
        for piece in pieces:
            print(piece, end="", flush=True)
    print(speed, file=sys.stderr)
    return 0


def diagnose() -> int:
    """Measures a checkpoint's output softmax; writes diagnose.json and diagnose.png."""
    import jax

    from lm.evaluation.diagnostics import diagnose, lines, write

    _workdir()
    run = _restored()
    with jax.set_mesh(run.program.mesh):
        found = {"step": run.step, **diagnose(run, _CONTEXTS.value)}
    title = f"{_workdir().name} at step {run.step}: head {run.config.output.head}"
    write(found, title, _workdir())
    print("\n".join([title, *lines(found)]))
    print(f"written: {_workdir() / 'diagnose.json'} and diagnose.png beside it")
    return 0


def sweep() -> int:
    """Trains the points of an ablation that are not finished."""
    from lm.experiment.ablation.sweep import sweep

    failed = sweep(_points(_ablation()), _SHARE.value)
    return 1 if failed else 0


def table() -> int:
    """Trains what is missing, then prints the table and writes table.md, .csv and .png."""
    from lm.experiment.ablation.sweep import sweep
    from lm.experiment.ablation.table import make_tables, to_markdown, write_tables

    ablation = _ablation()
    points = _points(ablation)
    failed = sweep(points, _SHARE.value)
    tables = make_tables(points, _config(), ablation.metrics)
    write_tables(tables, _workdir())
    print("\n".join(map(to_markdown, tables)))
    print(f"\nwritten: {_workdir() / 'table.md'}, table.csv and table.png beside it")
    return 1 if failed else 0


def export() -> int:
    """Writes a checkpoint of the workdir as a folder that transformers loads; additions merged."""
    from lm.checkpoints.export import export

    if not _OUTPUT.value:
        raise UserError("export needs --output=DIR, a new folder for the checkpoint")
    print(f"written: {export(_restored(), _OUTPUT.value, adapter=_ADAPTER.value)}")
    return 0


def gallery() -> int:
    """Draws every weighting, in gallery.png."""
    from lm.softmax.gallery import draw

    _workdir().mkdir(parents=True, exist_ok=True)
    draw(_workdir() / "gallery.png")
    print(f"written: {_workdir() / 'gallery.png'}")
    return 0


def _config():
    if _CONFIG.value is None:
        raise UserError(f"{sys.argv[1]} needs --config=FILE[:ARG], such as configs/clm.py:tiny")
    return _adopted()


def _adopted():
    """The config, with what the checkpoint and the adapter decide that it names."""
    from lm.checkpoints.resolve import adopted

    return adopted(_CONFIG.value, _CONFIG_FLAG.override_values)


def _restored(headless: bool = False):
    """A run's checkpoint, or without a workdir the one that the config's init_from names; which may
    lack its head where it is `headless`.
    """
    from lm.checkpoints.restore import open_pretrained, restore

    config = None if _CONFIG.value is None else _adopted()
    if not _WORKDIR.value and config is not None and config.init_from:
        if _STEP.value is not None:
            raise UserError("--step is of a run's checkpoints; leave it out, or give --workdir=DIR")
        return open_pretrained(config, headless=headless)
    return restore(_workdir(), _STEP.value, config, cache=_CACHE.value)


def _workdir():
    folder = _folder(_WORKDIR.value)
    if folder is None:
        raise UserError(f"{sys.argv[1]} needs --workdir=DIR, a folder for what it writes")
    return folder


def _folder(name: str | None):
    """The folder of a flag; None where it was not given."""
    from etils import epath

    return epath.Path(name).expanduser() if name else None


def _ablation() -> Ablation:
    """The ablation of the config's file, with the first --seeds of its seeds."""
    _config()
    path, _, arg = _CONFIG_FLAG.config_filename.partition(":")
    return load_ablation(path, arg or None, _SEEDS.value, _CONFIG_FLAG.override_values)


def _points(ablation: Ablation):
    from lm.experiment.ablation.points import make_points

    return make_points(_config(), ablation.rows, ablation.seeds, _workdir())


# What each command runs, and the flags that it reads.
COMMANDS = {
    "train": Command(train, "config workdir share print_config"),
    "eval": Command(evaluate, "config workdir cache step data text stride output print_config"),
    "predict": Command(
        predict, "config workdir cache step data output max_new_tokens print_config"
    ),
    "embed": Command(
        embed, "config workdir cache step data text output pooling normalize print_config"
    ),
    "generate": Command(
        generate,
        "config workdir cache step prompt apply_chat_template max_new_tokens temperature top_k "
        "top_p min_p stop_strings num_beams length_penalty seed print_config",
    ),
    "diagnose": Command(diagnose, "config workdir cache step contexts"),
    "sweep": Command(sweep, "config workdir seeds share print_config"),
    "table": Command(table, "config workdir seeds share print_config"),
    "export": Command(export, "config workdir cache step output adapter print_config"),
    "gallery": Command(gallery, "workdir"),
}


def main(argv: list[str]) -> int:
    """Runs a command; a user's mistake is one line on stderr and status 2, a failure of the machine
    one and status 1.
    """
    own = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(help_text(__doc__, own, COMMANDS))
        return 0
    try:
        if argv[1] == "--version":
            from lm.experiment.provenance import version_lines

            print("\n".join(version_lines()))
            return 0
        command = find_command(argv[1], COMMANDS)
        if {"-h", "--help"} & set(argv[2:]):
            print(help_text(f"{argv[1]}: {command.run.__doc__}\n", own, COMMANDS, argv[1]))
            return 0
        parse(argv[:1] + argv[2:])
        check_flags(argv[1], own, COMMANDS)
        if _PRINT_CONFIG.value:
            return _print_config()
        from lm.devices.cpu import keep_freed_memory

        keep_freed_memory()
        return command.run()
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 128 + error.signal
    except BrokenPipeError:
        # The reader of our output, such as head, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("run.py: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except Exception as error:
        if (failure := explain(error)) is None:
            raise
        print(f"run.py: {failure}", file=sys.stderr)
        return 1


def _print_config() -> int:
    for key, value in flatten(to_dict(_config())).items():
        print(f"{key} = {value!r}")
    return 0


def cli() -> int:
    """The console script softmax-lab."""
    return main(sys.argv)


if __name__ == "__main__":
    sys.exit(cli())
