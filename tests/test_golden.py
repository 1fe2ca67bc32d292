"""Shipped configs, rendered flat: a changed default shows in review.

After a change that is meant: python -m tests.test_golden
"""

import importlib
import pathlib

from configs import default
from lm.config import CACHE, flatten, to_dict

# What other configs are made of.
PARTS = ("regularization", "sizes", "tasks")
GOLDEN = pathlib.Path(__file__).parent / "golden.txt"
SHIPPED = {
    "default": [None],
    "clm": ["tiny", "small", "base", "xl"],
    "attention": ["tiny", "all"],
    "attention_table": [None],
    "output": ["tiny", "all", "small"],
    "output_table": [None],
    "bottleneck": ["tiny"],
    "mlm": ["tiny", "base"],
    "span": ["tiny", "small"],
    "prefix": ["tiny", "small"],
    "pairs": ["tiny", "base"],
    "finetune": ["tweets", "reviews", "tweets_ner", "japanese_ner", "mrpc", "squad", "tiny"],
    "finetune_table": ["tweets"],
    "finetune_grid": ["tweets"],
    "continual": ["tiny", "base"],
    "llama": ["8b", "tiny"],
    "prompt": ["tiny", "masked", "sst2", "rte"],
    "uses.policy": ["learn", "base"],
    "uses.chat": ["tuned", "untuned"],
    "uses.chinese": [None],
    "uses.ranking": [None],
}


def rendered() -> str:
    """The defaults whole; of every other config, its differences from them and its rows."""
    default = flatten(to_dict(importlib.import_module("configs.default").get_config()))
    lines = []
    for name, arguments in SHIPPED.items():
        module = importlib.import_module(f"configs.{name}")
        for argument in arguments:
            lines.append(f"{name}:{argument}" if argument else name)
            for key, value in flatten(to_dict(module.get_config(argument))).items():
                if name == "default" or value != default[key]:
                    lines.append(f"  {key} = {value!r}")
            for row in getattr(module, "sweep", lambda _: ())(argument):
                lines.append(f"  row {row}")
    return "\n".join(lines) + "\n"


def test_shipped_configs_are_as_reviewed():
    assert rendered() == GOLDEN.read_text(), "if meant: python -m tests.test_golden"


def test_every_shipped_config_is_reviewed():
    paths = pathlib.Path("configs").rglob("*.py")
    files = {".".join(path.relative_to("configs").with_suffix("").parts) for path in paths}
    assert files == {*SHIPPED, *PARTS}


def test_the_default_cache_is_that_of_the_configs():
    assert default.get_config().cache_dir == CACHE


if __name__ == "__main__":
    GOLDEN.write_text(rendered())
