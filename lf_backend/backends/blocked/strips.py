"""Geometry of the blocked backend: which queries meet which keys, under which mask.

Strip = queries that share keys in one pass: some heads of one example, for a band one residue class.
Block = some consecutive queries of a strip with all keys they see in this pass.
Part  = a block's keys from one source: the slice of a band, or the global columns.

A pass is one band; the global columns are a part of the first, so that one softmax sees both. Passes
of further bands meet it in the log-sum-exp, and a pair shows in one pass only.

All tensors are views but masks, gathered columns and what half precision makes exact. In a mask, 0
means visible and -inf invisible; a band bias is part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend import dropout
from lf_backend.backend import Call, Columns, accumulation_dtype
from lf_backend.bands import Band, class_length

SCORE_BYTES = 2 << 20  # scores of one block: about what two CPU cores keep in cache
BAND_ROWS = 64  # a band of w taps costs w + rows: few rows waste little, many feed the product
COLUMN_ROWS = 512  # columns alone waste nothing; more rows are fewer steps
MASK_ELEMENTS = 1 << 20  # of the columns' mask, made for many blocks at once


class Keys(NamedTuple):
    """Keys and values [Hkv, m, D], and the same transposed [Hkv, D, m].

    `k_t` is exact: in the accumulation dtype, for scores.
    """

    k: Tensor
    v: Tensor
    k_t: Tensor
    v_t: Tensor

    @classmethod
    def of(cls, k: Tensor, v: Tensor) -> Keys:
        """Views where the dtype allows; CPUs' half-precision products want v in one piece: a fifth faster."""
        if k.device.type == "cpu" and k.dtype.itemsize == 2:
            v = v.contiguous()
        return cls(k, v, k.to(accumulation_dtype(k.dtype)).mT, v.mT)

    def at(self, keys: slice) -> Keys:
        """Some of them."""
        return Keys(self.k[:, keys], self.v[:, keys], self.k_t[..., keys], self.v_t[..., keys])


class Part(NamedTuple):
    """`keys` at `at` of their source; `mask` and dropout factors `keep`, if any, fit [H, R, K]."""

    source: int
    keys: Keys
    at: slice
    mask: Tensor
    keep: Tensor | None


class Block(NamedTuple):
    """Queries q [H, R, D] at `rows` of a strip, and all keys that they see.

    `exact_q` is q in the accumulation dtype, for scores.
    """

    rows: slice
    q: Tensor
    exact_q: Tensor
    parts: tuple[Part, ...]


BAND, COLUMNS = 0, 1  # sources


