"""Exports a run as a checkpoint of transformers, or as an adapter of peft."""

from pathlib import Path

from absl import logging
from etils import epath

from lm.checkpoints.hf import (
    FAMILIES,
    Checkpoint,
    Family,
    is_checkpoint,
    matching_family,
    open_checkpoint,
    write_checkpoint,
)
from lm.checkpoints.hf.gguf_writer import check_architecture, check_tokenizer, write_gguf
from lm.checkpoints.hf.tokenizer_writer import base_settings, write_tokenizer
from lm.checkpoints.peft import save_adapter
from lm.checkpoints.restored import Restored
from lm.checkpoints.run_files import read_run_json
from lm.config import Config
from lm.errors import UserError
from lm.finetuning.merge import merge


def export_adapter(run: Restored, folder: Path) -> str:
    """Writes what LoRA and other methods added as a new folder for peft; says what it is.

    Raises:
      UserError: where the folder is not empty, or peft has no such adapter.
    """
    save_adapter(folder, run.config, run.params, _family(run.config))
    return f"an adapter for peft on its base, {run.config.init_from}"


def export_hf(run: Restored, folder: Path) -> str:
    """Writes a run as a new folder for transformers, and says what it is.

    Args:
      run: whose parameters; what a method of fine-tuning added is merged into them.
      folder: where to; new, or empty.

    Raises:
      UserError: where the folder is not empty, or transformers has no such model or head.
    """
    base, family = first_base(run.config), _family(run.config)
    task = {}
    if run.config.task.name:
        _, labels, layout = run.task_layout
        task = {"labels": labels, "layout": layout}
    params = merge(run.config, run.params)
    name = write_checkpoint(run.config, params, run.tokenizer, folder, family, base=base, **task)
    return f"a {family.model_type} for transformers ({name})"


def export_gguf(run: Restored, folder: Path) -> str:
    """Writes a decoder as a file of llama.cpp in a new folder, and says what it is.

    Raises:
      UserError: llama.cpp has no such model here, or no such tokenizer.
    """
    base, family = first_base(run.config), _family(run.config)
    check_architecture(run.config, family)
    check_tokenizer(run.tokenizer)
    params = merge(run.config, run.params)
    folder.mkdir(parents=True, exist_ok=True)
    settings = None if base is None else base_settings(base.folder)
    ids = write_tokenizer(folder, run.config, run.tokenizer, settings)
    write_gguf(folder / "model.gguf", run.config, params, run.tokenizer, family, ids)
    return f"a {family.model_type} for llama.cpp (model.gguf)"


def _family(config: Config) -> Family:
    base = first_base(config)
    return matching_family(config, FAMILIES, None if base is None else base.family.model_type)


def first_base(config: Config) -> Checkpoint | None:
    """The checkpoint of transformers that a run began with, itself or by way of other runs."""
    source, seen = str(config.init_from), set()
    while source and not is_checkpoint(source) and source not in seen:
        seen.add(source)
        recorded = epath.Path(source) / "config.json"
        source = str(read_run_json(recorded).get("init_from", "")) if recorded.exists() else ""
    try:
        return open_checkpoint(source) if is_checkpoint(source) else None
    except UserError as error:
        logging.warning("Special tokens, templates and family go by what is known: %s", error)
        return None
