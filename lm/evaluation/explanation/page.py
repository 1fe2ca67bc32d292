"""The page of an explanation: the text in colours, tables, and attention maps to choose from."""

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from lm.data.files import to_json
from lm.evaluation.explanation.figures import shown
from lm.evaluation.html.document import document
from lm.evaluation.html.markup import Markup, join, tag
from lm.evaluation.html.markup import table as html_table

Explanation = Mapping[str, Any]
_METHODS = {"leave_out": "Leaving out each word", "integrated_gradients": "Integrated gradients"}


def make_page(found: Explanation, title: str) -> str:
    """The explanation of `explain` as one page of HTML, which needs no network."""
    folder = importlib.resources.files("lm.evaluation.explanation")
    style, script = (folder.joinpath(name).read_text() for name in ("page.css", "page.js"))
    sections = {
        "Decision": _decision(found),
        "Words": _words(found),
        "Attention": _maps(found),
        "Logit lens": _lens(found),
        "Heads": _heads(found),
        "Tokens": _tokens(found),
    }
    return document(title, tag("p", _sentence(found), class_="found"), sections, style, script)


def _sentence(found: Explanation) -> str:
    target, score = found["target"], found["score"].replace("_", "-")
    return f"Why {target['name']!r}: its {score} is {target['score']:.4g}."


def _decision(found: Explanation) -> Markup:
    decided = found["decision"]
    facts = {
        "Task": found["task"],
        "Model": found["architecture"],
        "Attention": f"{found['mechanism']}, {found['weighting']}",
        "Head": found["head"],
    }
    if "value" in decided:
        facts["Value"] = f"{decided['value']:.4g}"
        return _facts(facts)
    facts["Support"] = f"{decided['support']:,} of {decided['of']:,} have a probability"
    facts["Entropy"] = f"{decided['entropy']:.3f} nats"
    bars = [
        tag(
            "li",
            tag("span", shown(each["name"]), class_="name"),
            tag("span", tag("i", style=f"width:{100 * each['probability']:.2f}%"), class_="bar"),
            tag("span", f"{each['probability']:.4f}", class_="value"),
        )
        for each in decided["candidates"]
    ]
    return join(_facts(facts), tag("ol", *bars, class_="bars"))


def _facts(facts: Mapping[str, str]) -> Markup:
    return tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in facts.items()))


def _words(found: Explanation) -> Markup:
    """The text twice, coloured by each method, and what the colours mean."""
    how = {
        "padding": "A word that is left out is taken out of the row, which then ends in padding; "
        "the others keep their positions. The baseline of integrated gradients is zero vectors.",
        "mask": "The tokenizer's mask takes the place of a word that is left out, and is the "
        "baseline of integrated gradients.",
    }
    parts = [
        tag(
            "p",
            "Blue words speak for the decision, orange ones against it: by how much the score "
            "falls without the word, and by its part of the score's difference from the baseline. "
            + how[found["replacement"]],
        )
    ]
    for key, name in _METHODS.items():
        values = [word[key] for word in found["words"]]
        parts += [tag("h3", name), tag("p", *_coloured(found["words"], values), class_="text")]
    rows = [
        [shown(word["text"]), *(f"{word[key]:+.4f}" for key in _METHODS)]
        for word in sorted(found["words"], key=lambda word: -abs(word["leave_out"]))
    ]
    parts.append(_folded("Every word", ["word", *_METHODS.values()], rows))
    sums = found["integrated_gradients"]
    law = (
        f"Integrated gradients sum to {sums['sum']:+.4f}, and the score differs from the "
        f"baseline's by {sums['score'] - sums['baseline_score']:+.4f} ({sums['points']} points)."
    )
    return join(*parts, tag("p", law))


def _coloured(words: Sequence[Explanation], values: Sequence[float]) -> list[Markup]:
    top = max((abs(value) for value in values), default=0.0) or 1.0
    spans = []
    for word, value in zip(words, values, strict=True):
        strength = f"{100 * min(abs(value) / top, 1.0):.0f}%"
        kind = "for" if value >= 0 else "against"
        style, told = f"--strength:{strength}", f"{value:+.4f}"
        spans.append(tag("span", word["text"], class_=kind, style=style, title=told))
    return spans