@dataclass(frozen=True, eq=False)
class Strip:
    """Some heads of one example in one pass; for a band, the positions residue, residue + dilation, ...

    There a dilated band is a plain window.

    Attributes:
        band: of these heads, with their one dilation; None where only columns are seen.
        others: all other bands of these heads.
        hidden: how many of `others` earlier passes have shown; their pairs do not count again.
        masks: band masks of the whole call, which many strips share.
    """

    call: Call
    batch: int
    heads: slice
    kv_heads: slice
    band: Band | None
    others: tuple[Band, ...]
    hidden: int
    residue: int
    masks: dict[object, Tensor]

    @property
    def first(self) -> bool:
        """No earlier pass has written these rows."""
        return not self.hidden

    @property
    def sees_itself(self) -> bool:
        """Every query surely sees a key: none of the rows is empty."""
        return self.band is not None and self.first and self.call.key_padding is None

    @cached_property
    def dilation(self) -> int:
        return 1 if self.band is None else self.band.dilations[0]

    @cached_property
    def start(self) -> int:
        """Index of the first query."""
        return (self.residue - self.call.offset) % self.dilation

    @cached_property
    def columns(self) -> Columns | None:
        return self.call.columns if self.first else None

    @cached_property
    def sources(self) -> tuple[Keys | None, Keys | None]:
        """Of the band and of the columns."""
        band = columns = None
        if self.band is not None:
            band = Keys.of(self.of_keys(self.call.k), self.of_keys(self.call.v))
        if self.columns is not None:
            columns = Keys.of(self._gathered(self.call.k), self._gathered(self.call.v))
        return band, columns

    def of_queries(self, x: Tensor) -> Tensor:
        """The strip's view [H, n, ...] of x [1 or B, H, N, ...]."""
        return x[self.batch if x.shape[0] > 1 else 0, self.heads, self.start :: self.dilation]

    def of_keys(self, x: Tensor) -> Tensor:
        """The band's view [Hkv, m, D] of x [B, Hkv, M, D]."""
        return x[self.batch, self.kv_heads, self.residue :: self.dilation]

    def accumulators(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """What blocks add gradients of their keys to, by source; `settle` brings the columns' home."""
        count = 0 if self.columns is None else self.columns.positions.shape[1]
        return self.of_keys(grad), grad.new_zeros(grad[0, self.kv_heads].shape[0], count, grad.shape[-1])

    def settle(self, grad: Tensor, of_columns: Tensor) -> None:
        """Add the columns' gradients [Hkv, G, D] to grad [B, Hkv, M, D]."""
        if self.columns is not None:
            grad[self.batch, self.kv_heads].index_add_(1, self.columns.positions[self.batch], of_columns)

    def add_bias(self, grad: Tensor, block: Block, scores: Tensor) -> None:
        """Add the gradient of the band's scores [H, R, K] to that of the band bias [1 or B, H, N, taps].

        Pairs with a bias lie in the band, and the band shows them: columns add nothing.
        """
        wide = self._wide(block.rows, 0.0)
        wide[..., self._band_columns(block.rows, block.parts[0].at)] = scores
        self.of_queries(grad)[:, block.rows] += _diagonals(wide, grad.shape[-1])

    def blocks(self) -> Iterator[Block]:
        """Blocks from first to last query."""
        queries, (band, columns) = self.of_queries(self.call.q), self.sources
        exact = queries.to(accumulation_dtype(queries.dtype))
        count = queries.shape[1]
        size = BAND_ROWS if self.band is not None else COLUMN_ROWS
        masks = iter(()) if columns is None else self._column_masks(count, size)
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            parts: tuple[Part, ...] = ()
            if self.band is not None and band is not None:
                at = self._keys_of(self.band, rows)
                mask = self._band_mask(self.band, rows, at)
                parts = (Part(BAND, band.at(at), at, mask, self._keep(rows, at, BAND)),)
            if columns is not None:
                at = slice(0, columns.k.shape[1])
                parts = (*parts, Part(COLUMNS, columns, at, next(masks), self._keep(rows, at, COLUMNS)))
            yield Block(rows, queries[:, rows], exact[:, rows], parts)

    def _keys_of(self, band: Band, rows: slice) -> slice:
        length = class_length(self.call.k.shape[2], self.residue, self.dilation)
        return slice(*band.key_range(self._step + rows.start, self._step + rows.stop, length))

    def _band_mask(self, band: Band, rows: slice, keys: slice) -> Tensor:
        """[R, K] or, with a bias, [H, R, K]."""
        columns = self._band_columns(rows, keys)
        if self.call.band_bias is None:
            mask = self._whole_mask(band)[: rows.stop - rows.start, columns]
        else:
            wide = self._wide(rows, -math.inf)
            bias = self.of_queries(self.call.band_bias)[:, rows]
            _diagonals(wide, bias.shape[-1]).copy_(bias)
            mask = wide[..., columns]
        return mask if self._padding is None else mask + self._padding[keys]

    def _whole_mask(self, band: Band) -> Tensor:
        """[rows, rows + left + right] of a block that no edge cuts."""
        rows = min(BAND_ROWS, self.call.q.shape[2])
        hidden = self.others[: self.hidden]
        key = (band, hidden, self._reach, rows)
        if key not in self.masks:
            device, (left, right) = self.call.q.device, self._reach
            queries = torch.arange(rows, device=device)[:, None] * self.dilation
            at = (torch.arange(rows + left + right, device=device) - left) * self.dilation
            seen = band.sees(0, queries, at)
            for other in hidden:
                seen = seen & ~other.sees(0, queries, at)
            self.masks[key] = self._float(~seen)
        return self.masks[key]

    def _column_masks(self, count: int, size: int) -> Iterator[Tensor]:
        """[R, G] for every block: no column that is unused, ahead of a causal row, or in a band."""
        assert self.columns is not None, "called only with columns"
        at = self.columns.positions[self.batch]
        step = max(MASK_ELEMENTS // max(at.shape[0], 1) // size, 1) * size
        for first in range(0, count, step):
            queries = self._positions(range(first, min(first + step, count)), self.start + self.call.offset)
            hidden = ~self.columns.valid[self.batch].expand(len(queries), -1)
            for band in (*((self.band,) if self.band is not None else ()), *self.others):
                hidden = hidden | band.sees(0, queries[:, None], at)
            if self.columns.causal:
                hidden = hidden | (at > queries[:, None])
            yield from torch.split(self._float(hidden), size)

    def _keep(self, rows: slice, at: slice, source: int) -> Tensor | None:
        call = self.call
        if not call.dropout_p:
            return None
        assert call.seed is not None, "the operator draws a seed"
        if source == COLUMNS and call.columns is not None:
            keys = call.columns.positions[self.batch]
        else:
            keys = self._positions(range(at.start, at.stop), self.residue)
        queries = self._positions(range(rows.start, rows.stop), self.start + call.offset)
        heads = torch.arange(self.heads.start, self.heads.stop, device=keys.device)
        dtype = accumulation_dtype(call.q.dtype)
        return dropout.keep(call.seed, self.batch, heads, queries, keys, call.dropout_p, dtype)

    def _positions(self, steps: range, first: int) -> Tensor:
        """Positions first + dilation * step."""
        return torch.arange(steps.start, steps.stop, device=self.call.q.device) * self.dilation + first

    def _band_columns(self, rows: slice, keys: slice) -> slice:
        """Keys as columns of a band mask, where column c is c - left steps from the first row."""
        shift = self._reach[0] - self._step - rows.start
        return slice(keys.start + shift, keys.stop + shift)

    def _wide(self, rows: slice, fill: float) -> Tensor:
        """[H, R, R + left + right], a row's window starting on the diagonal."""
        count = rows.stop - rows.start
        shape = (self.heads.stop - self.heads.start, count, count + sum(self._reach))
        dtype = accumulation_dtype(self.call.q.dtype)
        return torch.full(shape, fill, dtype=dtype, device=self.call.q.device)

    @cached_property
    def _step(self) -> int:
        """Step of the first query in its residue class."""
        return (self.call.offset + self.start) // self.dilation

    @cached_property
    def _reach(self) -> tuple[int, int]:
        """Reach in steps; as written where a bias has a column for every tap."""
        band = self.band
        assert band is not None, "asked only where there is a band"
        if self.call.band_bias is not None and band.left is not None and band.right is not None:
            return band.left, band.right
        return band.clipped(class_length(self.call.k.shape[2], self.residue, self.dilation))

    @cached_property
    def _padding(self) -> Tensor | None:
        """[m]: 0 or -inf, None without padding."""
        if self.call.key_padding is None:
            return None
        return self._float(self.call.key_padding[self.batch, self.residue :: self.dilation])

    def _gathered(self, x: Tensor) -> Tensor:
        assert self.call.columns is not None, "called only with columns"
        return x[self.batch, self.kv_heads].index_select(1, self.call.columns.positions[self.batch])

    def _float(self, hidden: Tensor) -> Tensor:
        """0 and -inf, where `hidden`."""
        zeros = torch.zeros(hidden.shape, dtype=accumulation_dtype(self.call.q.dtype), device=hidden.device)
        return zeros.masked_fill_(hidden, -math.inf)


def strips(call: Call) -> Iterator[Strip]:
    """All the work of a call; passes in order, so that a later one finds the earlier one's result."""
    masks: dict[object, Tensor] = {}
    bands: tuple[Band | None, ...] = call.lowered.bands or (None,)
    for batch in range(call.q.shape[0]):
        for index, band in enumerate(bands):
            for heads, kv_heads in _head_runs(call, _scores_per_head(call, band)):
                own = None if band is None else band.at(heads.start)
                others = tuple(b.at(heads.start) for b in bands if b is not None and b is not band)
                for residue in range(1 if own is None else own.dilations[0]):
                    strip = Strip(call, batch, heads, kv_heads, own, others, index, residue, masks)
                    if strip.start < call.q.shape[2]:
                        yield strip


def _head_runs(call: Call, scores: int) -> Iterator[tuple[slice, slice]]:
    """Heads with the same dilations, few enough for the cache, and the heads of their keys.

    A run is whole groups of heads that share keys, or lies within one.

    Args:
        scores: number of scores per head of one block.
    """
    heads, kv_heads = call.q.shape[1], call.k.shape[1]
    group = heads // kv_heads
    start = 0
    while start < heads:
        alike = start + 1
        while alike < heads and _alike(call, start, alike):
            alike += 1
        if start % group or alike - start < group:
            stop = min(alike, (start // group + 1) * group)
        else:
            stop = start + _evenly((alike - start) // group, scores * group) * group
        yield slice(start, stop), slice(start // group, (stop - 1) // group + 1)
        start = stop


def _evenly(count: int, scores: int) -> int:
    """How many of `count` to take at once, so that steps fit the cache and are of one size."""
    steps = -(-count * scores * 4 // SCORE_BYTES)
    return -(-count // max(1, min(steps, count)))


def _alike(call: Call, one: int, other: int) -> bool:
    return all(band.dilation(one) == band.dilation(other) for band in call.lowered.bands)


def _scores_per_head(call: Call, band: Band | None) -> int:
    """Of one block."""
    columns = 0 if call.columns is None else call.columns.positions.shape[1]
    if band is None:
        return min(COLUMN_ROWS, call.q.shape[2]) * columns
    rows = min(BAND_ROWS, call.q.shape[2])
    reach = sum(band.clipped(class_length(call.k.shape[2], 0, min(band.dilations))))
    return rows * (rows + reach + columns)


def _diagonals(wide: Tensor, taps: int) -> Tensor:
    """View [H, R, taps] of a rectangle [H, R, R + taps - 1]: row r starts at column r."""
    return wide.as_strided((*wide.shape[:2], taps), (wide.stride(0), wide.stride(1) + 1, 1))
