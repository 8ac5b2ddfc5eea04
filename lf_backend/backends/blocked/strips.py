"""Geometry of the blocked backend: which queries meet which keys, under which mask.

Pass  = one band, or the global columns. Passes meet in the log-sum-exp, so a pair shows in one only.
Strip = queries that share keys in one pass: some heads of one example, for a band one residue class.
Block = some consecutive queries of a strip with all keys they see in this pass.

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


class Block(NamedTuple):
    """Queries q [H, R, D] at `rows` of a strip and the keys at `at` of it, [Hkv, K, D].

    `exact_q` is q in the accumulation dtype, for scores. `mask` and the dropout factors `keep`, if any,
    fit [H, R, K].
    """

    rows: slice
    q: Tensor
    exact_q: Tensor
    at: slice
    keys: Keys
    mask: Tensor
    keep: Tensor | None


@dataclass(frozen=True, eq=False)
class Strip:
    """Some heads of one example in one pass; for a band, the positions residue, residue + dilation, ...

    There a dilated band is a plain window.

    Attributes:
        band: of these heads, with their one dilation; None for the global columns.
        shown: bands of earlier passes, whose pairs do not count again.
        masks: band masks of the whole call, which many strips share.
    """

    call: Call
    batch: int
    heads: slice
    kv_heads: slice
    band: Band | None
    shown: tuple[Band, ...]
    residue: int
    masks: dict[object, Tensor]

    @property
    def first(self) -> bool:
        """No earlier pass has written these rows."""
        return not self.shown

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
    def keys(self) -> Keys:
        """All keys of the strip."""
        return Keys.of(self._keys(self.call.k), self._keys(self.call.v))

    @cached_property
    def columns(self) -> Columns:
        assert self.call.columns is not None, "asked only where there is no band"
        return self.call.columns

    def of_queries(self, x: Tensor) -> Tensor:
        """The strip's view [H, n, ...] of x [1 or B, H, N, ...]."""
        return x[self.batch if x.shape[0] > 1 else 0, self.heads, self.start :: self.dilation]

    def accumulator(self, grad: Tensor) -> Tensor:
        """[Hkv, m, D], what blocks add gradients of their keys to; `settle` brings it home."""
        return self._keys(grad) if self.band is not None else torch.zeros_like(self._keys(grad))

    def settle(self, grad: Tensor, accumulated: Tensor) -> None:
        """Add what was accumulated to grad [B, Hkv, M, D], unless it is a view of it."""
        if self.band is None:
            at = self.columns.positions[self.batch]
            grad[self.batch, self.kv_heads].index_add_(1, at, accumulated)

    def _keys(self, x: Tensor) -> Tensor:
        """The strip's [Hkv, m, D] of x [B, Hkv, M, D]: a view for a band, gathered for columns."""
        own = x[self.batch, self.kv_heads]
        if self.band is None:
            return own[:, self.columns.positions[self.batch]]  # index_select would copy all of a view
        return own[:, self.residue :: self.dilation]

    def add_bias(self, grad: Tensor, block: Block, scores: Tensor) -> None:
        """Add the gradient of the band's scores [H, R, K] to that of the band bias [1 or B, H, N, taps].

        Pairs with a bias lie in the band, and the band shows them: columns add nothing.
        """
        if self.band is None:
            return
        wide = self._wide(block.rows, 0.0)
        wide[..., self._band_columns(block.rows, block.at)] = scores
        self.of_queries(grad)[:, block.rows] += _diagonals(wide, grad.shape[-1])

    def blocks(self) -> Iterator[Block]:
        """Blocks from first to last query."""
        queries, keys = self.of_queries(self.call.q), self.keys
        exact = queries.to(accumulation_dtype(queries.dtype))
        for rows, at, mask in self._columns_seen() if self.band is None else self._band_seen(self.band):
            keep = self._keep(rows, at) if self.call.dropout_p else None
            yield Block(rows, queries[:, rows], exact[:, rows], at, keys.at(at), mask, keep)

    def _band_seen(self, band: Band) -> Iterator[tuple[slice, slice, Tensor]]:
        for rows in self._rows(BAND_ROWS):
            at = self._keys_of(band, rows)
            yield rows, at, self._band_mask(band, rows, at)

    def _columns_seen(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """No column that is unused, ahead of a causal row, or in a band."""
        at = self.columns.positions[self.batch]
        heads = self.heads.stop - self.heads.start
        size = min(max(SCORE_BYTES // (4 * heads * len(at)), BAND_ROWS), COLUMN_ROWS)
        for rows in self._rows(size):
            queries = self._positions(rows, self.call.offset)[:, None]
            hidden = ~self.columns.valid[self.batch].expand(len(queries), -1)
            for band in self.shown:
                hidden = hidden | band.sees(0, queries, at)
            if self.columns.causal:
                hidden = hidden | (at > queries)
            yield rows, slice(0, len(at)), self._float(hidden)

    def _rows(self, size: int) -> Iterator[slice]:
        count = -(-(self.call.q.shape[2] - self.start) // self.dilation)
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

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
        key = (band, self.shown, self._reach, rows)
        if key not in self.masks:
            device, (left, right) = self.call.q.device, self._reach
            queries = torch.arange(rows, device=device)[:, None] * self.dilation
            at = (torch.arange(rows + left + right, device=device) - left) * self.dilation
            seen = band.sees(0, queries, at)
            for other in self.shown:
                seen = seen & ~other.sees(0, queries, at)
            self.masks[key] = self._float(~seen)
        return self.masks[key]

    def _keep(self, rows: slice, at: slice) -> Tensor:
        call = self.call
        assert call.seed is not None, "the operator draws a seed"
        columns = self.band is None
        keys = self.columns.positions[self.batch] if columns else self._positions(at, self.residue)
        queries = self._positions(rows, self.start + call.offset)
        heads = torch.arange(self.heads.start, self.heads.stop, device=keys.device)
        dtype = accumulation_dtype(call.q.dtype)
        return dropout.keep(call.seed, self.batch, heads, queries, keys, call.dropout_p, dtype)

    def _positions(self, steps: slice, first: int) -> Tensor:
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

    def _float(self, hidden: Tensor) -> Tensor:
        """0 and -inf, where `hidden`."""
        zeros = torch.zeros(hidden.shape, dtype=accumulation_dtype(self.call.q.dtype), device=hidden.device)
        return zeros.masked_fill_(hidden, -math.inf)


def strips(call: Call) -> Iterator[Strip]:
    """All the work of a call; passes in order, so that a later one finds the earlier one's result."""
    masks: dict[object, Tensor] = {}
    bands = call.lowered.bands
    passes: list[Band | None] = [*bands, *([] if call.columns is None else [None])]
    for batch in range(call.q.shape[0]):
        for index, band in enumerate(passes):
            for heads, kv_heads in _head_runs(call, _scores_per_head(call, band)):
                own = None if band is None else band.at(heads.start)
                shown = tuple(earlier.at(heads.start) for earlier in bands[:index])
                for residue in range(1 if own is None else own.dilations[0]):
                    strip = Strip(call, batch, heads, kv_heads, own, shown, residue, masks)
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
    rows = min(BAND_ROWS, call.q.shape[2])
    if band is None:
        return 0 if call.columns is None else rows * call.columns.positions.shape[1]
    return rows * (rows + sum(band.clipped(class_length(call.k.shape[2], 0, min(band.dilations)))))


def _diagonals(wide: Tensor, taps: int) -> Tensor:
    """View [H, R, taps] of a rectangle [H, R, R + taps - 1]: row r starts at column r."""
    return wide.as_strided((*wide.shape[:2], taps), (wide.stride(0), wide.stride(1) + 1, 1))
