"""A conditional random field: a linear chain over the tags of a row."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.output.base import Head


class CrfHead(Head):
    """Linear-chain conditional random field over V tags (Lafferty et al. 2001).

    p(y | h) = exp(sum_t z_t[y_t] + sum_t T[y_t-1, y_t]) / Z, z = h W' + b; T begins at zero.

    Unlike other heads it takes rows, hidden [B, L, D] and targets [B, L] (or one row, [L, D]
    and [L]), and `where`, [B, L]: positions that are not there are left out, and those beside them
    become neighbours. `loss` gives each position -log p(y_t | y_1 .. y_t-1, h), so that a row's sum
    is the chain's -log p(y | h) and a mean over tokens is comparable with other heads';
    `log_probs` gives the marginals log p(y_t = v | h). Every position looks at the whole row, so it
    suits the labels of a text, and not its next words.
    """

    sequence_level = True

    @nn.compact
    def potentials(
        self, hidden: jax.Array, embedding: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Scores of the tags, [..., L, V], and of their transitions, [V, V], from row to column."""
        shape, zeros = (self.vocab_size, self.vocab_size), nn.initializers.zeros
        z = self.project(hidden.reshape(-1, self.d_model), self.table(embedding))
        z += self.param("bias", zeros, (self.vocab_size,), self.param_dtype)
        transitions = self.param("transitions", zeros, shape, self.param_dtype)
        return z.reshape(*hidden.shape[:-1], -1), transitions.astype(z.dtype)

    def loss(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
        where: jax.Array | None = None,
    ) -> jax.Array:
        """Training loss per position in nats, shaped as the targets; 0 where nothing is."""
        z, transitions = self.potentials(hidden, embedding)
        return _chain_nats(z, transitions, jnp.asarray(targets), _all_if_none(where, z))

    negative_log_likelihood = loss

    def loss_sum(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
        embedding: jax.Array | None = None,
        step: jax.Array | None = None,
    ) -> jax.Array:
        """The weighted sum of `loss`, in chains over the positions of weight above 0."""
        return jnp.sum(self.loss(hidden, targets, embedding, weights > 0) * weights)

    def per_token(
        self,
        method: str,
        hidden: jax.Array,
        targets: jax.Array,
        embedding: jax.Array | None = None,
        where: jax.Array | None = None,
        full_vocab: bool = False,
    ) -> Any:
        """A method of whole rows, in chains over the positions `where` something is."""
        del full_vocab
        return getattr(self, method)(hidden, targets, embedding, where)

    def log_probs(
        self, hidden: jax.Array, embedding: jax.Array | None = None, where: jax.Array | None = None
    ) -> jax.Array:
        """Marginal log-probabilities of the tags, [..., L, V] in nats."""
        z, transitions = self.potentials(hidden, embedding)
        return _marginals(z, transitions, _all_if_none(where, z))

    def best(
        self, hidden: jax.Array, embedding: jax.Array | None = None, where: jax.Array | None = None
    ) -> jax.Array:
        """The likeliest row of tags, [..., L] (Viterbi); of positions that are not there, any."""
        z, transitions = self.potentials(hidden, embedding)
        return _best(z, transitions, _all_if_none(where, z))


def _all_if_none(where: jax.Array | None, z: jax.Array) -> jax.Array:
    return jnp.ones(z.shape[:-1], bool) if where is None else where


@functools.partial(jnp.vectorize, signature="(l,v),(v,v),(l),(l)->(l)")
def _chain_nats(z, transitions, targets, where):
    """-log p(y_t | y_<t) of one row, [L]; messages come from the right."""

    def back(message, inputs):
        z, target, visible = inputs
        # `joint` is the log weight of all that follows, for each tag here.
        joint = z + message
        before = jax.nn.logsumexp(transitions + joint, axis=-1)
        found = (joint[target], jax.nn.logsumexp(joint), before)
        return jnp.where(visible, before, message), found

    start = jnp.zeros_like(z[0])
    _, (own, first, before) = jax.lax.scan(back, start, (z, targets, where), reverse=True)

    def forward(previous, inputs):
        own, first, before, target, visible = inputs
        step = jnp.where(previous < 0, 0.0, transitions[previous, target])
        nats = jnp.where(previous < 0, first, before[previous]) - own - step
        return jnp.where(visible, target, previous), jnp.where(visible, nats, 0.0)

    none = jnp.full((), -1, targets.dtype)
    return jax.lax.scan(forward, none, (own, first, before, targets, where))[1]


@functools.partial(jnp.vectorize, signature="(l,v),(v,v),(l)->(l,v)")
def _marginals(z, transitions, where):
    def back(message, inputs):
        z, visible = inputs
        before = jax.nn.logsumexp(transitions + z + message, axis=-1)
        return jnp.where(visible, before, message), message

    def forward(message, inputs):
        z, visible = inputs
        both = z + message
        after = jax.nn.logsumexp(both[:, None] + transitions, axis=0)
        return jnp.where(visible, after, message), both

    nothing = jnp.zeros_like(z[0])
    _, behind = jax.lax.scan(back, nothing, (z, where), reverse=True)
    _, before = jax.lax.scan(forward, nothing, (z, where))
    return jax.nn.log_softmax(before + behind, axis=-1)


@functools.partial(jnp.vectorize, signature="(l,v),(v,v),(l)->(l)")
def _best(z, transitions, where):
    def back(message, inputs):
        z, visible = inputs
        joint = z + message
        return jnp.where(visible, jnp.max(transitions + joint, axis=-1), message), joint

    def forward(previous, inputs):
        joint, visible = inputs
        tag = jnp.argmax(joint + jnp.where(previous < 0, 0.0, transitions[previous]))
        return jnp.where(visible, tag, previous), tag

    _, joint = jax.lax.scan(back, jnp.zeros_like(z[0]), (z, where), reverse=True)
    none = jnp.full((), -1, jnp.argmax(z[0]).dtype)
    return jax.lax.scan(forward, none, (joint, where))[1]
