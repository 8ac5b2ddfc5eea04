"""Keys of one call of the attention, as `lf_backend.attention` takes them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lf_backend.pattern.global_positions import unplaced, within
from lf_backend.pattern.terms import Pattern
from lf_fairseq.attention import global_positions, mask_bits


class OrderedKeys(NamedTuple):
    """Keys in their order, the queries' own last.

    Attributes:
        k, v: [B, H, M, D].
        pattern: what the queries see of them.
        key_padding, global_mask: bool [B, M] or None.
    """

    k: Tensor
    v: Tensor
    pattern: Pattern
    key_padding: Tensor | None = None
    global_mask: Tensor | None = None


def whole(k: Tensor, v: Tensor, pattern: Pattern, mask: Tensor | None) -> OrderedKeys:
    """All keys of a sequence, under a mask of `marks`, uint8 or bool [B, M], that counts no positions yet.

    Raises:
        UnsupportedError: padding moves global tokens, and a rule of the pattern would go with them.
    """
    if mask is None:
        return OrderedKeys(k, v, within(pattern, k.shape[2]))
    padded, marked = mask_bits.padded(mask), mask_bits.marked(mask)
    if pattern.global_positions:
        placed = global_positions.at_ranks(pattern.global_positions, padded)
        marked = placed if marked is None else marked | placed
    return OrderedKeys(k, v, unplaced(pattern), padded, marked)
