"""YAML as people write it: keys in order, and texts of several lines as blocks."""

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and every value where it stands."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def to_yaml(*documents: dict[str, Any]) -> str:
    """The documents of one file."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1_000)
