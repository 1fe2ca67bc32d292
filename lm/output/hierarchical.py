"""The hierarchical softmax: a token is drawn along a binary tree, short for frequent tokens."""

import functools
import heapq
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.output.base import Head


class HierarchicalHead(Head):
    """Softmax along a Huffman tree (Morin, Bengio 2005; Mikolov et al. 1310.4546).

    -log p(token) = sum over the nodes on its path of softplus(-s h . v_node), s = 1 where the path
    goes right and -1 where left. The leaves sum to one without a normaliser, and a target costs the
    length of its path, about the text's entropy in bits.

    Attributes:
      counts: of tokens in the training text, [V], of which the tree is made (plus one each); None:
        all alike.
    """

    counts: Sequence[int] | np.ndarray | None = None

    tieable = False
    needs_counts = True

    def setup(self) -> None:
        """Makes the vectors of the tree's nodes."""
        shape = (self.vocab_size - 1, self.d_model)
        self.nodes = self.param("node_table", self.table_init, shape, self.param_dtype)

    @property
    def tree(self) -> "Tree":
        """The Huffman tree."""
        counts = None if self.counts is None else np.asarray(self.counts, np.int64).tobytes()
        return huffman(self.vocab_size, counts)

    @property
    def logits_per_token(self) -> int:
        """The vectors of a target's path are gathered for it."""
        return self.tree.path.shape[1] * self.d_model

    def negative_log_likelihood(
        self, hidden: jax.Array, targets: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """-log p(target) in nats, [N]."""
        path, turns = jnp.asarray(self.tree.path)[targets], jnp.asarray(self.tree.turns)[targets]
        scores = self.project_each(hidden, self.nodes[path])
        # Beyond the end of a path, turns are 0.
        branches = jnp.where(turns == 0, 0.0, jax.nn.softplus(-turns * scores))
        return jnp.sum(branches, axis=-1)

    def log_probs(self, hidden: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Log-probabilities [N, V] in nats, of hidden [N, D]; all nodes, level by level."""
        scores = self.project(hidden, self.nodes)
        right, left = jax.nn.log_sigmoid(scores), jax.nn.log_sigmoid(-scores)
        level, tokens, found = np.array([self.vocab_size - 2]), [], []
        reached = jnp.zeros((hidden.shape[0], 1), scores.dtype)
        while level.size:
            children = self.tree.children[level].T.reshape(-1)
            both = [reached + left[:, level], reached + right[:, level]]
            both = jnp.concatenate(both, axis=-1)
            leaf = children < 0
            tokens.append(~children[leaf])
            found.append(both[:, leaf])
            level, reached = children[~leaf], both[:, ~leaf]
        return jnp.concatenate(found, axis=-1)[:, np.argsort(np.concatenate(tokens))]

    def sample(
        self, hidden: jax.Array, key: jax.Array, embedding: jax.Array | None = None
    ) -> jax.Array:
        """Draws a token for every hidden state, [N], by one walk down the tree."""
        children, nodes = jnp.asarray(self.tree.children), self.nodes

        def walk(carry):
            depth, here = carry
            vectors = nodes[jnp.maximum(here, 0)].astype(jnp.float32)
            scores = jnp.einsum("nd,nd->n", hidden.astype(jnp.float32), vectors)
            turn = jax.random.bernoulli(jax.random.fold_in(key, depth), jax.nn.sigmoid(scores))
            below = children[jnp.maximum(here, 0), turn.astype(jnp.int32)]
            return depth + 1, jnp.where(here < 0, here, below)

        start = (0, jnp.full(len(hidden), self.vocab_size - 2, jnp.int32))
        return ~jax.lax.while_loop(lambda carry: jnp.any(carry[1] >= 0), walk, start)[1]


class Tree(NamedTuple):
    """A binary tree over V tokens; its root is node V - 2.

    Attributes:
      path: nodes from the root to each token, int32 [V, longest], then zeros.
      turns: at each of them, 1 where the path goes right, -1 where left, and 0 beyond its end.
      children: left and right of each node, [V - 1, 2]; ~token (below zero) at the leaves.
    """

    path: np.ndarray
    turns: np.ndarray
    children: np.ndarray


@functools.lru_cache(maxsize=4)
def huffman(vocab_size: int, counts: bytes | None) -> Tree:
    """The tree in which tokens of counts n have the shortest paths on average.

    Args:
      vocab_size: V, at least 2.
      counts: int64 [V] as bytes, or None for a balanced tree; each is taken plus one.
    """
    weights = np.ones(vocab_size) if counts is None else np.frombuffer(counts, np.int64) + 1
    heap = [(int(weight), ~token) for token, weight in enumerate(weights)]
    heapq.heapify(heap)
    children = np.zeros((vocab_size - 1, 2), np.int32)
    for node in range(vocab_size - 1):
        (first, left), (second, right) = heapq.heappop(heap), heapq.heappop(heap)
        children[node] = left, right
        heapq.heappush(heap, (first + second, node))
    paths: list[list[int]] = [[] for _ in range(vocab_size)]
    turns: list[list[int]] = [[] for _ in range(vocab_size)]
    waiting = [(vocab_size - 2, [], [])]
    while waiting:
        node, path, turned = waiting.pop()
        if node < 0:
            paths[~node], turns[~node] = path, turned
            continue
        for child, turn in zip(children[node].tolist(), (-1, 1), strict=True):
            waiting.append((child, [*path, node], [*turned, turn]))
    longest = max(map(len, paths))
    return Tree(
        np.array([[*p, *[0] * (longest - len(p))] for p in paths], np.int32),
        np.array([[*t, *[0] * (longest - len(t))] for t in turns], np.int8),
        children,
    )
