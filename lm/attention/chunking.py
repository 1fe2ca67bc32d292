"""Plans how much of attention is computed at once, by size, device and structure of the mask."""

import itertools

from lm.attention.blockwise import Part
from lm.attention.mask import Mask
from lm.devices.platform import platform

# Above this many scores per head, `query_chunk_size=None` computes blocks of queries.
_PLAIN_LIMIT = 1024 * 1024
_BLOCK = 128
# A causal triangle is computed in this many parts, each over the keys that it sees: of the
# square's work, 4 leave 5/8 and 8 leave 9/16.
# A training step on a CPU takes 1.07 times as long with the short square whole.
_SHORT_PARTS, _LONG_PARTS = 4, 8


def plan_blocks(
    queries: int, keys: int, mask: Mask, query_chunk_size: int | None
) -> tuple[Part, ...]:
    """The parts in which Q queries over S keys are computed; none: all at once.

    Args:
      queries: Q.
      keys: S.
      mask: its causal and window structure says which keys a block can skip.
      query_chunk_size: queries at a time; 0: all at once. None: on a CPU, short causal attention in
        parts that keep their weights; long attention in recomputed blocks; else all at once.
    """
    causal = mask.causal and mask.prefix is None
    # A query that stands earlier than its place sees no more than the triangle.
    early = isinstance(mask.offset, int) and mask.offset <= 0
    triangular = causal and queries == keys and (mask.offset is None or early)
    if query_chunk_size is None and queries * keys <= _PLAIN_LIMIT:
        if triangular and queries >= 32 and platform() == "cpu":
            ends = [queries * part // _SHORT_PARTS for part in range(_SHORT_PARTS + 1)]
            return tuple(Part(a, b - a, 1, b) for a, b in itertools.pairwise(ends))
        return ()
    block = _BLOCK if query_chunk_size is None else query_chunk_size
    if not block or block >= queries:
        return ()
    blocks = -(-queries // block)
    if mask.window is not None and queries == keys and mask.offset is None:
        back = mask.window - 1
        seen = block + back + (0 if causal else back)
        if seen < keys:
            return (Part(0, block, blocks, seen, back),)
    if not triangular:
        return (Part(0, block, blocks, keys),)
    # At least two blocks to a part, as one alone would keep its weights.
    count = 1 if platform() == "tpu" else max(1, min(_LONG_PARTS, blocks // 2))
    ends = [blocks * part // count for part in range(count + 1)]
    return tuple(
        Part(a * block, block, b - a, min(b * block, keys)) for a, b in itertools.pairwise(ends)
    )


def plan_block(queries: int, keys: int, query_chunk_size: int | None) -> Part:
    """The one part in which Q queries over S keys are computed, whatever the mask hides."""
    parts = plan_blocks(queries, keys, Mask(), query_chunk_size)
    return parts[0] if parts else Part(0, queries, 1, keys)


def describe(length: int, causal: bool, query_chunk_size: int | None) -> str:
    """How a row of this length is computed without a kernel, as a run's log says it."""
    parts = plan_blocks(length, length, Mask(causal=causal), query_chunk_size)
    if not parts:
        return f"{length} queries at once"
    kept = "kept" if parts[0].blocks == 1 else "recomputed in the backward pass"
    keys = " to ".join(str(part.keys) for part in (parts[0], parts[-1])[-len(parts) :])
    return f"{parts[-1].size} queries at a time over {keys} keys, weights {kept}"
