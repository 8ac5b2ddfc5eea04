"""Global columns by plain products, for backends whose kernels have a window alone.

They are few keys: a softmax over those that no window shows is joined to that of the window by its
log-sum-exp, and their gradients are added to the window's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lf_backend.numerics import dense
from lf_backend.numerics.join import join

if TYPE_CHECKING:
    from lf_backend.backend import Call

ROWS = 4096  # computed at a time


def join_columns(call: Call, out: Tensor, lse: Tensor) -> None:
    """Join the columns of a call into out [B, H, N, D], float32, and lse [B, H, N], in place."""
    for area in _areas(call):
        more, more_lse = dense.forward(area.rectangle)
        join(area.of_queries(out), area.of_queries(lse), more, more_lse)


def add_gradients(
    call: Call, grad_out: Tensor, delta: Tensor, lse: Tensor, into: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Add the gradients from the columns of a call to those of q, k and v, float32, in place.

    Args:
        grad_out, delta, lse: as in `Backend.backward`.
    """
    grad_q, grad_k, grad_v = into
    for area in _areas(call):
        part = dense.backward(area.rectangle, *(area.of_queries(x) for x in (grad_out, delta, lse)))
        area.of_queries(grad_q).add_(part.q)
        grad_k[area.batch].index_add_(1, area.positions, part.k)
        grad_v[area.batch].index_add_(1, area.positions, part.v)


@dataclass(frozen=True, eq=False)
class _Area:
    """Some rows of one example and its global columns."""

    batch: int
    rows: slice
    positions: Tensor
    rectangle: dense.Rectangle

    def of_queries(self, x: Tensor) -> Tensor:
        return x[self.batch, :, self.rows]


def _areas(call: Call) -> Iterator[_Area]:
    """Columns without what a band shows, a few thousand rows at a time."""
    if call.columns is None:
        return
    queries, device = call.q.shape[2], call.q.device
    head = torch.arange(call.q.shape[1], device=device)[:, None, None]
    documents = None if call.documents is None else call.documents.start
    for batch, (at, valid) in enumerate(zip(call.columns.positions, call.columns.valid, strict=True)):
        k, v = call.k[batch][:, at], call.v[batch][:, at]
        for start in range(0, queries, ROWS):
            rows = slice(start, min(start + ROWS, queries))
            query = torch.arange(rows.start, rows.stop, device=device)[:, None] + call.offset
            seen = valid & (at <= query) if call.columns.causal else valid.expand(len(query), -1)
            if documents is not None:
                seen = seen & (documents[batch][query] == documents[batch][at])
            for band in call.lowered.bands:
                seen = seen & ~band.sees(head, query, at)
            area = dense.Rectangle(call.q[batch, :, rows], k, v, seen, None, None, call.scale, None)
            yield _Area(batch, rows, at, area)