def _maps(found: Explanation) -> Markup:
    """A map of one layer and head, drawn by the script, with all of them to choose from."""
    if "unavailable" in found["attention"]:
        return tag("p", f"Not shown: {found['attention']['unavailable']}.")
    parts = {}
    for kind, own in found["attention"].items():
        parts[kind] = {name: own[name] for name in ("weights", "rollout")}
    data = {"tokens": [shown(token["text"]) for token in found["tokens"]], "kinds": parts}
    about = (
        "Rows are queries, columns keys; darker is more, white is none. Press a small map to see "
        "it large, and a cell to read it. Rollout mixes the heads of each layer and multiplies "
        "layers (Abnar and Zuidema 2020)."
    )
    json = Markup(to_json(data).replace("<", "\\u003c"))
    return join(
        tag("p", about),
        tag("div", id="maps"),
        tag("script", json, type="application/json", id="attention-data"),
    )


def _heads(found: Explanation) -> Markup:
    if "unavailable" in found["attention"]:
        return Markup()
    tokens, tables = found["tokens"], []
    head = ["layer, head", "entropy", "support", "least", "most", "sum", "first", "sink", "share"]
    for kind, own in found["attention"].items():
        rows = [
            [
                f"{layer}, {number}",
                f"{each['entropy']:.2f}",
                f"{each['support_mean']:.1f}",
                str(each["support_min"]),
                str(each["support_max"]),
                f"{each['row_sum']:.2f}",
                f"{each['first_token']:.2f}",
                shown(tokens[each["sink"]]["text"]),
                f"{each['sink_share']:.2f}",
            ]
            for layer, heads in enumerate(own["heads"], start=1)
            for number, each in enumerate(heads, start=1)
        ]
        tables.append(_folded(f"{kind.capitalize()}: {len(rows)} heads", head, rows))
    about = (
        "Entropy of the weights in nats; support: how many keys have a weight, on average, at "
        "least and at most; the sum of a query's weights; the share that the first key gets, and "
        "the key that gets the largest share from all queries that see it: an attention sink."
    )
    return join(tag("p", about), *tables)


def _lens(found: Explanation) -> Markup:
    lens = found["logit_lens"]
    value = found["score"] == "value"
    rows = [
        [
            str(each["layer"]) if each["layer"] else "embedding",
            f"{each['target']:.4g}",
            *([] if value else [str(each["rank"]), shown(each["best"])]),
            *([] if value else [f"{each['best_probability']:.3f}"]),
        ]
        for each in lens["layers"]
    ]
    name = shown(found["target"]["name"])
    head = ["after layer", f"{found['score'].replace('_', '-')} of {name}"]
    head += [] if value else ["rank", "likeliest", "probability"]
    tables = [html_table("What the head makes of the hidden states of each layer.", head, rows)]
    if "tokens" in lens:
        under = [shown(token["text"]) for token in found["tokens"]]
        layers = ["embedding", *(str(number) for number in range(1, len(lens["tokens"])))]
        columns = zip(under, *lens["tokens"], strict=True)
        rows = [[first, *map(shown, rest)] for first, *rest in columns]
        tables.append(_folded("The likeliest next token after each token", ["", *layers], rows))
    return join(*tables)


def _tokens(found: Explanation) -> Markup:
    rolled: dict[str, Sequence[float]] = {}
    if "unavailable" not in found["attention"]:
        for kind, own in found["attention"].items():
            rolled[f"rollout of {kind}"] = own["rollout_of_decision"][-1]
    rows = [
        [
            shown(token["text"]),
            f"{token['leave_out']:+.4f}",
            f"{token['integrated_gradients']:+.4f}",
            *(f"{values[place]:.3f}" for values in rolled.values()),
        ]
        for place, token in enumerate(found["tokens"])
    ]
    head = ["token", "left out", "integrated gradients", *rolled]
    return html_table("Every token; special ones are never left out.", head, rows)


def _folded(summary: str, head: Sequence[str], rows: list[list[str]]) -> Markup:
    return tag("details", tag("summary", summary), html_table(summary, list(head), rows))
