"""Keys of global tokens and of rules, and the rows of global tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend._device_constants import on_device
from lf_backend.backend import Call, Columns
from lf_backend.backends.portable.pieces import Piece, attend, kept, of_heads, together
from lf_backend.pattern.bands import Band


def column_piece(call: Call, columns: Columns) -> Piece:
    """Return the piece of the global columns, [B, H, N, ...], without pairs that a band shows."""
    at, heads = columns.positions, _callers.fixed_size(call.q, 1)
    queries = torch.arange(call.q.shape[2], device=at.device) + call.offset
    distance = at[:, None, None] - queries[:, None]  # [B, 1, N, G]
    visible = columns.valid[:, None, None] & ~_in_bands(call, distance)
    if columns.causal:
        visible = visible & (distance <= 0)
    if call.documents is not None:
        start = call.documents.start
        visible = visible & (start.gather(1, at)[:, None] == start[:, queries][..., None])[:, None]
    k, v = (_taken(of_heads(x, heads), at) for x in (call.k, call.v))
    numbers = torch.arange(heads, device=at.device)[:, None, None]
    keep = kept(call, numbers, queries[:, None], at[:, None, None])
    return attend(call, call.q, k, v, visible, None, keep)


def rule_piece(call: Call) -> Piece:
    """Return the piece of the rules, every query with every key, without pairs of bands and columns."""
    device, heads = call.q.device, _callers.fixed_size(call.q, 1)
    numbers = torch.arange(heads, device=device)[:, None, None]
    keys = torch.arange(call.k.shape[2], device=device)
    queries = (torch.arange(call.q.shape[2], device=device) + call.offset)[:, None]
    seen = torch.zeros((), dtype=torch.bool, device=device)
    asked = (queries, keys)
    if call.documents is not None:
        start = call.documents.start[:, None]
        asked = (queries - start[:, :, queries], keys - start[:, :, None])
    for rule in call.lowered.others:
        seen = seen | rule.sees(numbers, *asked)
    visible = seen & ~_in_bands(call, (keys - queries)[None])
    visible = (
        visible[None] if call.documents is None else visible & together(call.documents, queries, keys[None])
    )
    if call.columns is not None:  # where columns are causal, so are the rules
        at, valid, _ = call.columns
        is_global = ((at[..., None] == keys) & valid[..., None]).any(1)
        visible = visible & ~is_global[:, None, None]
    if call.key_padding is not None:
        visible = visible & ~call.key_padding[:, None, None]
    k, v = of_heads(call.k, heads), of_heads(call.v, heads)
    return attend(call, call.q, k, v, visible, None, kept(call, numbers, queries, keys))


def row_piece(call: Call, own: tuple[Tensor, Tensor, Tensor], columns: Columns) -> Piece:
    """Return the piece of the rows of global tokens, [B, H, G, ...], over all keys.

    Args:
        call: the local part.
        own: q, k, v of the rows, which may have projections of their own.
        columns: positions of the global tokens. Rows that are not valid, or not among the queries, hold
            anything.
    """
    q, k, v = own
    at, heads = columns.positions, _callers.fixed_size(q, 1)
    keys = torch.arange(k.shape[2], device=at.device)
    distance = keys - at[:, None, :, None]  # [B, 1, G, M]
    visible = distance <= 0 if columns.causal else distance == distance
    if call.documents is not None:
        start = call.documents.start
        visible = visible & (start.gather(1, at)[:, None, :, None] == start[:, None, None])
    if call.key_padding is not None:
        visible = visible & ~call.key_padding[:, None, None]
    index = (at - call.offset).clamp(min=0)
    bias = None
    if call.band_bias is not None:
        own_bias = _taken(call.band_bias.expand(index.shape[0], -1, -1, -1), index)
        bias = bias_at(own_bias, call.lowered.bands[0], distance)
    numbers = torch.arange(heads, device=at.device)[:, None, None]
    keep = kept(call, numbers, at[:, None, :, None], keys)
    rows = _taken(q, index)
    return attend(call, rows, of_heads(k, heads), of_heads(v, heads), visible, bias, keep)


def bias_at(bias: Tensor, band: Band, distance: Tensor) -> Tensor:
    """Return [B, H, R, K]: the bias [B, H, R, taps] where a key is a tap of the band, else 0.

    Args:
        distance: int64 [B, 1, R, K], positions from the query to the key.
    """
    assert band.left is not None, "a window with a bias is limited"
    taps, dilation = _callers.fixed_size(bias, 3), _dilations(band, distance.device)
    tap = torch.div(distance, dilation, rounding_mode="floor") + band.left  # [B, 1 or H, R, K]
    inside = band.shows(distance, dilation)
    found: Tensor = bias.gather(3, tap.clamp(0, taps - 1).expand(-1, bias.shape[1], -1, -1)) * inside
    return found


def _in_bands(call: Call, distance: Tensor) -> Tensor:
    """Return bool [..., 1 or H, N, K], where a band shows the pair at that distance [..., 1, N, K]."""
    seen = torch.zeros((), dtype=torch.bool, device=distance.device)
    for band in call.lowered.bands:
        seen = seen | band.shows(distance, _dilations(band, distance.device))
    return seen


def _dilations(band: Band, device: torch.device) -> Any:
    """Return the one dilation, or int64 [H, 1, 1]."""
    if not band.per_head:
        return band.dilations[0]
    return on_device(band.dilations, torch.int64, device)[:, None, None]


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """Return rows [B, H, G, D] of x [B, H, N, D] at index [B, G]."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
