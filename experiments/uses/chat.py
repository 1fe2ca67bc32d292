"""Makes questions and answers from the standard library's docstrings, and measures answers to them.

Command  python experiments/uses/chat.py data
         python experiments/uses/chat.py measure UNTUNED TUNED   (runs of configs/uses/chat.py)
Writes   data: stdlib_questions.jsonl beside the archives
         measure: experiments/results/uses_chat.png and uses_chat.json

A question asks what a function or class of a module does, by its name and arguments; the answer is
the first line of its docstring. Names that begin with an underscore, tests, and questions or
answers that are there twice are left out. Measured on held-out questions: bits per token (which are
bytes) of the answers, and of answers that are written greedily to 100 of them how many are the
whole text, and F1 of their words, with 95 % intervals by bootstrap over questions.
"""

import collections
import itertools
import json
import pathlib
import re
import sys
import sysconfig
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from experiments import archives
from lm.checkpoints.restore import restore
from lm.data.chat import Chat
from lm.data.text_pairs import of_module
from lm.experiment.provenance import commit, versions
from lm.generation import generate

RESULTS = ROOT / "experiments" / "results"
FILE = archives.TO / "stdlib_questions.jsonl"
ASKED, LONGEST, TOGETHER = 100, 96, 50


def write_data() -> None:
    """The file, and how many questions it has."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("w", encoding="utf-8") as file:
        for path in sorted(library.rglob("*.py")):
            parts = path.relative_to(library).with_suffix("").parts
            if parts[0] == "site-packages" or {"test", "tests", "idle_test"} & {*parts}:
                continue
            module = ".".join(parts).removesuffix(".__init__")
            for signature, answer in of_module(path.read_text(encoding="utf-8", errors="replace")):
                kind, _, call = signature.partition(" ")
                if call.startswith("_") or len(call) > 80 or not 10 <= len(answer) <= LONGEST:
                    continue
                asks = "function" if kind == "def" else "class"
                question = f"What does the {asks} {call} of {module} do?"
                if question not in seen and answer not in seen:
                    line = {"question": question, "answer": answer}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    seen |= {question, answer}
    print(f"{FILE.name}: {len(seen) // 2} questions")


def words(text: str) -> list[str]:
    """Its words, in lower case."""
    return re.findall(r"\w+", text.lower())


def f1(said: str, truth: str) -> float:
    """F1 of the words of two texts, each as often as it is there."""
    ours, theirs = (collections.Counter(words(text)) for text in (said, truth))
    common = (ours & theirs).total()
    return 2 * common / max(ours.total() + theirs.total(), 1)


def interval(values: list[float]) -> list[float]:
    """The mean, and its 95 % interval over resampled questions."""
    draw = np.random.default_rng(0)
    means = [draw.choice(values, len(values)).mean() for _ in range(2000)]
    return [round(float(x), 4) for x in (np.mean(values), *np.quantile(means, (0.025, 0.975)))]


def answers(folder: pathlib.Path, questions: list[str]) -> list[str]:
    """What a run answers, greedily, up to the end of the line."""
    run: Any = restore(epath.Path(folder))
    chat = Chat(run.tokenizer, "plain")
    prompts = [chat.encode_prompt([{"role": "user", "content": text}]) for text in questions]
    found = []
    for begin in range(0, len(prompts), TOGETHER):
        some = prompts[begin : begin + TOGETHER]
        options: dict[str, Any] = {"max_new_tokens": LONGEST, "temperature": 0.0}
        steps = list(generate(run.program.model, run.params, some, **options))
        for ids in np.stack(steps, axis=1):
            ended = itertools.takewhile(lambda token: token != run.tokenizer.end, ids.tolist())
            found.append(run.tokenizer.decode(ended).strip().partition("\n")[0])
    return found


def measure(folders: list[str]) -> None:
    """The figure and the file."""
    with FILE.open(encoding="utf-8") as file:
        asked = {row["answer"]: row["question"] for row in map(json.loads, file)}
    found: dict[str, Any] = {}
    bits = {}
    for folder in map(pathlib.Path, folders):
        lines = (folder / "predictions.jsonl").read_text().splitlines()
        held_out = [json.loads(line) for line in lines]
        truth = [each["label"] for each in held_out][:ASKED]
        said = answers(folder, [asked[text] for text in truth])
        result = json.loads((folder / "result.json").read_text())
        bits[folder.name] = [p["nats"] / np.log(2) / p["tokens"] for p in held_out]
        total = sum(p["nats"] for p in held_out) / sum(p["tokens"] for p in held_out)
        found[folder.name] = {
            "bits_per_byte": round(total / np.log(2), 4),
            "word_f1": interval([f1(*pair) for pair in zip(said, truth, strict=True)]),
            "exact": sum(a == b for a, b in zip(said, truth, strict=True)),
            "asked": len(truth),
            "held_out": len(held_out),
            "commit": result["commit"],
            "examples": [[asked[t], t, s] for t, s in zip(truth[:4], said[:4], strict=True)],
        }
    found |= {"commit": commit(), "versions": versions()}
    (RESULTS / "uses_chat.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    draw(found, bits)


def draw(found: dict[str, Any], bits: dict[str, list[float]]) -> None:
    """Bits of each held-out answer, and F1 of what is written."""
    figure = Figure(figsize=(9, 3.2), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, (name, each) in enumerate(bits.items()):
        left.hist(each, np.linspace(0, 8, 65), alpha=0.7, label=name)
        mean, low, high = found[name]["word_f1"]
        right.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=4)
    left.set(xlabel="bits per byte of a held-out answer", ylabel="answers")
    left.legend(frameon=False)
    right.set(yticks=range(len(bits)), yticklabels=list(bits), ylim=(-0.5, len(bits) - 0.5))
    right.set_xlabel("F1 of words that are written, 95 %")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "uses_chat.png")


if __name__ == "__main__":
    if sys.argv[1] == "data":
        write_data()
    else:
        measure(sys.argv[2:])
