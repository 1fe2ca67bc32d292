"""Parses and checks the command line, formats help, and reports errors."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from lm.config import declared, defaults, plain
from lm.errors import Interrupted, UserError, explain, nearest
from lm.experiment.config_help import key_lines
from lm.experiment.provenance import commit, versions


class Command(NamedTuple):
    """A command: what it runs, the names of the flags that it reads, separated by spaces, whether
    it computes, for which JAX is imported, and whether `run` takes the words after its name.
    """

    run: Callable[..., int]
    flags: str
    computes: bool = True
    words: bool = False

    def reads(self, flag: str) -> bool:
        """Whether the command reads the flag of this name."""
        return flag in self.flags.split()


Commands = Mapping[str, Command]


def find_command(name: str, commands: Commands) -> Command:
    """The command of a name; raises UserError, with the nearest name, where there is none."""
    if name not in commands:
        raise UserError(
            f"{name} is not a command; use {', '.join(commands)}{nearest(name, commands)}"
        )
    return commands[name]


def parse(argv: Sequence[str]) -> list[str]:
    """Sets the flags from `argv`, whose first item is the program; returns the words that are no
    flags.

    A config key that may be None is set to it by --config.KEY=None, whatever its type.

    Raises:
      UserError: for an unknown flag or config key, a value of the wrong type, or a config file that
        cannot be read.
    """
    values: dict[str, str] = {}
    for argument in argv[1:]:
        name, _, values[name] = argument.lstrip("-").partition("=")
    dotted = [name for name in values if name.startswith("config.")]
    if values.get("config") == "":
        raise UserError("give the config as --config=FILE[:ARG], with an equals sign")
    if "config" in values:
        keys = [f"config.{key}" for key in defaults(values["config"])]
        for name in dotted:
            if name not in keys:
                raise UserError(f"--{name} is not a config key{nearest(name, keys)}")
    elif dotted:
        raise UserError(f"--{dotted[0]} changes a config; give that too, as --config=FILE[:ARG]")
    optional = [f"config.{key}" for key, each in declared().items() if each.optional]
    unset = [name for name in dotted if values[name] == "None" and name in optional]
    try:
        rest = flags.FLAGS([x for x in argv if x.lstrip("-").partition("=")[0] not in unset])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(plain(error)) from None
    flag: Any = flags.FLAGS["config"]
    for name in unset:
        key = name.removeprefix("config.")
        flag.value.update_from_flattened_dict({key: None})
        flag.override_values[key] = None
    return rest


def config_help(argv: Sequence[str]) -> list[str]:
    """The keys of the config that a command line names; [] where it names none."""
    names = [x.partition("=")[2] for x in argv if x.lstrip("-").startswith("config=")]
    return ["", f"Keys of {names[-1]}:", *key_lines(names[-1]), ""] if names else []


def check_flags(
    name: str, own: Sequence[Any], commands: Commands, words: Sequence[str] = ()
) -> None:
    """Raises UserError where one of our `own` flags was given that the command does not read, or
    `words` that it does not take.
    """
    if words and not commands[name].words:
        raise UserError(f"{words[0]!r} is not a flag; flags are --name=value")
    for flag in own:
        if flag.present and not commands[name].reads(flag.name):
            raise UserError(
                f"{name} does not read --{flag.name}, which is a flag of "
                f"{', '.join(_readers(flag.name, commands))}; leave it out"
            )


def help_text(about: str, own: Sequence[Any], commands: Commands, name: str | None = None) -> str:
    """What `about` says, and a line for each flag of the command `name`; None: for each flag, with
    the commands that read it. Flags that most commands read have no such list.
    """
    lines = [about]
    for flag in own:
        readers = _readers(flag.name, commands)
        # absl adds lines to the help of a flag that may be repeated.
        line = f"  --{flag.name:20} {flag.help.splitlines()[0].rstrip(';')}"
        if name is None:
            few = len(readers) <= len(commands) // 2
            lines.append(f"{line} ({', '.join(readers)})" if few else line)
        elif name in readers:
            set_already = flag.default not in (None, False, "", [])
            lines.append(f"{line}; default {flag.default}" if set_already else line)
    return "\n".join(lines)


def _readers(flag: str, commands: Commands) -> list[str]:
    return [name for name, command in commands.items() if command.reads(flag)]


def version_lines() -> list[str]:
    """The commit of this project and the versions that determine a run's numbers."""
    own = f"softmax-laboratory {commit() or 'outside a checkout'}"
    return [own, *(f"{name} {version}" for name, version in versions().items())]


def report(error: BaseException) -> int:
    """Prints what has ended a command in one line on stderr; its exit status. What is neither a
    mistake of the user nor a known failure of the machine is raised again.
    """
    match error:
        case UserError():
            return _fail(error, 2)
        case Interrupted():
            return _fail(error, 128 + error.signal)
        case BrokenPipeError():
            # The reader of the output, such as head, has closed it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        case KeyboardInterrupt():
            return _fail("interrupted; what was finished is kept", 130)
        case Exception() if failure := explain(error):
            return _fail(failure, 1)
    raise error


def _fail(reason: object, status: int) -> int:
    print(f"run.py: {reason}", file=sys.stderr)
    return status
