"""Small softmaxes of listed queries and listed keys: the columns and rows of global tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from lf_backend.backend import Call
from lf_backend.backends.portable.pieces import Piece, attend, kept, of_heads
from lf_backend.backends.portable.tokens import bias_at
from lf_backend.ops.arguments import Arguments
from lf_backend.pattern.lowered import Lowered

TILE_BYTES = 4 << 20  # scores of one step


class Listed(NamedTuple):
    """Attributes:
    at: int64 [B, X], positions in the row.
    start: int64 [B, X], where their documents begin; None without documents.
    seen: bool [B, X], False where a key is padding or a slot is not used; None for queries.
    """

    at: Tensor
    start: Tensor | None
    seen: Tensor | None = None

    def with_one_hidden(self) -> Listed:
        """Return none of these keys but one that is not to be seen."""
        start = None if self.start is None else pad(self.start, (0, 1))
        at = pad(self.at, (0, 1))
        return Listed(at, start, torch.zeros_like(at, dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Queries against listed keys that share their document.

    Attributes:
        a: the call, for its numbers and its window.
        queries, keys: where they are.
        causal: keys ahead of a query are invisible.
    """

    a: Arguments
    queries: Listed
    keys: Listed
    causal: bool

    def steps(self, q: Tensor) -> Iterator[slice]:
        """Queries [B, H, R, D], a few at a time, so that scores and sums stay small; one step if none."""
        batch, heads, count, width = q.shape
        step = max(1, TILE_BYTES // max(1, 8 * batch * heads * max(width, self.keys.at.shape[1])))
        return (slice(first, first + step) for first in range(0, max(1, count), step))

    def piece(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rows: slice) -> Piece:
        """Return the softmax of some of the queries, [B, H, R, D], over keys [B, Hkv, K, D].

        Args:
            bias: [B or 1, H, R, taps] of these queries, for the pairs within the window.
            rows: which they are.
        """
        a, keys, heads = self.a, self.keys, q.shape[1]
        if k.shape[2] == 0:  # a softmax wants a key: one that nobody sees
            k, v, keys = pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1)), keys.with_one_hidden()
        k, v = of_heads(k, heads), of_heads(v, heads)
        nowhere = Lowered((), (), False, ())
        call = Call(q, k, v, nowhere, None, None, None, a.scale, a.softcap, a.dropout_p, a.seed)
        numbers = torch.arange(heads, device=q.device)[:, None, None]
        at = self.queries.at[:, rows]
        distance = keys.at[:, None, None] - at[:, None, :, None]
        visible = distance <= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if keys.seen is not None:
            visible = visible & keys.seen[:, None, None]
        if keys.start is not None and self.queries.start is not None:
            start = self.queries.start[:, rows]
            visible = visible & (keys.start[:, None, None] == start[:, None, :, None])
        near = None
        if bias is not None:
            near = bias_at(bias.expand(len(q), -1, -1, -1), a.lowered.bands[0], distance)
        drawn = kept(call, numbers, at[:, None, :, None], keys.at[:, None, None])
        return attend(call, q, k, v, visible, near, drawn)


def piece_of(rectangle: Rectangle, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Piece:
    """Return the softmax of all queries; a backward computes it again, a few of them at a time."""
    found = []
    for rows in rectangle.steps(q):
        own: Any = None if bias is None else bias[:, :, rows]
        arguments: Any = (q[:, :, rows], k, v, own, rows)
        if torch.is_grad_enabled():
            piece = checkpoint(rectangle.piece, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            piece = rectangle.piece(*arguments)
        found.append(piece)
    return Piece(*(torch.cat(parts, 2) for parts in zip(*found, strict=True)))


def as_piece(out: Tensor, lse: Tensor) -> Piece:
    """Return a softmax as a piece that others can join, from its out [..., R, Dv] and lse [..., R]."""
    unit = lse.detach()
    total = (lse - unit.masked_fill(unit == -torch.inf, 0)).exp()[..., None]
    return Piece(out * total, total, unit[..., None])
