"""The oracle: dense attention under the pattern's mask, written for reading, differentiated by autograd.

It shares with the library only the definition of the pattern (`Pattern.sees`) and of dropped weights
(`dropout.keep`). In float64 it is the truth; in another dtype it is the *eager* computation whose own
error is the budget of a backend: products in that dtype, softmax in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from lf_backend.numerics import dropout
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.pattern.terms import Pattern


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    key_padding: Tensor | None = None,
    global_mask: Tensor | None = None,
    global_positions: Tensor | None = None,
    documents: Tensor | None = None,
    global_q: Tensor | None = None,
    global_k: Tensor | None = None,
    global_v: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    band_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Out [B, H, N, D] and lse [B, H, N] of `lf_backend.attention`'s arguments, in memory N x M.

    Args:
        seed: the seed of dropout, which the library draws and the oracle is given.
    """
    batch, heads, queries, dim = q.shape
    keys, group = k.shape[2], heads // k.shape[1]
    padding = q.new_zeros(batch, keys, dtype=torch.bool) if key_padding is None else key_padding
    if global_positions is not None:
        global_mask = torch.zeros_like(padding)
        for marks, positions in zip(global_mask, global_positions, strict=True):
            marks[positions[positions >= 0].long()] = True
    if documents is None:
        documents = torch.zeros_like(padding, dtype=torch.int64)
    visible = _visible(pattern, global_mask, padding, documents, heads, queries)
    bias = None if band_bias is None else _dense_bias(band_bias, pattern, keys)
    keep = None
    if dropout_p:
        assert seed is not None, "dropout needs the seed that the call drew"
        keep = _keep(seed, dropout_p, batch, heads, queries, keys, accumulation_dtype(q.dtype))
    scale = dim**-0.5 if scale is None else scale
    padded_rows = padding[:, None, keys - queries :, None]

    def rows(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        q = q.masked_fill(padded_rows, 0)
        k, v = (x.masked_fill(padding[:, None, :, None], 0).repeat_interleave(group, 1) for x in (k, v))
        return _softmax_rows(q, k, v, visible, scale, softcap, bias, sinks, keep)

    out, lse = rows(q, k, v)
    if global_q is not None and global_k is not None and global_v is not None:
        own_out, own_lse = rows(global_q, global_k, global_v)
        own = _globals(pattern, global_mask, padding, documents)[:, None, keys - queries :]
        out, lse = torch.where(own[..., None], own_out, out), torch.where(own, own_lse, lse)
    return out.masked_fill(padded_rows, 0), lse.masked_fill(padded_rows[..., 0], -torch.inf)


def _softmax_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    scale: float,
    softcap: float | None,
    bias: Tensor | None,
    sinks: Tensor | None,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    scores = (q @ k.mT).to(accumulation_dtype(q.dtype)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~visible, -torch.inf)
    lse = scores.logsumexp(-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None].expand_as(lse))
    seen = visible.any(-1)
    weights = (scores - lse.masked_fill(~seen, 0)[..., None]).exp()
    if keep is not None:
        weights = weights * keep
    return weights.to(v.dtype) @ v, lse


def _globals(pattern: Pattern, global_mask: Tensor | None, padding: Tensor, documents: Tensor) -> Tensor:
    """Bool [B, M]: global tokens of every example; a padded one is padding."""
    lowered = pattern.lowered if global_mask is None else pattern.lowered_with_globals
    mask = torch.zeros_like(padding) if global_mask is None else global_mask.clone()
    for example, first, end in _runs(documents):
        for position in lowered.positions:
            if position < end - first:
                mask[example, first + position] = True
    return mask & ~padding


def _visible(
    pattern: Pattern, global_mask: Tensor | None, padding: Tensor, documents: Tensor, heads: int, queries: int
) -> Tensor:
    """Bool [B, H, N, M]: the pattern of every document, and per-example globals as rows and as columns."""
    (batch, keys), device = padding.shape, padding.device
    before = keys - queries
    seen = torch.zeros(batch, heads, queries, keys, dtype=torch.bool, device=device)
    head = torch.arange(heads, device=device)[:, None, None]
    for example, first, end in _runs(documents):
        key = torch.arange(end - first, device=device)
        query = key[max(before - first, 0) :, None]
        own = torch.as_tensor(pattern.sees(head, query, key))
        if global_mask is not None:
            mask = (global_mask & ~padding)[example, first:end]
            either = mask | mask[query]
            own = own | (either & (key <= query) if pattern.is_causal else either)
        seen[example, :, max(first - before, 0) : max(end - before, 0), first:end] = own
    return seen & ~padding[:, None, None, :]


def _runs(documents: Tensor) -> Iterator[tuple[int, int, int]]:
    """Example, first position and end of every document."""
    for example, ids in enumerate(documents.tolist()):
        first = 0
        for _, run in groupby(ids):
            count = len(list(run))
            yield example, first, first + count
            first += count


def _dense_bias(bias: Tensor, pattern: Pattern, keys: int) -> Tensor:
    """[1 or B, H, N, M] with the tap's value at every pair of the only window, else 0."""
    (band,) = pattern.lowered.bands
    assert band.left is not None, "a window with a bias is limited"
    heads, queries, taps = bias.shape[1:]
    dilation = torch.tensor([band.dilation(head) for head in range(heads)], device=bias.device)[:, None, None]
    query = torch.arange(keys - queries, keys, device=bias.device)[:, None]
    distance = torch.arange(keys, device=bias.device) - query
    tap = torch.div(distance, dilation, rounding_mode="floor") + band.left
    inside = (distance % dilation == 0) & (tap >= 0) & (tap < taps)
    index = tap.clamp(0, taps - 1).expand(len(bias), heads, queries, keys)
    return bias.to(accumulation_dtype(bias.dtype)).gather(-1, index) * inside


def _keep(
    seed: Tensor, p: float, batch: int, heads: int, queries: int, keys: int, dtype: torch.dtype
) -> Tensor:
    head, query, key = (
        torch.arange(*ends, device=seed.device) for ends in ((heads,), (keys - queries, keys), (keys,))
    )
    return torch.stack([dropout.keep(seed, b, head, query, key, p, dtype) for b in range(batch)])
