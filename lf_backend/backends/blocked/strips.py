"""Geometry of the blocked backend: which queries meet which keys, under which mask.

Strip = one residue class of some heads of one example under one band.
Block = some consecutive queries of a strip.
Part  = some keys of a block: those of its band, or the global columns.

All tensors but gradients are views. In a mask, 0 means visible and -inf invisible; a band bias is part
of it, in units of log2(e) like the scores.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lf_backend import dropout
from lf_backend.backend import Call, Columns, accumulation_dtype
from lf_backend.bands import Band, class_length

LOG2E = math.log2(math.e)
SCORE_BYTES = 2 << 20  # scores of one block: about what two CPU cores keep in cache
BLOCK_ROWS = 64


@dataclass(frozen=True, eq=False)
class Part(ABC):
    """Keys k, v [Hkv, K, D] of a block and their mask, which broadcasts to [H, R, K]."""

    k: Tensor
    v: Tensor
    mask: Tensor
    keep: Tensor | None

    @abstractmethod
    def add(self, grad: Tensor, more: Tensor) -> None:
        """Add `more` [Hkv, K, D] to the gradient [Hkv, M, D] of all keys."""

    def add_bias(self, grad: Tensor, scores: Tensor) -> None:
        """Add the gradient of the scores [H, R, K] to that of the block's band bias [H, R, taps]."""


@dataclass(frozen=True, eq=False)
class BandPart(Part):
    """The keys [low, high) of the strip's class; column c of the band is key c - shift."""

    strip: Strip
    low: int
    high: int
    shift: int

    def add(self, grad: Tensor, more: Tensor) -> None:
        self.strip.of_keys(grad)[:, self.low : self.high] += more

    def add_bias(self, grad: Tensor, scores: Tensor) -> None:
        wide = self.strip.wide(scores.shape[1], 0.0, scores)
        wide[..., self.low + self.shift : self.high + self.shift] = scores
        grad += _diagonals(wide, grad.shape[-1])


@dataclass(frozen=True, eq=False)
class ColumnPart(Part):
    """The global columns, gathered."""

    positions: Tensor

    def add(self, grad: Tensor, more: Tensor) -> None:
        grad.index_add_(1, self.positions, more)


@dataclass(frozen=True, eq=False)
class Block:
    """Queries q [H, R, D] at `rows` of a strip, and all keys they may see in this pass."""

    rows: slice
    q: Tensor
    parts: tuple[Part, ...]
    call: Call


