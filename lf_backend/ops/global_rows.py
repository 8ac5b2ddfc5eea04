"""The rows of global tokens: few queries, all keys.

Rows are computed here once, above all backends, because they are the one place where the separate
projections of the paper (section 3.1, "linear projections for global attention") come in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lf_backend._looked import once
from lf_backend.backend import Backend, Call, Gradients
from lf_backend.numerics import band_bias, dense, dropout
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.pattern.bands import EVERYTHING, PAST
from lf_backend.pattern.lowered import Lowered

TILE_BYTES = 8 << 20  # scores of one step; small enough for a CPU's cache, large enough for a GPU
DOCUMENT_ROWS = 16  # of one step with packed documents, in each of which a row sees one


@dataclass(frozen=True, eq=False)
class Rows:
    """Global tokens that are among the queries.

    Attributes:
        index: int64 [B, R], their query rows; meaningless where not `valid`.
        valid: bool [B, R].
        causal: a row sees only the past.
        q [B, H, N, D], k, v [B, Hkv, M, D]: what the rows are computed from.
        call: the local part of the same call.
        backend: what computes the rows, as queries at listed positions; None for dense products, here.
    """

    index: Tensor
    valid: Tensor
    causal: bool
    q: Tensor
    k: Tensor
    v: Tensor
    call: Call
    backend: Backend | None

    @classmethod
    def of(cls, call: Call, own: tuple[Tensor, Tensor, Tensor] | None, backend: Backend) -> Rows | None:
        """The global rows of a call; `own` are the separate projections, if any."""
        if call.columns is None:
            return None
        index, valid, causal = call.columns
        if call.offset:
            index, valid = once(_among_queries, index, valid, call.offset, call.k.shape[2])
        able = backend.capabilities.listed_queries or backend.capabilities.rows_in_place
        able = able and call.band_bias is None
        return cls(index, valid, causal, *(own or (call.q, call.k, call.v)), call, backend if able else None)

    def forward(self, out: Tensor, lse: Tensor) -> None:
        """Overwrite the rows of out [B, H, N, D] and lse [B, H, N]."""
        if self.backend is not None and self.backend.capabilities.rows_in_place:
            self.backend.forward_rows(self._in_place(), out, lse)
            return
        if self.backend is not None:
            for x, new in zip((out, lse), self.backend.forward(self._listed()), strict=True):
                self._write(x, torch.where(self._shaped(self.valid, x), new.to(x.dtype), self._read(x)))
            return
        for tile in self._tiles():
            rows, rows_lse = dense.forward(tile.area)
            tile.write(out, rows)
            tile.write(lse, rows_lse)

    def weigh(self, weights: Tensor, lse: Tensor) -> None:
        """Overwrite the rows of weights [B, H, N, M], given the lse [B, H, N] of the whole softmax."""
        for tile in self._tiles():
            tile.write(weights[..., tile.keys], dense.weights(tile.area, tile.read(lse)))

    @property
    def listed(self) -> Tensor:
        """int64 [B, R], the query rows, -1 where there is none."""
        return once(_marked, self.index, self.valid, 0)

    def backward(
        self,
        grad_out: Tensor,
        out: Tensor | None,
        delta: Tensor,
        lse: Tensor,
        into: Gradients | None,
        grad_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of `q`, `k`, `v`.

        Args:
            into: the local part's gradients, to which those of the rows are added; None if the rows are made
                from other tensors.
            grad_bias: that of the band bias, to which theirs is added in any case; None without one.
        """
        if self.backend is not None and self.backend.capabilities.rows_in_place:
            return self.backend.backward_rows(self._in_place(), grad_out, delta, lse, into)[:3]
        if into is None:
            grads = torch.zeros_like(self.q), torch.zeros_like(self.k), torch.zeros_like(self.v)
        else:
            grads = into[:3]
        self._add(grad_out, out, delta, lse, grads, grad_bias)
        return grads

    def _add(
        self,
        grad_out: Tensor,
        out: Tensor | None,
        delta: Tensor,
        lse: Tensor,
        grads: tuple[Tensor, Tensor, Tensor],
        grad_bias: Tensor | None,
    ) -> None:
        """Add the rows' gradients to those of `q`, `k`, `v` and of the band bias."""
        grad_q, grad_k, grad_v = grads
        if self.backend is not None:
            safe = self._read(lse).masked_fill(~self.valid[:, None], torch.inf)
            more = self.backend.backward(
                self._listed(),
                self._read(grad_out),
                None if out is None else self._read(out),
                self._read(delta),
                safe,
            )
            self._write(grad_q, self._read(grad_q) + more.q)
            grad_k += more.k
            grad_v += more.v
            return
        for tile in self._tiles():
            safe = tile.read(lse).masked_fill(~tile.valid, torch.inf)
            found = dense.backward(tile.area, tile.read(grad_out), tile.read(delta), safe)
            tile.add(grad_q, found.q)
            grad_k[tile.batch, tile.kv_heads, tile.keys] += found.k.to(grad_k.dtype)
            grad_v[tile.batch, tile.kv_heads, tile.keys] += found.v.to(grad_v.dtype)
            if grad_bias is not None:
                own = tile.batch if grad_bias.shape[0] > 1 else 0
                band = self.call.lowered.bands[0]
                width = grad_bias.shape[-1]
                values = band_bias.collect(
                    found.scores, band.of_heads(tile.heads), tile.queries - tile.keys.start, width
                )
                grad_bias[own, tile.heads].index_add_(1, tile.rows, values.to(grad_bias.dtype))

    def _in_place(self) -> Call:
        """The rows as a call of their own, with positions in the whole of q."""
        lowered = Lowered((PAST if self.causal else EVERYTHING,), (), False, ())
        at = once(_marked, self.index, self.valid, self.call.offset)
        return replace(self.call, q=self.q, k=self.k, v=self.v, lowered=lowered, columns=None, positions=at)

    def _listed(self) -> Call:
        """The rows as a call of their own; a slot that is not used repeats the last one that is."""
        lowered = Lowered((PAST if self.causal else EVERYTHING,), (), False, ())
        at = self.index + self.call.offset
        if self.call.documents is not None:
            last = at.masked_fill(~self.valid, 0).amax(1, keepdim=True)
            at = torch.where(self.valid, at, last)
        return replace(
            self.call, q=self._read(self.q), k=self.k, v=self.v, lowered=lowered, columns=None, positions=at
        )

    def _shaped(self, x: Tensor, like: Tensor) -> Tensor:
        """x [B, R] as it meets the rows of `like` [B, H, N, ...]."""
        return x.view(len(x), 1, -1, *(1,) * (like.ndim - 3))

    def _places(self, x: Tensor) -> Tensor:
        return self._shaped(self.index, x).expand(-1, x.shape[1], -1, *x.shape[3:])

    def _read(self, x: Tensor) -> Tensor:
        """The rows [B, H, R, ...] of x [B, H, N, ...]."""
        return x.gather(2, self._places(x))

    def _write(self, x: Tensor, new: Tensor) -> None:
        """Overwrite the rows of x."""
        x.scatter_(2, self._places(x), new)

    def _tiles(self) -> Iterator[_Tile]:
        """All rows, a few heads and rows at a time so that scores stay small."""
        kv_heads, keys = self.k.shape[1:3]
        heads = self.q.shape[1]
        group = heads // kv_heads
        most = max(1, TILE_BYTES // (4 * group * keys))
        most = most if self.call.documents is None else min(most, DOCUMENT_ROWS)
        for batch in range(self.q.shape[0]):
            for rows in _chunks(self.index.shape[1], most):
                count, at = rows.stop - rows.start, self._reach(batch, rows)
                for kv in _chunks(kv_heads, max(1, TILE_BYTES // (4 * group * keys * count))):
                    yield self._tile(batch, rows, at, kv, slice(kv.start * group, kv.stop * group))

    def _reach(self, batch: int, rows: slice) -> slice:
        """Keys that some rows can see between them: all, or where a look is free those of their documents."""
        documents, valid = self.call.documents, self.valid[batch, rows]
        if documents is None or valid.device.type != "cpu":
            return slice(0, self.k.shape[2])
        queries = (self.index[batch, rows] + self.call.offset)[valid]
        if not len(queries):
            return slice(0, 1)
        return slice(int(documents.start[batch, queries[0]]), int(documents.end[batch, queries[-1]]))

    def _tile(self, batch: int, rows: slice, at: slice, kv: slice, heads: slice) -> _Tile:
        call, valid = self.call, self.valid[batch, rows]
        index = self.index[batch, rows]
        queries = index + call.offset
        keys = torch.arange(at.start, at.stop, device=index.device)
        visible = keys <= queries[:, None] if self.causal else keys >= 0
        if call.documents is not None:
            visible = visible & call.documents.together(batch, queries[:, None], keys)
        if call.key_padding is not None:
            visible = visible & ~call.key_padding[batch, at]
        bias = keep = None
        dtype = accumulation_dtype(self.q.dtype)
        if call.band_bias is not None:
            own = call.band_bias[batch if call.band_bias.shape[0] > 1 else 0, heads][:, index]
            band = call.lowered.bands[0].of_heads(heads)
            bias = band_bias.spread(own.to(dtype), band, queries, self.k.shape[2])[..., at]
        if call.dropout_p:
            assert call.seed is not None, "the operator draws a seed"
            numbers = torch.arange(heads.start, heads.stop, device=index.device)
            keep = dropout.keep(call.seed, batch, numbers, queries, keys, call.dropout_p, dtype)
        area = dense.Rectangle(
            self.q[batch, heads][:, index],
            self.k[batch, kv, at],
            self.v[batch, kv, at],
            visible,
            bias,
            keep,
            call.scale,
            call.softcap,
        )
        return _Tile(area, batch, heads, kv, index, queries, valid, at)


@dataclass(frozen=True, eq=False)
class _Tile:
    """Some rows of some heads of one example."""

    area: dense.Rectangle
    batch: int
    heads: slice
    kv_heads: slice
    rows: Tensor
    queries: Tensor
    valid: Tensor
    keys: slice

    def read(self, x: Tensor) -> Tensor:
        """The tile's rows [H, R, ...] of x [B, H, N, ...]."""
        return x[self.batch, self.heads][:, self.rows]

    def write(self, x: Tensor, new: Tensor) -> None:
        """Overwrite the valid rows of x with `new` [H, R, ...]."""
        valid = self.valid.view(1, -1, *(1,) * (new.ndim - 2))
        x[self.batch, self.heads][:, self.rows] = torch.where(valid, new.to(x.dtype), self.read(x))

    def add(self, x: Tensor, more: Tensor) -> None:
        """Add `more` [H, R, ...], which is 0 where a row is not valid, to the rows of x."""
        x[self.batch, self.heads].index_add_(1, self.rows, more.to(x.dtype))


def _among_queries(at: Tensor, valid: Tensor, offset: int, keys: int) -> tuple[Tensor, Tensor]:
    """Index and validity [B, R] of the global tokens at `offset` or later, indices distinct."""
    mask = valid.new_zeros(len(at), keys).scatter_(1, at, valid)[:, offset:]
    index = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : at.shape[1]]
    return index, mask.gather(1, index)


def _marked(index: Tensor, valid: Tensor, offset: int) -> Tensor:
    """Positions of rows, -1 where there is none."""
    return (index + offset).masked_fill_(~valid, -1)


def _chunks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
