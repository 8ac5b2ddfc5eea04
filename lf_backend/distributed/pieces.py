"""Small softmaxes of listed queries and listed keys: the columns and rows of global tokens."""

from __future__ import annotations

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

TILE_BYTES = 8 << 20  # scores of one step


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


def piece_of(
    a: Arguments,
    q: Tensor,
    queries: Listed,
    k: Tensor,
    v: Tensor,
    keys: Listed,
    bias: Tensor | None,
    causal: bool,
) -> Piece:
    """Return the softmax of queries [B, H, R, D] over keys [B, Hkv, K, D] that share their document.

    A few queries at a time, which a backward computes again, so that scores stay small.

    Args:
        a: the call, for its numbers and its window.
        bias: [B or 1, H, R, taps] of the queries, for the pairs within the window.
        causal: keys ahead of a query are invisible.
    """
    heads = q.shape[1]
    if k.shape[2] == 0:  # a softmax wants a key: one that nobody sees
        k, v, keys = pad(k, (0, 0, 0, 1)), pad(v, (0, 0, 0, 1)), keys.with_one_hidden()
    k, v = of_heads(k, heads), of_heads(v, heads)
    nowhere = Lowered((), (), False, ())
    call = Call(q, k, v, nowhere, None, None, None, a.scale, a.softcap, a.dropout_p, a.seed)
    numbers = torch.arange(heads, device=q.device)[:, None, None]

    def attended(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, at: Tensor, start: Tensor | None
    ) -> Piece:
        distance = keys.at[:, None, None] - at[:, None, :, None]
        visible = distance <= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
        if keys.seen is not None:
            visible = visible & keys.seen[:, None, None]
        if keys.start is not None and start is not None:
            visible = visible & (keys.start[:, None, None] == start[:, None, :, None])
        near = (
            None if bias is None else bias_at(bias.expand(len(q), -1, -1, -1), a.lowered.bands[0], distance)
        )
        drawn = kept(call, numbers, at[:, None, :, None], keys.at[:, None, None])
        return attend(call, q, k, v, visible, near, drawn)

    step = max(1, TILE_BYTES // max(1, 8 * q.shape[0] * heads * k.shape[2]))
    found = []
    for first in range(0, max(1, q.shape[2]), step):
        rows = slice(first, first + step)
        own = None if bias is None else bias[:, :, rows]
        start = None if queries.start is None else queries.start[:, rows]
        arguments: Any = (q[:, :, rows], k, v, own, queries.at[:, rows], start)
        if torch.is_grad_enabled():
            found.append(checkpoint(attended, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            found.append(attended(*arguments))
    return Piece(*(torch.cat(parts, 2) for parts in zip(*found, strict=True)))


def as_piece(out: Tensor, lse: Tensor) -> Piece:
    """Return a softmax as a piece that others can join, from its out [..., R, Dv] and lse [..., R]."""
    unit = lse.detach()
    total = (lse - unit.masked_fill(unit == -torch.inf, 0)).exp()[..., None]
    return Piece(out * total, total, unit[..., None])
