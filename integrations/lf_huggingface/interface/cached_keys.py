"""Where the keys of a cache are, and in which order `lf_backend.attention` is to see them.

The operator takes queries as the last of all keys. A static cache has room behind them that is not written
yet; a `WindowCache` has dropped what lies between its global tokens and its window. Both are brought into
one layout, in which slots are as far from each other as positions are, wherever a window can reach.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lf_backend.pattern.terms import Pattern
from lf_huggingface.interface.encoded_mask import Mask, placed
from lf_huggingface.interface.mask_meaning import PAST


class Kept(int):
    """`kv_offset` of a `WindowCache`: the first position of the window, and global tokens before it.

    Attributes:
        sinks: positions of the leading keys, in order.
    """

    sinks: tuple[int, ...]

    def __new__(cls, first: int, sinks: tuple[int, ...]) -> Kept:
        made = super().__new__(cls, first)
        made.sinks = sinks
        return made


class Rolled(Kept):
    """`kv_offset` of a static `WindowCache`, whose window has `reach` slots, empty ones in front.

    Attributes:
        first: position of the first slot, below 0 if it is empty; an int before the first token.
    """

    first: Tensor | int

    def __new__(cls, seen: Tensor | int, reach: int, sinks: tuple[int, ...]) -> Rolled:
        made: Any = super().__new__(cls, 0, sinks)
        made.first = seen - reach
        return made  # type: ignore[no-any-return]


def positions(length: int, offset: int, device: torch.device | str) -> Tensor:
    """Positions [K] of the keys that a cache returns; below 0 for an empty slot."""
    if not isinstance(offset, Kept):
        return torch.arange(length, device=device) + offset
    sinks = torch.tensor(offset.sinks, dtype=torch.int64, device=device)
    first = offset.first if isinstance(offset, Rolled) else int(offset)
    return torch.cat([sinks, torch.arange(length - len(sinks), device=device) + first])


class Laid(NamedTuple):
    """Arguments of `lf_backend.attention`."""

    k: Tensor
    v: Tensor
    pattern: str
    key_padding: Tensor
    global_mask: Tensor | None


def with_sinks(k: Tensor, v: Tensor, pattern: Pattern, mask: Mask) -> Laid:
    """Keys [B, Hkv, K, D] of a `WindowCache`, which are in order: global tokens, window, queries."""
    bands = pattern.lowered.bands
    alike = all(layer.global_positions == pattern.global_positions for layer in mask.plan.layers)
    if mask.queries.shape[1] == 1 and alike and len(bands) == 1 and set(bands[0].dilations) == {1}:
        return Laid(k, v, PAST.text, mask.hidden, None)  # the cache keeps what one query sees
    return Laid(k, v, placed(pattern.text), mask.hidden, _marked(mask.positions, pattern))


def rolled(k: Tensor, v: Tensor, pattern: Pattern, mask: Mask) -> Laid:
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
    return Laid(k[:, :, index], v[:, :, index], placed(pattern.text), hidden, _marked(at, pattern))


def _marked(at: Tensor, pattern: Pattern) -> Tensor | None:
    """Bool [B, K], True at the pattern's global positions, or None if it names none."""
    if not pattern.global_positions:
        return None
    wanted = torch.tensor(pattern.global_positions, device=at.device)
    return (at[..., None] == wanted).any(-1)
