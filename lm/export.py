"""How does a run leave this house? As a checkpoint of transformers, or as an adapter for peft."""

import pathlib

from lm.pretrained import FAMILIES, fitting_family, is_checkpoint, open_checkpoint
from lm.pretrained import export as write_checkpoint
from lm.restore import Restored
from lm.tune.merge import merge
from lm.tune.peft import save


def export(run: Restored, folder: str, *, adapter: bool) -> str:
    """Writes a new folder, and says what it is.

    Args:
      run: whose parameters; what a method of fine-tuning added is merged into them.
      folder: where to; new, or empty.
      adapter: write what LoRA added alone, without the base that it started from.

    Raises:
      UserError: where the folder is not empty, or no family of checkpoints is such a model.
    """
    source = run.config.init_from
    wish = open_checkpoint(source).family.model_type if is_checkpoint(source) else None
    family = fitting_family(run.config, FAMILIES, wish)
    path = pathlib.Path(folder).expanduser()
    if adapter:
        save(path, run.config, run.params, family)
        return f"{path}, an adapter for peft on its base, {source}"
    params = merge(run.config, run.params)
    write_checkpoint(run.config, params, run.tokenizer, path, family)
    return f"{path}, a {family.model_type} for transformers ({family.architecture})"
