"""The strips of the blocked backend: which queries meet which keys, under which mask.

Pass  = one band, the global columns, or the rules. Passes meet in the log-sum-exp, so a pair shows in one
        only.
Strip = queries that share keys in one pass: some heads of one example, for a band one residue class.
Block = some consecutive queries of a strip with all keys they see in this pass.

All tensors are views but masks, gathered keys and what half precision makes exact. In a mask, 0 means
visible and -inf invisible; a band bias is part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend.backend import Call
from lf_backend.numerics import dropout
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.pattern.bands import Band

SCORE_BYTES = 2 << 20  # scores of one block: about what two CPU cores keep in cache
BAND_ROWS = 64  # a band of w taps costs w + rows: few rows waste little, many feed the product

At = slice | Tensor  # keys of a strip: a range of them, or their indices


class Ends(NamedTuple):
    """Starts and ends of the documents of one example, by position, and the length of the
    longest, as Python's own numbers."""

    start: list[int]
    end: list[int]
    longest: int

    @classmethod
    def of(cls, call: Call, batch: int) -> Ends | None:
        """Read those of an example."""
        if call.documents is None:
            return None
        start, end = call.documents.start[batch], call.documents.end[batch]
        return cls(start.tolist(), end.tolist(), int((end - start).max()))


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
    at: At
    keys: Keys
    mask: Tensor
    keep: Tensor | None


@dataclass(frozen=True, eq=False)
class Strip:
    """Some heads of one example in one pass; the positions residue, residue + dilation, ...

    Attributes:
        first: no earlier pass has written these rows.
        shown: bands of earlier passes, whose pairs do not count again.
        dilation, residue: 1 and 0 but for a band, which so is a plain window.
        ends: of packed documents, for Python to read; None without.
    """

    call: Call
    batch: int
    heads: slice
    kv_heads: slice
    first: bool
    shown: tuple[Band, ...]
    dilation: int
    residue: int
    ends: Ends | None

    @property
    def sees_itself(self) -> bool:
        """Every query surely sees a key: none of the rows is empty."""
        return False

    def _seen(self) -> Iterator[tuple[slice, At, Tensor]]:
        """Rows, the keys they see between them, and the mask, from first to last query."""
        raise NotImplementedError

    @cached_property
    def start(self) -> int:
        """Index of the first query."""
        return (self.residue - self.call.offset) % self.dilation

    @cached_property
    def keys(self) -> Keys:
        """All keys of the strip."""
        return Keys.of(self._keys(self.call.k), self._keys(self.call.v))

    def of_queries(self, x: Tensor) -> Tensor:
        """The strip's view [H, n, ...] of x [1 or B, H, N, ...]."""
        return x[self.batch if x.shape[0] > 1 else 0, self.heads, self.start :: self.dilation]

    def accumulator(self, grad: Tensor) -> Tensor:
        """[Hkv, m, D], what blocks add gradients of their keys to; `settle` brings it home."""
        return self._keys(grad)

    def settle(self, grad: Tensor, accumulated: Tensor) -> None:
        """Add what was accumulated to grad [B, Hkv, M, D], unless it is a view of it."""

    def add_bias(self, grad: Tensor, block: Block, scores: Tensor) -> None:
        """Add the gradient of a band's scores [H, R, K] to that of the band bias [1 or B, H, N, taps].

        Pairs with a bias lie in the band, and the band shows them: other passes add nothing.
        """

    def blocks(self) -> Iterator[Block]:
        """Blocks from first to last query."""
        queries = self.of_queries(self.call.q)
        exact = queries.to(accumulation_dtype(queries.dtype))
        for rows, at, mask in self._seen():
            keep = self._keep(rows, at) if self.call.dropout_p else None
            yield Block(rows, queries[:, rows], exact[:, rows], at, self._at(at), mask, keep)

    def _at(self, at: At) -> Keys:
        """Keys of a block: views of a range, gathered by indices."""
        if isinstance(at, slice):
            return self.keys.at(at)
        return Keys.of(*(self._keys(x)[:, at] for x in (self.call.k, self.call.v)))

    def _keys(self, x: Tensor) -> Tensor:
        """The strip's [Hkv, m, D] of x [B, Hkv, M, D]."""
        return x[self.batch, self.kv_heads, self.residue :: self.dilation]

    def _rows(self, size: int) -> Iterator[slice]:
        count = -(-(self.call.q.shape[2] - self.start) // self.dilation)
        return (slice(start, min(start + size, count)) for start in range(0, count, size))

    def _document_range(self, rows: slice) -> tuple[int, int]:
        """Return the start of the document of the first of some queries, and the end of that of the last."""
        if self.ends is None:
            return 0, self.call.k.shape[2]
        first, last = (
            self.start + self.call.offset + step * self.dilation for step in (rows.start, rows.stop - 1)
        )
        return self.ends.start[first], self.ends.end[last]

    def _of_others(self, rows: slice, at: At) -> Tensor | float:
        """[R, K]: -inf where the key is in another document than the query; 0 where nothing is hidden so."""
        start, end = self._document_range(rows)
        if self.ends is None or self.ends.end[start] == end:
            return 0.0
        assert self.call.documents is not None
        queries, keys = self._queries(rows)[:, None], self._positions_of(at)
        return self._float(~self.call.documents.together(self.batch, queries, keys))

    def _keep(self, rows: slice, at: At) -> Tensor:
        call = self.call
        assert call.seed is not None, "the operator draws a seed"
        keys = self._positions_of(at)
        heads = torch.arange(self.heads.start, self.heads.stop, device=keys.device)
        dtype = accumulation_dtype(call.q.dtype)
        return dropout.keep(call.seed, self.batch, heads, self._queries(rows), keys, call.dropout_p, dtype)

    def _queries(self, rows: slice) -> Tensor:
        """Positions of some queries, int64 [R]."""
        return self._positions(rows, self.start + self.call.offset)

    def _positions_of(self, at: At) -> Tensor:
        """Positions of some keys, int64 [K]."""
        return self._positions(at, self.residue) if isinstance(at, slice) else at

    def _positions(self, steps: slice, first: int) -> Tensor:
        """Positions first + dilation * step."""
        return torch.arange(steps.start, steps.stop, device=self.call.q.device) * self.dilation + first

    def _float(self, hidden: Tensor) -> Tensor:
        """0 and -inf, where `hidden`."""
        zeros = torch.zeros(hidden.shape, dtype=accumulation_dtype(self.call.q.dtype), device=hidden.device)
        return zeros.masked_fill_(hidden, -math.inf)


def part(total: Tensor, at: At) -> Tensor:
    """Return a view of total [Hkv, m, D] to add a block's gradients of keys to, or zeros to `settle`."""
    return total[:, at] if isinstance(at, slice) else total.new_zeros(len(total), len(at), total.shape[2])


def settle(total: Tensor, at: At, found: Tensor) -> None:
    """Bring home what `part` gave."""
    if not isinstance(at, slice):
        total.index_add_(1, at, found)
