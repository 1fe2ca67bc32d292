"""Registers runs as the model "softmax-laboratory" of EleutherAI's lm-evaluation-harness,
which requests likelihoods and continuations.

  python -m lm.evaluation.prompting.harness run --model softmax-laboratory \
      --model_args workdir=DIR --tasks NAME
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.utils import get_rolling_token_windows  # pyright: ignore[reportMissingImports]

from lm.checkpoints.restore import Restored, restore
from lm.data.chat import Chat
from lm.data.chat_template import TEMPLATES
from lm.data.inline_special_tokens import encode_marked, quoted
from lm.errors import UserError
from lm.evaluation.prompting.gen_kwargs import GenKwargs, read_gen_kwargs
from lm.evaluation.prompting.query_encoder import query_encoder
from lm.evaluation.prompting.template import Query
from lm.evaluation.scored_row import ScoredRow
from lm.evaluation.scoring import score_rows
from lm.finetuning.adapted import max_text_len_of
from lm.generation import generate
from lm.generation.prompts import add_opening_tokens
from lm.generation.sample import count_repeats
from lm.generation.streaming import Continuation


@register_model("softmax-laboratory")
class Laboratory(LM):
    """A run as a model of the harness.

    Texts are encoded by `lm.evaluation.prompting.query_encoder`, so that an encoder answers too, by
    its masks; rolling likelihoods and continuations need a decoder.
    """

    def __init__(
        self, run: Restored | None = None, workdir: str = "", cache: str = "", **ignored: object
    ):
        """Opens a run, or the newest checkpoint of a workdir; the batch size is that of its config.

        `cache` is the folder of prepared text, by default the user's; `ignored` are the harness's
        settings of other models, such as device and batch_size.
        """
        super().__init__()
        self.run = run or restore(epath.Path(workdir).expanduser(), cache=cache)
        self._chat: Chat | None = None  # the format of contexts

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer and the template, by which the harness caches requests."""
        template = "" if self._chat is None else self._chat.name or "own"
        return f"{self.run.tokenizer.hash[:16]}-{template}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Formats contexts as conversations from now on, unless False, by config.task.template,
        "plain" or "chatml". Returns the template.

        Raises:
          UserError: there is no such template, or the model is no decoder.
        """
        if not chat_template:
            return ""
        chat = self.run.chat
        if isinstance(chat_template, str) and chat_template not in ("default", *TEMPLATES):
            raise UserError(
                f"there is no template {chat_template!r}; use {', '.join(TEMPLATES)}, or none for "
                "that of the run"
            )
        name = chat_template if chat_template in TEMPLATES else chat.name
        self._chat = Chat(chat.tokenizer, str(name))
        return str(name or chat.tokenizer.settings.get("chat_template", "plain"))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation in the format of training, up to the assistant's turn; without
        `add_generation_prompt` the last message is the start of its answer.
        """
        if self._chat is None:
            self.chat_template(True)
        chat: Any = self._chat
        if add_generation_prompt:
            return chat.render(chat_history)
        start = quoted(chat_history[-1]["content"], chat.tokenizer)
        return chat.render(chat_history[:-1]) + start

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Of each (context, continuation) log p(continuation | context) in nats, and whether each
        of its tokens is the likeliest.
        """
        queries = [Query(*request.args) for request in requests]
        run = self.run
        encode = query_encoder(run.config, run.tokenizer, run.frame, run.opens)
        if (chat := self._chat) is not None:
            encode = dataclasses.replace(encode, opens=chat.opens, marked=True)
            queries = [q._replace(answer=quoted(q.answer, chat.tokenizer)) for q in queries]
        encoded = encode(queries)
        found = iter(self._likelihoods([row for each in encoded for row in each.rows]))
        answers = [list(itertools.islice(found, len(each.rows))) for each in encoded]
        return [(sum(n for n, _ in each), all(hit for _, hit in each)) for each in answers]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Of each (text,) log p(text) in nats, in windows of as many tokens as the model has
        positions; every token is predicted once. That of an empty text is 0.
        """
        self._check_decoder()
        tokenizer, length = self.run.tokenizer, max_text_len_of(self.run.program.model)
        encoded = tokenizer.encode_batch([request.args[0] for request in requests])
        documents = []
        for ids, *_ in encoded:
            windows = get_rolling_token_windows(ids.tolist(), tokenizer.start, length, 1)
            documents.append([_window(*window) for window in windows])
        found = iter(self._likelihoods([row for rows in documents for row in rows]))
        return [sum((n for n, _ in itertools.islice(found, len(r))), 0.0) for r in documents]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Of each (context, settings) what follows, up to END or a stop string; the settings are
        those of `read_gen_kwargs`.

        Samples depend on the context, the seed, and the number of equal requests before, and not on
        the batches.
        """
        self._check_decoder()
        texts = dict.fromkeys(range(len(requests)), "")
        groups: dict[GenKwargs, list[int]] = {}
        arguments: list[Any] = [request.args for request in requests]
        positions = max_text_len_of(self.run.program.model) - max(len(self._opens), 1)
        for number, (_, settings) in enumerate(arguments):
            groups.setdefault(read_gen_kwargs(settings, positions), []).append(number)
        for settings, numbers in groups.items():
            prompts = self._prompts(
                [arguments[i][0] for i in numbers], positions - settings.max_new_tokens
            )
            repeats = count_repeats(prompt.tobytes() for prompt in prompts)
            # Contexts of one length together: little padding, and few shapes to compile.
            order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
            for begin in range(0, len(order), self.run.config.batch_size):
                some = order[begin : begin + self.run.config.batch_size]
                batch = [prompts[i] for i in some], [repeats[i] for i in some]
                found = self._generate(*batch, settings)
                texts.update(zip([numbers[i] for i in some], found, strict=True))
        return list(texts.values())

    def _check_decoder(self) -> None:
        architecture = self.run.config.model.architecture
        if architecture != "decoder":
            raise UserError(
                f"rolling likelihoods and continuations need a decoder, not an {architecture}; "
                "choose a task of loglikelihood or multiple_choice"
            )

    def _likelihoods(self, rows: Sequence[ScoredRow]) -> list[tuple[float, bool]]:
        run = self.run
        totals, likeliest = score_rows(run.program, run.params, rows, run.config.batch_size)
        return list(zip(totals.tolist(), likeliest.tolist(), strict=True))

    def _prompts(self, contexts: Sequence[str], length: int) -> list[np.ndarray]:
        """Tokens of contexts, the last `length` of each, after those that open a text."""
        tokenizer = self.run.tokenizer
        if self._chat is None:
            encoded = tokenizer.encode_batch(list(contexts))
        else:
            encoded = encode_marked(tokenizer, contexts)
        kept = [each.ids[max(len(each.ids) - length, 0) :] for each in encoded]
        return [add_opening_tokens(tokenizer, ids, self._opens) for ids in kept]

    @property
    def _opens(self) -> tuple[int, ...]:
        return self.run.opens if self._chat is None else self._chat.opens

    def _generate(
        self, prompts: Sequence[np.ndarray], repeats: Sequence[int], settings: GenKwargs
    ) -> list[str]:
        run = self.run
        stops = (*settings.stops, *(self._chat.stops if self._chat else ()))
        texts = [Continuation(run.tokenizer, prompt, stops) for prompt in prompts]
        options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "seed": settings.seed}
        options |= {"repeats": repeats, "prefix": run.config.objective == "prefix"}
        options |= vars(settings.sampling)
        with jax.set_mesh(run.program.mesh):
            for step in generate(run.program.model, run.params, prompts, **options):
                for text, token in zip(texts, step.tolist(), strict=True):
                    text.add(token)
                if all(text.ended for text in texts):
                    break
        return [text.text for text in texts]


def _window(seen: list[int], predicted: list[int]) -> ScoredRow:
    """The row whose last positions predict tokens."""
    positions = np.arange(len(seen) - len(predicted), len(seen))
    return ScoredRow(np.array(seen), positions, np.array(predicted))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()
