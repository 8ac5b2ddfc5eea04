"""Keys of one call of the attention, as `lf_backend.attention` takes them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lf_backend.errors import UnsupportedError
from lf_backend.pattern.terms import Pattern
from lf_fairseq.attention import global_positions, mask_bits


class Laid(NamedTuple):
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


def whole(k: Tensor, v: Tensor, pattern: Pattern, mask: Tensor | None) -> Laid:
    """All keys of a sequence, under a mask of `marks`, uint8 or bool [B, M], that counts no positions yet."""
    if mask is None:
        return Laid(k, v, global_positions.within(pattern, k.shape[2]))
    padded, marked = mask_bits.padded(mask), mask_bits.marked(mask)
    if pattern.global_positions:
        check_movable(pattern)
        placed = global_positions.at_ranks(pattern.global_positions, padded)
        marked = placed if marked is None else marked | placed
    return Laid(k, v, global_positions.unplaced(pattern), padded, marked)


def check_movable(pattern: Pattern) -> None:
    """Raise UnsupportedError for global positions that are more than a union with the rest.

    Raises:
        UnsupportedError: padding moves global tokens, and here a rule goes with them.
    """
    if pattern.lowered.positions != pattern.global_positions:
        raise UnsupportedError(
            f"pattern: global positions joined by | alone wanted in a batch with padding, got {pattern}"
        )
