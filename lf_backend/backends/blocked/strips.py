"""Geometry of the blocked backend: which queries meet which keys, under which mask.

Pass  = one band, or the global columns. Passes meet in the log-sum-exp, so a pair shows in one only.
Strip = what of a pass shares keys: some heads of one example, for a band one residue class of them.
Block = some consecutive queries of a strip with all keys they see in this pass.

All tensors but masks are views. In a mask, 0 means visible and -inf invisible; a band bias is part of
it. Masks are in units of log2(e), as the scores are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lf_backend import dropout
from lf_backend.backend import Call, Columns, accumulation_dtype
from lf_backend.bands import Band, class_length

LOG2E = math.log2(math.e)
SCORE_BYTES = 2 << 20  # scores of one block: about what two CPU cores keep in cache
BAND_ROWS = 64  # a band of w taps costs w + rows: few rows waste little, many feed the product
COLUMN_ROWS = 512  # columns waste nothing; more rows are fewer steps


@dataclass(frozen=True, eq=False)
class Block:
    """Queries q [H, R, D] at `rows` of a strip and keys k, v [Hkv, K, D] at `keys` of it.

    `mask` broadcasts to [H, R, K]; `keep` [H, R, K] are dropout factors, or None.
    """

    strip: Strip
    rows: slice
    keys: slice
    mask: Tensor
    keep: Tensor | None

    @cached_property
    def q(self) -> Tensor:
        return self.strip.queries[:, self.rows]

    @cached_property
    def k(self) -> Tensor:
        return self.strip.keys[:, self.keys]

    @cached_property
    def v(self) -> Tensor:
        return self.strip.values[:, self.keys]

    @cached_property
    def k_t(self) -> Tensor:
        """k transposed, [Hkv, D, K], in the memory order that products are fast with."""
        return self.strip.keys_t[..., self.keys]

    @cached_property
    def v_t(self) -> Tensor:
        return self.strip.values_t[..., self.keys]


@dataclass(frozen=True, eq=False)
class Strip(ABC):
    """Some heads of one example in one pass.

    Attributes:
        first: no earlier pass has written these rows.
    """

    call: Call
    batch: int
    heads: slice
    kv_heads: slice
    first: bool

    @abstractmethod
    def of_queries(self, x: Tensor) -> Tensor:
        """The strip's view [H, n, ...] of x [1 or B, H, N, ...]."""

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """Blocks from first to last query."""

    @abstractmethod
    def add_keys(self, grad: Tensor, block: Block, more: Tensor) -> None:
        """Add `more` [Hkv, K, D] to the gradient [B, Hkv, M, D] of all keys."""

    @abstractmethod
    def add_bias(self, grad: Tensor, block: Block, scores: Tensor) -> None:
        """Add the gradient of the scores [H, R, K] to that of the band bias [1 or B, H, N, taps]."""

    @cached_property
    @abstractmethod
    def queries(self) -> Tensor:
        """[H, n, D]."""

    @cached_property
    @abstractmethod
    def keys(self) -> Tensor:
        """[Hkv, m, D]."""

    @cached_property
    @abstractmethod
    def values(self) -> Tensor:
        """[Hkv, m, D]."""

    @cached_property
    def keys_t(self) -> Tensor:
        return _transposed(self.keys)

    @cached_property
    def values_t(self) -> Tensor:
        return _transposed(self.values)

    @property
    def sees_itself(self) -> bool:
        """Every query surely sees a key: none of the rows is empty."""
        return False

    @cached_property
    def mask_dtype(self) -> torch.dtype:
        return accumulation_dtype(self.call.q.dtype)

    def _keep(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        call = self.call
        if not call.dropout_p:
            return None
        assert call.seed is not None, "the operator draws a seed"
        heads = torch.arange(self.heads.start, self.heads.stop, device=keys.device)
        return dropout.keep(call.seed, self.batch, heads, queries, keys, call.dropout_p, self.mask_dtype)

    def _mask(self, hidden: Tensor) -> Tensor:
        """0 and -inf, where `hidden`."""
        zeros = torch.zeros(hidden.shape, dtype=self.mask_dtype, device=hidden.device)
        return zeros.masked_fill_(hidden, -math.inf)


@dataclass(frozen=True, eq=False)
class BandStrip(Strip):
    """The positions residue, residue + dilation, ... under a band: there it is a plain window.

    Attributes:
        band: of these heads, with their one dilation.
        hidden: bands of earlier passes, whose pairs do not count again.
        masks: band masks of the whole call, which many strips share.
    """

    band: Band
    hidden: tuple[Band, ...]
    residue: int
    masks: dict[object, Tensor]

    @property
    def dilation(self) -> int:
        return self.band.dilations[0]

    @property
    def start(self) -> int:
        """Index of the first query."""
        return (self.residue - self.call.offset) % self.dilation

    @property
    def sees_itself(self) -> bool:
        return self.first and self.call.key_padding is None

    def of_queries(self, x: Tensor) -> Tensor:
        return x[self.batch if x.shape[0] > 1 else 0, self.heads, self.start :: self.dilation]

    def of_keys(self, x: Tensor) -> Tensor:
        """The strip's view [Hkv, m, D] of x [B, Hkv, M, D]."""
        return x[self.batch, self.kv_heads, self.residue :: self.dilation]

    @cached_property
    def queries(self) -> Tensor:
        return self.of_queries(self.call.q)

    @cached_property
    def keys(self) -> Tensor:
        return self.of_keys(self.call.k)

    @cached_property
    def values(self) -> Tensor:
        return self.of_keys(self.call.v)

    def blocks(self) -> Iterator[Block]:
        count, length = self.queries.shape[1], self.keys.shape[1]
        for start in range(0, count, BAND_ROWS):
            rows = slice(start, min(start + BAND_ROWS, count))
            keys = slice(*self.band.key_range(self._step + start, self._step + rows.stop, length))
            keep = self._dropout(rows, keys) if self.call.dropout_p else None
            yield Block(self, rows, keys, self._block_mask(rows, keys), keep)

    def add_keys(self, grad: Tensor, block: Block, more: Tensor) -> None:
        self.of_keys(grad)[:, block.keys] += more

    def add_bias(self, grad: Tensor, block: Block, scores: Tensor) -> None:
        wide = self._wide(block.rows, 0.0)
        wide[..., self._columns(block.rows, block.keys)] = scores
        self.of_queries(grad)[:, block.rows] += _diagonals(wide, grad.shape[-1])

    def _block_mask(self, rows: slice, keys: slice) -> Tensor:
        """[R, K] or, with a bias, [H, R, K]."""
        columns = self._columns(rows, keys)
        if self.call.band_bias is None:
            mask = self._band_mask[: rows.stop - rows.start, columns]
        else:
            wide = self._wide(rows, -math.inf)
            bias = self.of_queries(self.call.band_bias)[:, rows]
            torch.mul(bias, LOG2E, out=_diagonals(wide, bias.shape[-1]))
            mask = wide[..., columns]
        return mask if self._padding is None else mask + self._padding[keys]

    def _dropout(self, rows: slice, keys: slice) -> Tensor | None:
        steps = torch.arange(rows.start, rows.stop, device=self.call.q.device)
        queries = steps * self.dilation + (self.call.offset + self.start)
        at = torch.arange(keys.start, keys.stop, device=self.call.q.device) * self.dilation + self.residue
        return self._keep(queries, at)

    def _columns(self, rows: slice, keys: slice) -> slice:
        """Keys as columns of a band mask, where column c is c - left steps from the first row."""
        shift = self._reach[0] - self._step - rows.start
        return slice(keys.start + shift, keys.stop + shift)

    def _wide(self, rows: slice, fill: float) -> Tensor:
        """[H, R, R + left + right], a row's window starting on the diagonal."""
        count = rows.stop - rows.start
        shape = (self.heads.stop - self.heads.start, count, count + sum(self._reach))
        return torch.full(shape, fill, dtype=self.mask_dtype, device=self.call.q.device)

    @cached_property
    def _step(self) -> int:
        """Step of the first query in its residue class."""
        return (self.call.offset + self.start) // self.dilation

    @cached_property
    def _reach(self) -> tuple[int, int]:
        """Reach in steps; as written where a bias has a column for every tap."""
        if self.call.band_bias is not None and self.band.left is not None and self.band.right is not None:
            return self.band.left, self.band.right
        return self.band.clipped(class_length(self.call.k.shape[2], self.residue, self.dilation))

    @cached_property
    def _band_mask(self) -> Tensor:
        """[rows, rows + left + right] of a block that no edge cuts."""
        rows = min(BAND_ROWS, self.call.q.shape[2])
        key = (self.band, self.hidden, self._reach, rows)
        if key not in self.masks:
            device, (left, right) = self.call.q.device, self._reach
            queries = torch.arange(rows, device=device)[:, None] * self.dilation
            at = (torch.arange(rows + left + right, device=device) - left) * self.dilation
            seen = self.band.sees(0, queries, at)
            for band in self.hidden:
                seen = seen & ~band.sees(0, queries, at)
            self.masks[key] = self._mask(~seen)
        return self.masks[key]

    @cached_property
    def _padding(self) -> Tensor | None:
        """[m]: 0 or -inf, None without padding."""
        if self.call.key_padding is None:
            return None
        return self._mask(self.call.key_padding[self.batch, self.residue :: self.dilation])


@dataclass(frozen=True, eq=False)
class ColumnStrip(Strip):
    """Global columns: their keys, gathered, seen by all queries to which no band shows them.

    Attributes:
        bands: of these heads, each with their one dilation.
    """

    columns: Columns
    bands: tuple[Band, ...]

    def of_queries(self, x: Tensor) -> Tensor:
        return x[self.batch if x.shape[0] > 1 else 0, self.heads]

    @cached_property
    def queries(self) -> Tensor:
        return self.of_queries(self.call.q)

    @cached_property
    def keys(self) -> Tensor:
        return self._gathered(self.call.k)

    @cached_property
    def values(self) -> Tensor:
        return self._gathered(self.call.v)

    def blocks(self) -> Iterator[Block]:
        at, (heads, count, _) = self.columns.positions[self.batch], self.queries.shape
        size = min(max(SCORE_BYTES // (4 * heads * len(at)), BAND_ROWS), COLUMN_ROWS)
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            positions = torch.arange(start, rows.stop, device=at.device) + self.call.offset
            mask = self._mask(self._hidden(positions[:, None], at))
            yield Block(self, rows, slice(0, len(at)), mask, self._keep(positions, at))

    def add_keys(self, grad: Tensor, block: Block, more: Tensor) -> None:
        grad[self.batch, self.kv_heads].index_add_(1, self.columns.positions[self.batch], more)

    def add_bias(self, grad: Tensor, block: Block, scores: Tensor) -> None:
        """Nothing: pairs with a bias lie in the band, and the band shows them."""

    def _gathered(self, x: Tensor) -> Tensor:
        return x[self.batch, self.kv_heads].index_select(1, self.columns.positions[self.batch])

    def _hidden(self, queries: Tensor, at: Tensor) -> Tensor:
        hidden = ~self.columns.valid[self.batch]
        for band in self.bands:
            hidden = hidden | band.sees(0, queries, at)
        return hidden | (at > queries) if self.columns.causal else hidden.expand(len(queries), len(at))


def strips(call: Call) -> Iterator[Strip]:
    """All the work of a call; passes in order, so that a later one finds the earlier one's result."""
    masks: dict[object, Tensor] = {}
    bands = call.lowered.bands
    for batch in range(call.q.shape[0]):
        for index, band in enumerate(bands):
            for heads, kv_heads in _head_runs(call, _scores_of_band(call, band)):
                own, *hidden = (b.at(heads.start) for b in (band, *bands[:index]))
                for residue in range(own.dilations[0]):
                    shared = (call, batch, heads, kv_heads, index == 0)
                    strip = BandStrip(*shared, own, tuple(hidden), residue, masks)
                    if strip.start < call.q.shape[2]:
                        yield strip
        if call.columns is not None:
            for heads, kv_heads in _head_runs(call, BAND_ROWS * call.columns.positions.shape[1]):
                own_bands = tuple(band.at(heads.start) for band in bands)
                yield ColumnStrip(call, batch, heads, kv_heads, not bands, call.columns, own_bands)


def _transposed(x: Tensor) -> Tensor:
    """x [Hkv, m, D] as [Hkv, D, m]. CPUs' half-precision products need it so in memory: 1.3 times."""
    half_on_cpu = x.device.type == "cpu" and x.dtype.itemsize == 2
    return x.mT.contiguous() if half_on_cpu else x.mT


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


def _scores_of_band(call: Call, band: Band) -> int:
    rows = min(BAND_ROWS, call.q.shape[2])
    return rows * (rows + sum(band.clipped(class_length(call.k.shape[2], 0, min(band.dilations)))))


def _diagonals(wide: Tensor, taps: int) -> Tensor:
    """View [H, R, taps] of a rectangle [H, R, R + taps - 1]: row r starts at column r."""
    return wide.as_strided((*wide.shape[:2], taps), (wide.stride(0), wide.stride(1) + 1, 1))
