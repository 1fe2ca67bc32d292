"""How is a loss summed over some of the tokens only, at the cost of those? In blocks of them, as
many as there are: shapes are static, the number of blocks is not.
"""

import jax
import jax.numpy as jnp

from lm.output.total import Compute, Loss, zero_sums


def gathered(loss: Loss, block: int) -> Compute:
    """Computes a `total` over the tokens whose weight is not 0, exact for any number of them.

    They are brought to the front, and blocks of `block` tokens are computed until none is left. The
    loss must be finite for every token, whatever its weight. Where devices split the tokens, some
    need more blocks than others; those that split the words of the same tokens need as many.
    """

    def compute(params, shared, rows, hidden, targets, weights):
        counts = weights != 0
        count = jnp.sum(counts)
        # A last, partial block repeats token 0 with weight 0.
        order = jnp.pad(jnp.argsort(~counts, stable=True), (0, -len(hidden) % block))

        def total(params, hidden, rows, targets, weights):
            return jnp.sum(loss(params, shared, rows, hidden, targets) * weights)

        def unfinished(carry):
            return carry[0] * block < count

        def add(carry):
            index, value, of_params, of_hidden = carry
            here = jax.lax.dynamic_slice(order, (index * block,), (block,))
            real = index * block + jnp.arange(block) < count
            tokens = (hidden[here], rows[here], targets[here], jnp.where(real, weights[here], 0.0))
            found, (p, h) = jax.value_and_grad(total, argnums=(0, 1))(wide, *tokens)
            of_params = jax.tree.map(jnp.add, of_params, p)
            return (
                index + 1,
                value + found.astype(value.dtype),
                of_params,
                of_hidden.at[here].add(h),
            )

        start, wide, zeros = zero_sums(params, hidden)
        carry = (0, start, zeros, jnp.zeros_like(hidden))
        _, value, of_params, of_hidden = jax.lax.while_loop(unfinished, add, carry)
        return value, (of_params, of_hidden)

    return compute
