"""Global positions of a pattern in a batch: counted without padding, as fairseq counts positions.

`global(0)` is the first token of every sentence, wherever left padding puts it. A position beyond the end
of a batch does not exist in it.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lf_backend.pattern.named import Named
from lf_backend.pattern.terms import Global, Intersection, Pattern, Union, intersection, union


def within(pattern: Pattern, length: int) -> Pattern:
    """The pattern for so many keys: global positions beyond them dropped."""
    if not pattern.global_positions or pattern.global_positions[-1] < length:
        return pattern
    return _within(pattern, length)


def unplaced(pattern: Pattern) -> Pattern:
    """The pattern without its global positions, for keys that are marked instead."""
    return _within(pattern, 0) if pattern.global_positions else pattern


@lru_cache(maxsize=64)
def _within(pattern: Pattern, length: int) -> Pattern:
    if isinstance(pattern, Named):
        return _within(pattern.made, length) if pattern.global_positions else pattern
    if isinstance(pattern, Global):
        return Global(*(at for at in pattern.positions if at < length))
    if isinstance(pattern, Union):
        return union(*(_within(term, length) for term in pattern.terms))
    if isinstance(pattern, Intersection):
        return intersection(*(_within(term, length) for term in pattern.terms))
    return pattern


def at_ranks(positions: tuple[int, ...], padded: Tensor, before: Tensor | None = None) -> Tensor:
    """Bool [B, T], True where a token that is no padding has one of the positions.

    Args:
        positions: global positions.
        padded: bool [B, T], True = padding.
        before: [B], number of tokens, without padding, in front of these; 0 by default.
    """
    rank = (~padded).cumsum(1) - 1
    if before is not None:
        rank = rank + before[:, None]
    wanted = torch.tensor(positions, device=padded.device)
    return (rank[..., None] == wanted).any(-1) & ~padded
