"""Positions of the keys of a cache, and the order in which `lf_backend.attention` sees them.

The operator takes queries as the last of all keys. A static cache has room behind them that is not written
yet; a `WindowCache` has dropped what lies between its global tokens and its window. Both are brought into
one layout, in which slots are as far from each other as positions are, wherever a window can reach.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend.errors import UnsupportedError
from lf_backend.pattern.global_positions import unplaced
from lf_backend.pattern.terms import Pattern
from lf_huggingface.interface.carried_mask import Mask
from lf_huggingface.interface.mask_meaning import PAST


class Kept:
    """`kv_offset` of a `WindowCache`: global tokens, and a window behind them.

    Attributes:
        first: position of the first key of the window.
        sinks: positions of the leading keys, in order.
    """

    def __init__(self, first: Tensor | int, sinks: tuple[int, ...]) -> None:
        self.first, self.sinks = first, sinks


class Rolled(Kept):
    """`kv_offset` of a static `WindowCache`: its first slots are empty, below 0, until the window is full."""


def positions(length: int, offset: Kept | int, device: torch.device | str) -> Tensor:
    """Positions [K] of the keys that a cache returns; below 0 for an empty slot."""
    if not isinstance(offset, Kept):
        return torch.arange(length, device=device) + offset
    sinks = torch.tensor(offset.sinks, dtype=torch.int64, device=device)
    return torch.cat([sinks, torch.arange(length - len(sinks), device=device) + offset.first])


class OrderedKeys(NamedTuple):
    """Arguments of `lf_backend.attention`."""

    k: Tensor
    v: Tensor
    pattern: Pattern
    key_padding: Tensor
    global_mask: Tensor | None


def with_sinks(k: Tensor, v: Tensor, pattern: Pattern, mask: Mask) -> OrderedKeys:
    """Keys [B, Hkv, K, D] of a `WindowCache`, which are in order: global tokens, window, queries."""
    bands = pattern.lowered.bands
    alike = all(layer.global_positions == pattern.global_positions for layer in mask.kind.layers)
    if mask.queries.shape[1] == 1 and alike and len(bands) == 1 and set(bands[0].dilations) == {1}:
        return OrderedKeys(k, v, PAST, mask.hidden, None)  # the cache keeps what one query sees
    return OrderedKeys(k, v, _moved(pattern), mask.hidden, _marked(mask.positions, pattern))


def rolled(k: Tensor, v: Tensor, pattern: Pattern, mask: Mask) -> OrderedKeys:
    """Keys [B, Hkv, K, D] of a static cache: as many as a window can reach, the queries' own last."""
    queries, slots = mask.queries.shape[1], k.shape[2]
    reach, length = pattern.lowered.reach, slots
    if not pattern.global_positions and reach is not None:
        length = min(slots, reach + queries)
    end = mask.queries[0, -1] + 1
    index = torch.arange(length, device=k.device) + end - length
    before = index < 0
    index = index.clamp(min=0)
    hidden = mask.hidden[:, index] | before
    at = torch.where(before, -1, index).expand(k.shape[0], -1)
    return OrderedKeys(k[:, :, index], v[:, :, index], _moved(pattern), hidden, _marked(at, pattern))


def _moved(pattern: Pattern) -> Pattern:
    """Return the pattern for keys that are not at their positions."""
    if pattern.lowered.others:
        raise UnsupportedError(
            f"pattern: windows and global tokens wanted for a cache that drops keys, got {pattern}"
        )
    return unplaced(pattern)


def _marked(at: Tensor, pattern: Pattern) -> Tensor | None:
    """Bool [B, K], True at the pattern's global positions, or None if it names none."""
    if not pattern.global_positions:
        return None
    wanted = torch.tensor(pattern.global_positions, device=at.device)
    return (at[..., None] == wanted).any(-1)
