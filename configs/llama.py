"""Fine-tuning of a Llama by low-rank updates (LoRA, 2106.09685), on text.

Command   python run.py plan --config=configs/llama.py:8b --on=v5e-64
          python run.py train --config=configs/llama.py:8b --config.init_from=hf:FOLDER
          --config.data.source=files:PATTERN --workdir=runs/llama
Sizes     :8b   the shape of Llama 3.1 8B, 8.0 B parameters, 21 M of them trained (the default)
          :tiny the same layers, of 128 features, on bytes
Start     The checkpoint that init_from names sets the model, the tokenizer and its vocabulary; the
          sizes here are for planning without it.
Time      :8b wants a TPU slice or several GPUs; see docs/howto/planning.md.
"""

from configs import default
from configs.sizes import pick, spread


def get_config(arg: str | None = None):
    """The config of a size: "8b" or "tiny"."""
    config = default.get_config()
    config.model.activation = "swiglu"
    config.model.bias = False
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-5
    config.model.position_embedding = "rotary"
    config.model.depth_scaled_init = False
    config.output.tied = False
    config.finetuning.method = "lora"
    config.finetuning.rank = 8
    config.finetuning.target_modules = ("query", "key", "value", "out", "gate", "in")
    config.optimizer.learning_rate = 2e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.b2 = 0.999
    pick(arg, {"8b": _8b, "tiny": _tiny})(config)
    return config


def _8b(config) -> None:
    config.steps = 2000
    config.batch_size = 64
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 128_256
    config.data.seq_len = 2048
    config.model.num_layers = 32
    config.model.d_model = 4096
    config.model.num_heads = 32
    config.model.num_kv_heads = 8
    config.model.mlp_dim = 14_336
    config.model.max_seq_len = 8192
    config.model.rope_theta = 500_000.0
    config.model.scan = True
    config.model.remat = True
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "bfloat16"
    config.schedule.warmup_steps = 100
    spread(config)
    config.evaluation.every = config.checkpoint.every = 500


def _tiny(config) -> None:
    config.model.mlp_dim = 384
    config.model.num_kv_heads = 2
