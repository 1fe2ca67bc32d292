"""A page of a report as one HTML file, with its style and script inside: it asks no network."""

import importlib.resources
from collections.abc import Mapping

from lm.evaluation.html.markup import Markup, tag


def document(title: str, opening: str, sections: Mapping[str, str], style: str, script: str) -> str:
    """The page.

    Args:
      title: of the page and above it.
      opening: stands below the title.
      sections: content by heading, in order; empty ones are left out.
      style: CSS of this page, behind that of all pages.
      script: JavaScript, which runs when the page is there.
    """
    base = importlib.resources.files("lm.evaluation.html").joinpath("base.css").read_text()
    shown = {name: content for name, content in sections.items() if content}
    links = [tag("a", name, href=f"#{_anchor(name)}") for name in shown]
    body = [
        tag("section", tag("h2", name, id=_anchor(name)), content, aria_labelledby=_anchor(name))
        for name, content in shown.items()
    ]
    head = tag("header", tag("h1", title), opening, tag("nav", *links, aria_label="Sections"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{tag('title', title)}\n<style>\n{base}{style}</style>\n</head>\n<body>\n"
        f"{head}\n{tag('main', *body)}\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _anchor(name: str) -> Markup:
    return Markup("".join(letter if letter.isalnum() else "-" for letter in name.lower()))
