"""Transformer-XL's relative sinusoidal positions inside a sliding window, in linear memory.

Dai et al. 2019 (arXiv 1901.02860), section 3.3, without memory: the score of query i and key j of a head is

    ((q_i + u) . k_j + (q_i + v) . W R[i - j]) * scale

with R[d] the sinusoidal embedding of distance d and u, v, W learned. A window shows a query only `taps`
keys, at the distances (left - tap) * dilation of the head, so the second product is a rectangle
[B, H, N, taps]: it goes into `lf_backend.attention` as the band bias, and q + u as its queries. No N x N
matrix exists, forward or backward.

That rectangle is as large as the scores of the window. Where all layers of a long sequence must keep one
for the backward pass it is most of the memory, so `attention` can work on blocks of queries whose
rectangles are computed again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lf_backend as lf
from lf_backend.errors import PatternError, ShapeError
from lf_backend.pattern.bands import Band

PERIOD = 10000.0  # the longest wave, as in Vaswani et al. 2017, section 3.5


def band(pattern: lf.Pattern) -> Band:
    """The window of a pattern that is exactly one limited window.

    Raises:
        PatternError: global tokens, predicates, several windows or one without a limit: what they show has
            no tap, and so would have no position.
    """
    lowered = pattern.lowered
    others = lowered.positions or lowered.others or pattern.global_positions
    if others or len(lowered.bands) != 1 or lowered.bands[0].taps() is None:
        raise PatternError(f"relative positions: a pattern of one limited window wanted, got {pattern}")
    return lowered.bands[0]


def distances(pattern: lf.Pattern, dilation: int) -> tuple[int, ...]:
    """Query minus key, in positions, at every tap of the window of a head with that dilation."""
    window = band(pattern)
    taps, left = window.taps(), window.left
    assert taps is not None and left is not None, "band() has refused windows without limits"
    return tuple((left - tap) * dilation for tap in range(taps))


def sinusoids(distance: Tensor, width: int) -> Tensor:
    """R, float32 [..., width] (float64 for float64 distances): sines, then cosines, as in Transformer-XL.

    Args:
        distance: query minus key, in positions.
        width: even.
    """
    if width % 2:
        raise ShapeError(f"width: an even number wanted, got {width}")
    distance = distance if distance.dtype == torch.float64 else distance.float()
    steps = torch.arange(0, width, 2, dtype=distance.dtype, device=distance.device)
    angles = distance[..., None] / PERIOD ** (steps / width)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def keys_of_positions(pattern: lf.Pattern, weight: Tensor, heads: int) -> Tensor:
    """W R at every tap of every head: [H, taps, D].

    Args:
        pattern: one limited window, with one dilation or one per head.
        weight: W of all heads, [H * D, C] with C even.
        heads: H.
    """
    window, width = band(pattern), weight.shape[1]
    pattern.check_heads(heads)
    dilations = [window.dilation(head) for head in range(heads)]
    per_head = weight.view(heads, -1, width)  # [H, D, C]
    found: list[Any] = [None] * heads
    for dilation in sorted(set(dilations)):
        members = [head for head in range(heads) if dilations[head] == dilation]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        distance = torch.tensor(distances(pattern, dilation), dtype=dtype, device=weight.device)
        waves = sinusoids(distance, width).to(weight.dtype)
        for head, keys in zip(members, waves @ per_head[members].mT, strict=True):
            found[head] = keys
    return torch.stack(found)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: lf.Pattern,
    weight: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    *,
    key_padding: Tensor | None = None,
    dropout_p: float = 0.0,
    block: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Attention under a window with relative positions, scale D ** -0.5; differentiable in all tensors.

    Args:
        q: [B, H, N, D]; the queries are the last N of the M positions.
        k, v: [B, H, M, D].
        pattern: one limited window.
        weight: W, [H * D, C].
        content_bias: u, [H, D].
        position_bias: v of the paper, [H, D].
        key_padding: bool [B, M], True = padded.
        dropout_p: probability of dropping a weight.
        block: queries whose position scores exist at a time, forward and backward, where they are then
            computed twice; 0 computes all at once and keeps them for the backward pass.
        backend: as in `lf_backend.attention`.

    Returns:
        [B, H, N, D] in the dtype of q.

    Raises:
        PatternError: a pattern that is more than one limited window, or written for other heads.
        ShapeError: what `lf_backend.attention` refuses.
    """
    positions = keys_of_positions(pattern, weight, q.shape[1])  # [H, taps, D]
    scale = q.shape[-1] ** -0.5

    def attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, padding: Tensor | None) -> Tensor:
        bias = (q + position_bias[:, None]) @ (positions * scale).mT  # [B, H, N, taps]
        return lf.attention(
            q + content_bias[:, None],
            k,
            v,
            pattern,
            key_padding=padding,
            scale=scale,
            band_bias=bias,
            dropout_p=dropout_p,
            backend=backend,
        )

    if block == 0:
        return attend(q, k, v, positions, key_padding)
    found = []
    for queries, keys in _blocks(pattern, q.shape[2], k.shape[2], block):
        padding = None if key_padding is None else key_padding[:, keys]
        part = (q[:, :, queries], k[:, :, keys], v[:, :, keys], positions, padding)
        found.append(checkpoint(attend, *part, use_reentrant=False))
    return torch.cat(found, dim=2)


def _blocks(pattern: lf.Pattern, n: int, m: int, block: int) -> list[tuple[slice, slice]]:
    """Slices of the queries, and of the keys that these see between them."""
    back, ahead = band(pattern).span()
    assert back is not None and ahead is not None, "band() has refused windows without limits"
    if ahead:
        raise PatternError(f"block: a causal window wanted for blocks of queries, got {pattern}")
    offset = m - n  # of the first query
    starts = range(0, n, block)
    return [
        (slice(at, min(at + block, n)), slice(max(offset + at - back, 0), offset + min(at + block, n)))
        for at in starts
    ]