@dataclass(frozen=True, eq=False)
class Strip:
    """One residue class of some heads of one example under one band (None: columns only).

    Attributes:
        hidden: bands of earlier passes, whose pairs do not count again.
        masks: band masks of the whole call, which many strips share.
    """

    call: Call
    batch: int
    heads: slice
    kv_heads: slice
    band: Band | None
    hidden: tuple[Band, ...]
    residue: int
    masks: dict[tuple[object, ...], Tensor] = field(repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the first pass, the one that shows the columns."""
        return not self.hidden

    @property
    def dilation(self) -> int:
        return 1 if self.band is None else self.band.dilations[0]

    @property
    def start(self) -> int:
        """Index of the first query."""
        return (self.residue - self.call.offset) % self.dilation

    def of_queries(self, x: Tensor) -> Tensor:
        """The strip's view [H, n, ...] of x [1 or B, H, N, ...]."""
        return x[self.batch if x.shape[0] > 1 else 0, self.heads, self.start :: self.dilation]

    def of_keys(self, x: Tensor) -> Tensor:
        """The strip's view [Hkv, m, ...] of x [Hkv, M, ...]."""
        return x[:, self.residue :: self.dilation]

    def blocks(self) -> Iterator[Block]:
        """Blocks from first to last query."""
        queries = self.of_queries(self.call.q)
        for start in range(0, queries.shape[1], BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, queries.shape[1]))
            parts = (self._band_part(rows), self._column_part(rows) if self.first else None)
            yield Block(rows, queries[:, rows], tuple(part for part in parts if part), self.call)

    def _band_part(self, rows: slice) -> BandPart | None:
        if self.band is None:
            return None
        left, _ = self._reach
        step = (self.call.offset + self.start) // self.dilation
        low, high = self.band.key_range(step + rows.start, step + rows.stop, self.keys.shape[1])
        shift = left - step - rows.start
        columns = slice(low + shift, high + shift)
        if self.call.band_bias is None:
            mask = self._band_mask[: rows.stop - rows.start, columns]
        else:
            bias = self.of_queries(self.call.band_bias)[:, rows] * LOG2E
            wide = self.wide(rows.stop - rows.start, -math.inf, bias.to(self.mask_dtype))
            _diagonals(wide, bias.shape[-1]).copy_(bias)
            mask = wide[..., columns]
        if self._padding is not None:
            mask = mask + self.of_keys(self._padding)[:, low:high]
        positions = torch.arange(low, high, device=mask.device) * self.dilation + self.residue
        keep = self._keep(rows, positions)
        return BandPart(self.keys[:, low:high], self.values[:, low:high], mask, keep, self, low, high, shift)

    def _column_part(self, rows: slice) -> ColumnPart | None:
        if self._columns is None:
            return None
        at, valid, k, v = self._columns
        queries = self._positions(rows)[:, None]
        hidden = ~valid
        for band in self.call.lowered.bands:
            hidden = hidden | band.sees(self.heads.start, queries, at)
        if self.call.columns is not None and self.call.columns.causal:
            hidden = hidden | (at > queries)
        mask = torch.zeros(hidden.shape, dtype=self.mask_dtype, device=at.device)
        mask.masked_fill_(hidden, -math.inf)
        return ColumnPart(k, v, mask, self._keep(rows, at), at)

    def wide(self, rows: int, fill: float, like: Tensor) -> Tensor:
        """A rectangle [H, rows, band columns] of a block."""
        return like.new_full((self.heads.stop - self.heads.start, rows, rows + sum(self._reach)), fill)

    def _positions(self, rows: slice) -> Tensor:
        steps = torch.arange(rows.start, rows.stop, device=self.call.q.device)
        return steps * self.dilation + (self.call.offset + self.start)

    def _keep(self, rows: slice, keys: Tensor) -> Tensor | None:
        call = self.call
        if not call.dropout_p:
            return None
        assert call.seed is not None, "the operator draws a seed"
        heads = torch.arange(self.heads.start, self.heads.stop, device=keys.device)
        queries = self._positions(rows)
        return dropout.keep(call.seed, self.batch, heads, queries, keys, call.dropout_p, self.mask_dtype)

    @property
    def mask_dtype(self) -> torch.dtype:
        return accumulation_dtype(self.call.q.dtype)

    @cached_property
    def keys(self) -> Tensor:
        return self.of_keys(self.call.k[self.batch, self.kv_heads])

    @cached_property
    def values(self) -> Tensor:
        return self.of_keys(self.call.v[self.batch, self.kv_heads])

    @cached_property
    def _reach(self) -> tuple[int, int]:
        """Reach in steps; as written where a bias has a column for every tap."""
        assert self.band is not None, "only bands reach"
        if self.call.band_bias is not None and self.band.left is not None and self.band.right is not None:
            return self.band.left, self.band.right
        return self.band.clipped(self.keys.shape[1])

    @cached_property
    def _band_mask(self) -> Tensor:
        """[BLOCK_ROWS, band columns]: column c is c - left steps from the first query."""
        assert self.band is not None, "only bands have a mask"
        left, right = self._reach
        rows = min(BLOCK_ROWS, self.of_queries(self.call.q).shape[1])
        hidden = tuple(band.at(self.heads.start) for band in self.hidden)
        key = (self.band, hidden, left, right, rows)
        if key not in self.masks:
            device = self.call.q.device
            query = torch.arange(rows, device=device)[:, None] * self.dilation
            at = (torch.arange(rows + left + right, device=device) - left) * self.dilation
            seen = self.band.sees(0, query, at)
            for band in hidden:
                seen = seen & ~band.sees(0, query, at)
            mask = torch.zeros(seen.shape, dtype=self.mask_dtype, device=device)
            self.masks[key] = mask.masked_fill_(~seen, -math.inf)
        return self.masks[key]

    @cached_property
    def _padding(self) -> Tensor | None:
        """[1, M]: 0 or -inf, None without padding."""
        if self.call.key_padding is None:
            return None
        padded = self.call.key_padding[self.batch, None]
        mask = torch.zeros(padded.shape, dtype=self.mask_dtype, device=padded.device)
        return mask.masked_fill_(padded, -math.inf)

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Positions [G], validity [G], keys and values [Hkv, G, D] of the global columns."""
        columns: Columns | None = self.call.columns
        if columns is None:
            return None
        at = columns.positions[self.batch]
        k, v = (x[self.batch, self.kv_heads].index_select(1, at) for x in (self.call.k, self.call.v))
        return at, columns.valid[self.batch], k, v


def strips(call: Call) -> Iterator[Strip]:
    """All the work of a call; passes in order, so that a later band finds the earlier one's result."""
    masks: dict[tuple[object, ...], Tensor] = {}
    bands: tuple[Band | None, ...] = call.lowered.bands or (None,)
    for batch in range(call.q.shape[0]):
        for index, band in enumerate(bands):
            for heads, kv_heads in _head_runs(call, band):
                own = None if band is None else band.at(heads.start)
                for residue in range(1 if own is None else own.dilations[0]):
                    hidden = tuple(earlier for earlier in bands[:index] if earlier)
                    strip = Strip(call, batch, heads, kv_heads, own, hidden, residue, masks)
                    if strip.start < call.q.shape[2]:
                        yield strip


def _head_runs(call: Call, band: Band | None) -> Iterator[tuple[slice, slice]]:
    """Heads that share all dilations, few enough for the cache, with the heads of their keys."""
    heads, kv_heads = call.q.shape[1], call.k.shape[1]
    group = heads // kv_heads
    most = _heads_at_once(call, band)
    start = 0
    while start < heads:
        stop = start + 1
        while stop < heads and _alike(call, start, stop) and stop - start < most:
            stop += 1
        kv = start // group
        if start % group or stop - start < group:  # within the heads that share one key head
            stop = min(stop, (kv + 1) * group)
            yield slice(start, stop), slice(kv, kv + 1)
        else:
            stop -= stop % group
            yield slice(start, stop), slice(kv, stop // group)
        start = stop


def _alike(call: Call, one: int, other: int) -> bool:
    return all(band.dilation(one) == band.dilation(other) for band in call.lowered.bands)


def _heads_at_once(call: Call, band: Band | None) -> int:
    rows = min(BLOCK_ROWS, call.q.shape[2])
    reach = 0 if band is None else sum(band.clipped(class_length(call.k.shape[2], 0, min(band.dilations))))
    return max(1, SCORE_BYTES // (4 * rows * (rows + reach)))


def _diagonals(wide: Tensor, taps: int) -> Tensor:
    """View [H, R, taps] of a rectangle [H, R, R + taps - 1]: row r starts at column r."""
    return wide.as_strided((*wide.shape[:2], taps), (wide.stride(0), wide.stride(1) + 1, 1))
