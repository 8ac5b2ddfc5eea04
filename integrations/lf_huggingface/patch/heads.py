"""Between a model's [B, N, E] and the operator's [B, H, N, D]."""

from __future__ import annotations

from torch import Tensor


def split(x: Tensor, heads: int) -> Tensor:
    """[B, N, E] as [B, H, N, D], a view."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def join(x: Tensor) -> Tensor:
    """[B, H, N, D] as [B, N, E]."""
    return x.transpose(1, 2).flatten(2)
