"""Models of transformers beside which ours are timed."""

from typing import Any


def gpt2_trainer(
    vocab_size: int,
    length: int,
    num_layers: int,
    d_model: int,
    num_heads: int,
    activation: str = "gelu_new",
    device: str = "cpu",
) -> tuple[Any, Any]:
    """A GPT-2 of transformers without dropout on a device, in training mode, and its AdamW."""
    import torch
    import transformers

    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=length,
        n_embd=d_model,
        n_layer=num_layers,
        n_head=num_heads,
        activation_function=activation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = transformers.GPT2LMHeadModel(config)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    return model, optimizer
