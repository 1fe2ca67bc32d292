"""Tagging schemes of entities (IOB1, IOB2, IOE1, IOE2, IOBES, BILOU): which one tags follow, and
the entities that they mark.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lm.errors import UserError
from lm.tasks.libraries import library

# The marks of each scheme, before a hyphen and the entity's type; O stands outside of all.
MARKS = {
    "iob1": "BI",  # B only between neighbours of one type
    "iob2": "BI",  # B opens each entity
    "ioe1": "IE",  # E only between neighbours of one type
    "ioe2": "IE",  # E closes each entity
    "iobes": "BIES",  # S is an entity of one word
    "bilou": "BILU",  # U is an entity of one word, L its last
    "none": "",  # tags that mark no entities, such as parts of speech
}
_MARKED = re.compile("([A-Z])-.+")
_OTHER_TOOLS = "write M- as I-, and any other mark as one of B, I, O, E, S or B, I, L, O, U"

Entity = tuple[str, int, int]  # type, first word, last word


def scheme_of(sentences: Iterable[Sequence[str]], given: str = "") -> str:
    """The scheme that tags follow, a name of `MARKS`.

    Tags without marks, such as parts of speech, are of "none"; bare B, I, ... beside O mark
    entities of one type.

    Args:
      sentences: the tags of each.
      given: the scheme that they should follow; "": any.

    Raises:
      UserError: tags that mark entities are of no one scheme, or not of the given one.
    """
    sentences = list(sentences)
    tags = {tag for sentence in sentences for tag in sentence} - {"O"}
    if given == "none":
        return given
    if given:
        wrong = sorted(tag for tag in tags if _mark(tag) not in tuple(MARKS[given]))
        if wrong:
            raise UserError(
                f"the tag {wrong[0]!r} is none of the scheme {given}, whose marks are O and "
                f"{', '.join(MARKS[given])}; mend it, or change config.task.tag_scheme"
            )
        return given
    marks = {_mark(tag) for tag in tags}
    if not marks & set("BIESLU") or (tags == marks and not _bare(sentences, tags)):
        return "none"
    if marks <= set("BI"):
        return "iob1" if _only_between(sentences, "B", opens=True) else "iob2"
    if marks <= set("IE"):
        return "ioe1" if _only_between(sentences, "E", opens=False) else "ioe2"
    for name in ("iobes", "bilou"):
        if marks <= set(MARKS[name]):
            return name
    some = ", ".join(sorted(tags, key=lambda tag: (_mark(tag) in tuple("BI"), tag))[:6])
    raise UserError(
        f"the tags {some} ... are of no one scheme of entities; {_OTHER_TOOLS}; or set "
        "config.task.tag_scheme='none', which judges each word's tag as a whole"
    )


def entities(tags: Sequence[str], scheme: str) -> set[Entity]:
    """The entities that the tags of one sentence mark.

    BILOU by its own rules, as seqeval's strict mode has them. All others as conlleval counts them
    (Tjong Kim Sang and Buchholz 2000), leniently: an I- that follows nothing of its type opens an
    entity, and one that another type follows is closed.
    """
    if scheme == "none":
        return set()
    if scheme == "bilou":
        strict = library("seqeval.scheme")
        found = strict.Tokens(list(tags), strict.BILOU).entities
        return {(each.tag, each.start, each.end - 1) for each in found}
    return set(library("seqeval.metrics.sequence_labeling").get_entities(list(tags)))


def entity_report(truth: Sequence[Any], predicted: Sequence[Any], scheme: str) -> str:
    """Precision, recall and F1 by type of entity, as seqeval prints them; of tags that mark no
    entities, by tag, as scikit-learn does.
    """
    layout: dict[str, Any] = {"digits": 4, "zero_division": 0}
    if scheme == "none":
        flat = ([tag for tags in side for tag in tags] for side in (truth, predicted))
        return library("sklearn.metrics").classification_report(*flat, **layout)
    if not any(tag != "O" for tags in (*truth, *predicted) for tag in tags):
        return "no entities, neither true nor predicted\n"
    if scheme == "bilou":
        layout |= {"mode": "strict", "scheme": library("seqeval.scheme").BILOU}
    return library("seqeval.metrics").classification_report(list(truth), list(predicted), **layout)


def _mark(tag: str) -> str:
    """What stands before the hyphen; of a single letter, itself; else the tag, which is no mark."""
    marked = _MARKED.fullmatch(tag)
    return marked[1] if marked else tag


def _bare(sentences: Sequence[Sequence[str]], tags: set[str]) -> bool:
    """Whether tags without types are marks, and not letters that name parts of speech."""
    outside = any("O" in sentence for sentence in sentences)
    return tags <= set("BIESLUM") and (outside or {"B", "E"} <= tags or {"B", "L"} <= tags)


def _only_between(sentences: Iterable[Sequence[str]], mark: str, opens: bool) -> bool:
    """Whether a mark stands only between neighbours of one type, and some entity lacks it."""
    missing = False
    for sentence in sentences:
        tags = list(sentence) if opens else list(reversed(sentence))
        for tag, before in zip(tags, ["O", *tags], strict=False):
            at_border = before == "O" or before[1:] != tag[1:]
            if at_border and tag != "O":
                if _mark(tag) == mark:
                    return False
                missing = True
    return missing
