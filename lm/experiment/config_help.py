"""Lists the keys of a config with their types, values and comments, for the help of a command."""

import pathlib
import re
import textwrap

from configs import default, regularization, tasks
from lm.config import declared, defaults

_ASSIGNMENT = re.compile(r" +(\w+)\.(\w+) = (?!\w+ = ).*?(?:  # (.*))?$")


def key_lines(name: str) -> list[str]:
    """The keys of the config of --config=`name`, each with its type, its value and its comment."""
    lines, comments, types = [], key_comments(), declared()
    for key, value in defaults(name).items():
        optional = " or None" if types[key].optional else ""
        lines.append(f"  --config.{key}={value!r}  ({types[key].kind.__name__}{optional})")
        group, _, option = key.rpartition(".")
        if group in ("encoder_attention", "cross_attention"):
            comment = f"As attention.{option}; None: the same."
        else:
            comment = comments.get(key, "")
        lines += textwrap.wrap(comment, 94, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def key_comments() -> dict[str, str]:
    """The comment of each dotted key in configs/, at the end of its line or on the lines above."""
    found = {}
    for module in (default, tasks, regularization):
        above, complete = [], True
        for line in pathlib.Path(str(module.__file__)).read_text().splitlines():
            if line.lstrip().startswith("# "):
                above = [*([] if complete else above), line.lstrip()[2:]]
            elif match := _ASSIGNMENT.match(line):
                group, option, comment = match.groups()
                key = option if group == "config" else f"{group}.{option}"
                found[key] = comment or " ".join(above)  # one comment may be of several keys
            else:
                above = []
            complete = not line.lstrip().startswith("# ")
    return found
