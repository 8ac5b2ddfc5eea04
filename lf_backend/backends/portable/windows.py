"""The keys of one window: blocks of queries meet the keys that they reach between them.

In the residue class of queries c, c + d, c + 2d, ... a window dilated by d is a plain window, so block j of
class c holds the queries c + d * (j * rows + t) and meets the keys d * (u - left) steps from its first. All
is index arithmetic on lengths, which may be symbols, and two gathers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend._device_constants import on_device
from lf_backend.backend import Call
from lf_backend.backends.portable.pieces import Piece, attend, kept, of_heads, together
from lf_backend.pattern.bands import Band, class_length

LEAST_ROWS, MOST_ROWS = 16, 512  # of a block; as many as the window has keys, where that is in between


class Heads(NamedTuple):
    """Heads that have the same dilations, and their tensors; k and v have as many heads as q.

    Attributes:
        numbers: int64 [h].
        band: with the one dilation of these heads.
        shown: earlier bands, likewise, whose pairs do not count again.
    """

    numbers: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    band: Band
    shown: tuple[Band, ...]


def window(call: Call, index: int) -> Piece:
    """Return the piece of one of the call's bands, [B, H, N, ...], without pairs of earlier ones."""
    bands = call.lowered.bands[: index + 1]
    total = _callers.fixed_size(call.q, 1)
    groups: dict[tuple[int, ...], list[int]] = {}
    for head in range(total):
        groups.setdefault(tuple(band.dilation(head) for band in bands), []).append(head)
    k, v = of_heads(call.k, total), of_heads(call.v, total)
    if len(groups) == 1:
        return _of_alike(call, _heads(call, k, v, bands, None))
    found = [_of_alike(call, _heads(call, k, v, bands, heads)) for heads in groups.values()]
    order = [head for heads in groups.values() for head in heads]
    back = on_device(tuple(order.index(head) for head in range(total)), torch.int64, call.q.device)
    return Piece(*(torch.cat(parts, 1).index_select(1, back) for parts in zip(*found, strict=True)))


def _heads(call: Call, k: Tensor, v: Tensor, bands: tuple[Band, ...], chosen: list[int] | None) -> Heads:
    """Return some heads, or all that there are."""
    numbers = torch.arange(_callers.fixed_size(call.q, 1), device=call.q.device)
    own = [band.at(chosen[0] if chosen else 0) for band in bands]
    if chosen is None:
        return Heads(numbers, call.q, k, v, call.band_bias, own[-1], tuple(own[:-1]))
    at = on_device(tuple(chosen), torch.int64, call.q.device)
    tensors = [x if x is None else x.index_select(1, at) for x in (call.q, k, v, call.band_bias)]
    q, k_own, v_own, bias = tensors
    assert q is not None and k_own is not None and v_own is not None
    return Heads(numbers.index_select(0, at), q, k_own, v_own, bias, own[-1], tuple(own[:-1]))


def _of_alike(call: Call, heads: Heads) -> Piece:
    band, dilation = heads.band, heads.band.dilations[0]
    left, right = band.left, band.right
    if not _callers.is_recorded() and heads.bias is None:  # lengths are numbers, and limit the reach
        left, right = band.clipped(class_length(call.k.shape[2], 0, dilation))
        if dilation == 1 and left + right + 1 >= call.k.shape[2]:
            return _dense(call, heads)
    if left is None or right is None:
        return _dense(call, heads)
    rows = max(LEAST_ROWS, min(left + right, MOST_ROWS))
    if not _callers.is_recorded():
        rows = min(rows, class_length(call.q.shape[2], 0, dilation))
    return _in_blocks(call, heads, left, right, rows)


def _dense(call: Call, heads: Heads) -> Piece:
    """Without a limit: every query with every key."""
    queries, keys = _positions(call)
    distance = keys - queries[:, None]
    visible = _shown(heads, distance)
    if call.key_padding is not None:
        visible = visible & ~call.key_padding[:, None, None]
    bias = None
    if heads.bias is not None:
        band = heads.band
        assert band.left is not None, "a window with a bias is limited"
        taps = torch.div(distance, band.dilations[0], rounding_mode="floor") + band.left
        taps = taps.clamp(0, _callers.fixed_size(heads.bias, 3) - 1)
        bias = heads.bias.gather(3, taps.expand(*heads.bias.shape[:2], -1, -1))
    if call.documents is not None:
        visible = visible & together(call.documents, queries[:, None], keys[None])
    keep = kept(call, heads.numbers[:, None, None], queries[:, None], keys)
    return attend(call, heads.q, heads.k, heads.v, visible, bias, keep)


