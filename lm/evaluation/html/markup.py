"""Builds HTML and SVG; texts are escaped."""

import html
import re


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element. Children that are no Markup are escaped. Attributes are named with "_" for "-",
    and those of Python's own words with "_" at their end; None leaves an attribute out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """The children one after the other, escaped unless they are Markup."""
    parts = (child if isinstance(child, Markup) else html.escape(child) for child in children)
    return Markup("".join(parts))


def breakable(label: str) -> Markup:
    """A label that may go on in a new line after each comma, equals sign or slash."""
    return Markup(re.sub(r"([,=/])(?=.)", r"\1<wbr>", html.escape(label)))


def table(caption: str, head: list[str], rows: list[list[str]], **attributes: object) -> Markup:
    """A table whose first column names its rows."""
    header = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    parts = tag("caption", caption), tag("thead", header), tag("tbody", *body)
    return tag("div", tag("table", *parts, **attributes), class_="wide", tabindex="0")
