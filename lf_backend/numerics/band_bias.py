"""`band_bias` [H, N, taps] as a dense rectangle [H, N, M], and back; for what is dense anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from lf_backend.pattern.bands import Band


def spread(bias: Tensor, band: Band, queries: Tensor, keys: int) -> Tensor:
    """Rectangle [H, N, keys] with bias[h, n, t] at key queries[n] + dilation * (t - left), else 0."""
    at, inside = _keys(bias, band, queries, keys)
    dense = bias.new_zeros(*bias.shape[:2], keys)
    return dense.scatter_add_(-1, at, bias * inside)  # taps outside add 0 at a clamped key


def collect(dense: Tensor, band: Band, queries: Tensor, taps: int) -> Tensor:
    """The transpose of `spread`: values [H, N, taps] read from a rectangle [H, N, keys]."""
    shape = torch.empty(*dense.shape[:2], taps, device="meta")
    at, inside = _keys(shape, band, queries, dense.shape[-1])
    return dense.gather(-1, at) * inside


def _keys(bias: Tensor, band: Band, queries: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    heads, _, taps = bias.shape
    assert band.left is not None, "a band with bias has limits"
    dilations = torch.tensor([band.dilation(head) for head in range(heads)], device=queries.device)
    steps = torch.arange(taps, device=queries.device) - band.left
    at = queries[None, :, None] + dilations[:, None, None] * steps  # [H, N, taps]
    return at.clamp(0, max(keys - 1, 0)), (at >= 0) & (at < keys)