def _in_blocks(call: Call, heads: Heads, left: int, right: int, rows: int) -> Piece:
    """Blocks of `rows` queries, which meet rows + left + right keys."""
    device, dilation, width = call.q.device, heads.band.dilations[0], rows + left + right
    queries, keys = call.q.shape[2], call.k.shape[2]
    steps = queries if dilation == 1 else (queries + (dilation - 1)) // dilation
    # Exporters take a size of 1 for a constant, and so the length that leads to it: for them one block more.
    spare = rows if _callers.is_recorded() and not _callers.is_traced() else 0
    blocks = (steps + (rows - 1 + spare)) // rows
    start = torch.arange(blocks, device=device) * (dilation * rows)
    if dilation > 1:
        start = (torch.arange(dilation, device=device)[:, None] + start).flatten()
    at_query = start[:, None] + torch.arange(rows, device=device) * dilation  # [blocks, rows]
    positions = start + (keys - queries)
    at_key = positions[:, None] + (torch.arange(width, device=device) - left) * dilation  # [blocks, width]
    inside = (at_key >= 0) & (at_key < keys)
    query_index = torch.where(at_query < queries, at_query, 0).flatten()
    key_index = torch.where(inside, at_key, 0).flatten()
    step = torch.arange(width, device=device) - left - torch.arange(rows, device=device)[:, None]
    visible = _shown(heads, step * dilation) & inside[:, None]
    if call.key_padding is not None:
        padded = torch.unflatten(call.key_padding.index_select(1, key_index), 1, (-1, width))
        visible = visible & ~padded[:, None, :, None]
    if call.documents is not None:
        at_row = query_index.view(-1, rows) + (keys - queries)
        visible = visible & together(call.documents, at_row[..., None], key_index.view(-1, 1, width))
    q = torch.unflatten(heads.q.index_select(2, query_index), 2, (-1, rows))
    k, v = (torch.unflatten(x.index_select(2, key_index), 2, (-1, width)) for x in (heads.k, heads.v))
    bias = None
    if heads.bias is not None:
        bias = _skewed(torch.unflatten(heads.bias.index_select(2, query_index), 2, (-1, rows)))
    own = heads.numbers[:, None, None, None]
    keep = kept(call, own, (at_query + (keys - queries))[..., None], at_key[:, None])
    piece = attend(call, q, k, v, visible, bias, keep)
    flat = (x.flatten(2, 3) for x in piece)
    if dilation == 1 and not _callers.is_recorded():
        return Piece(*(x[:, :, :queries] for x in flat))
    order = torch.arange(queries, device=device)  # a slice would have exporters prove that it is long enough
    if dilation > 1:
        order = (order % dilation) * (blocks * rows) + torch.div(order, dilation, rounding_mode="floor")
    return Piece(*(x.index_select(2, order) for x in flat))


def _shown(heads: Heads, distance: Tensor) -> Tensor:
    """Return bool, where the band shows a key that no earlier band shows."""
    seen: Tensor = heads.band.shows(distance, heads.band.dilations[0])
    for earlier in heads.shown:
        seen = seen & ~earlier.shows(distance, earlier.dilations[0])
    return seen


def _skewed(bias: Tensor) -> Tensor:
    """Return [..., R, R + taps - 1] in which row r of [..., R, taps] begins at column r, 0 elsewhere."""
    rows, taps = _callers.fixed_size(bias, -2), _callers.fixed_size(bias, -1)
    wide = torch.nn.functional.pad(bias, (0, rows)).flatten(-2)
    return torch.unflatten(wide[..., : rows * (rows + taps - 1)], -1, (rows, rows + taps - 1))


def _positions(call: Call) -> tuple[Tensor, Tensor]:
    """Return int64 [N] and [M], of queries and keys."""
    keys = torch.arange(call.k.shape[2], device=call.q.device)
    return torch.arange(call.q.shape[2], device=call.q.device) + call.offset, keys
