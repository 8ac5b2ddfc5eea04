"""Global positions in a batch: counted without padding, as fairseq counts positions.

`global(0)` is the first token of every sentence, wherever left padding puts it.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
