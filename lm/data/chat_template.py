"""Chat templates: two built-in ones, and those in Jinja that come with a checkpoint."""

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from lm.data.inline_special_tokens import BEGINS, END, ENDS
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError

Messages = Sequence[Mapping[str, str]]
_SAFE = (3, 1, 6)  # of jinja2: templates could leave the sandbox of those before


def template_of(name: str, tokenizer: Tokenizer) -> Callable[[Messages, bool], str]:
    """Writes messages as a marked text (see `lm.data.inline_special_tokens`), and, asked to, what
    stands before the assistant's next answer.

    Args:
      name: of `TEMPLATES`; "": the one that comes with the tokenizer, or else "plain".
      tokenizer: its special tokens are what the template writes.
    """
    own = tokenizer.settings.get("chat_template")
    if not name and own:
        return functools.partial(_own, own, tokenizer)
    return functools.partial(TEMPLATES[name or "plain"], tokenizer)


def _headed(tokenizer: Tokenizer, messages: Messages, ask: bool) -> str:
    """A line that names the role, and END behind what the assistant says."""
    del tokenizer
    written = [
        f"### {m['role']}:\n{m['content']}{END if m['role'] == 'assistant' else ''}\n\n"
        for m in messages
    ]
    return "".join(written) + ("### assistant:\n" if ask else "")


def _chatml(tokenizer: Tokenizer, messages: Messages, ask: bool) -> str:
    """ChatML. Where <|im_end|> is no token, END closes what the assistant says."""
    close = "<|im_end|>"
    written = ""
    for m in messages:
        ends = m["role"] == "assistant" and close not in tokenizer.markers
        written += f"<|im_start|>{m['role']}\n{m['content']}{END if ends else close}\n"
    return written + ("<|im_start|>assistant\n" if ask else "")


TEMPLATES = {"plain": _headed, "chatml": _chatml}


def _own(source: str, tokenizer: Tokenizer, messages: Messages, ask: bool) -> str:
    """What a checkpoint's own template makes of messages; UserError where it cannot, or refuses."""
    names = {key: value for key, value in tokenizer.settings.items() if key.endswith("_token")}
    names.pop("add_bos_token", None)
    try:
        compiled = _compiled(source)
        given = [dict(message) for message in messages]
        return compiled.render(
            messages=given, add_generation_prompt=ask, tools=None, documents=None, **names
        )
    except UserError:
        raise
    except Exception as error:  # of any kind: the template is a program of another
        cause = re.sub(r"\s+", " ", str(error)) or type(error).__name__
        raise UserError(
            f"the chat_template of {tokenizer.name} cannot write this conversation ({cause:.200}); "
            "change the messages, or name another in config.task.template"
        ) from None


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    try:
        version = tuple(int(part) for part in metadata.version("jinja2").split(".")[:3])
    except (metadata.PackageNotFoundError, ValueError):
        version = ()
    if version < _SAFE:
        raise UserError(
            "the checkpoint has a chat_template, a program; to read it, pip install 'jinja2>="
            f"{'.'.join(map(str, _SAFE))}', whose sandbox has no known holes"
        )
    from jinja2 import nodes
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %}: what the assistant says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            """See jinja2."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_marked")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _marked(self, caller: Callable[[], str]) -> str:
            return f"{BEGINS}{caller()}{ENDS}"

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def _refuse(message: str) -> None:
    raise ValueError(message)
