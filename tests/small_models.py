"""Small models in which every path matters, shared by the tests of what models compute."""

import jax
import numpy as np
import optax

from configs import default
from lm.config import Config, override
from lm.model.transformer import Batch, Transformer
from lm.training.build_model import build_model
from lm.training.config import resolve
from lm.training.optimizer import optimizer


def config_of(**settings) -> Config:
    """Two layers of 16 features and 4 heads, but for the settings."""
    config = default.get_config()
    config.model.update(num_layers=2, d_model=16, num_heads=4, max_seq_len=32)
    config.update_from_flattened_dict(settings)
    return config


def model_of(vocab_size: int, **settings) -> Transformer:
    """The model of `config_of`."""
    return build_model(config_of(**settings), vocab_size)


def optimizer_of(config: Config, steps: int) -> optax.GradientTransformation:
    """That of a config in a run of so many updates."""
    return optimizer(resolve(override(config, {"steps": steps})).optimizer)


def noisy(params):
    """Larger weights than the initial ones make every path matter."""
    draw = np.random.default_rng(7)
    return jax.tree.map(lambda p: p + 0.2 * draw.normal(size=p.shape).astype(p.dtype), params)


def init(model: Transformer, batch: Batch, seed: int = 0):
    """Parameters of a model, noisy ones. Not jitted: to compile all the draws takes longer."""
    rngs = {"params": jax.random.key(seed)}
    return noisy(model.init(rngs, batch, False, method="loss")["params"])
