"""The answer to a call over ranks: windows over a slice and its halo, global tokens as columns and as rows.

Windows see the slice and what neighbours lend. Columns, the keys of global tokens, come from all ranks and
are joined to the windows' softmax. Rows, the queries of global tokens, go to all ranks, each of which
computes them over its own keys; the owner joins what comes back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend.backends.portable.pieces import Piece, joined, sink
from lf_backend.distributed.exchange import Parcel, exchange
from lf_backend.distributed.pieces import Listed, as_piece, piece_of
from lf_backend.distributed.plan import Plan, refusals
from lf_backend.distributed.slices import returning
from lf_backend.distributed.tokens import Tokens
from lf_backend.distributed.windows import agree_on_backend, windows
from lf_backend.errors import ShapeError, UnsupportedError


class Answer(NamedTuple):
    """Attributes:
    out: [B, H, n, Dv].
    lse: [B, H, n].
    near: out and lse of windows and rules alone.
    """

    out: Tensor
    lse: Tensor
    near: tuple[Tensor, Tensor]


def computed(plan: Plan, known: tuple[Tensor, Tensor] | None = None) -> Answer:
    """Return the answer to a call.

    Args:
        known: out and lse of its windows, if they were computed before; the derivative is there all the same.

    Raises:
        UnsupportedError: it needs all keys on all ranks, with every reason; or the backend that was asked for
            cannot run it.
        ShapeError: the tensors are not where the mesh is.
    """
    if reasons := refusals(plan):
        raise UnsupportedError("; ".join(reasons))
    if plan.a.q.device.type != plan.group.device.type:
        wanted, got = plan.group.device.type, plan.a.q.device.type
        raise ShapeError(f"q: device {wanted} of the mesh wanted, got {got}")
    if known is None:
        agree_on_backend(plan)
    with torch.autocast(plan.a.q.device.type, enabled=False):
        return _computed(plan, known)


def _computed(plan: Plan, known: tuple[Tensor, Tensor] | None) -> Answer:
    near, arrived = windows(plan, known)
    if plan.tokens is None:
        return Answer(*near, near)
    out, lse = _with_sinks(plan, [as_piece(*near), _columns(plan, plan.tokens, arrived)])
    rows = _rows(plan, plan.tokens, arrived)
    out, lse = (_placed(plan.tokens, x, new) for x, new in zip((out, lse), rows, strict=True))
    if plan.a.key_padding is not None:
        padded = plan.a.key_padding[:, None]
        out, lse = out.masked_fill(padded[..., None], 0), lse.masked_fill(padded, -torch.inf)
    return Answer(out.to(plan.a.q.dtype), lse, near)


def _columns(plan: Plan, tokens: Tokens, arrived: dict[str, Tensor]) -> Piece:
    """Return the softmax of this rank's queries over all global tokens."""
    a = plan.a
    q = a.q if a.key_padding is None else a.q.masked_fill(a.key_padding[:, None, :, None], 0)
    k, v, keys = arrived["column_k"], arrived["column_v"], _gathered(arrived)
    return piece_of(a, q, _own(plan), k, v, keys, a.band_bias, tokens.causal)


def _rows(plan: Plan, tokens: Tokens, arrived: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return out [B, H, G, Dv] and lse [B, H, G] of this rank's global tokens as queries, over all keys."""
    a = plan.a
    k, v = (a.k, a.v) if a.global_k is None or a.global_v is None else (a.global_k, a.global_v)
    if a.key_padding is not None:
        k, v = (x.masked_fill(a.key_padding[:, None, :, None], 0) for x in (k, v))
    keys = _own(plan)._replace(seen=None if a.key_padding is None else ~a.key_padding)
    bias = arrived.get("row_bias")
    partial, lse = joined(
        [piece_of(a, arrived["row_q"], _gathered(arrived), k, v, keys, bias, tokens.causal)]
    )
    ranks = plan.group.size
    route = returning(tokens.counts, plan.group.rank)
    back = exchange(plan.group, [Parcel(partial, route), Parcel(lse[..., None], route)])
    pieces = [as_piece(x, y[..., 0]) for x, y in zip(*(z.tensor_split(ranks, 2) for z in back), strict=True)]
    return _with_sinks(plan, pieces)


def _own(plan: Plan) -> Listed:
    at = torch.arange(plan.own.start, plan.own.stop, device=plan.a.q.device)
    return Listed(at.expand(plan.a.q.shape[0], -1), plan.start)


def _gathered(arrived: dict[str, Tensor]) -> Listed:
    at, start = arrived["at"][:, 0, :, 0], arrived.get("token_start")
    return Listed(at, None if start is None else start[:, 0, :, 0], at >= 0)


def _with_sinks(plan: Plan, pieces: list[Piece]) -> tuple[Tensor, Tensor]:
    sinks = plan.a.sinks
    return joined(pieces if sinks is None else [*pieces, sink(sinks, pieces[0])])


def _placed(tokens: Tokens, x: Tensor, rows: Tensor) -> Tensor:
    """Return x [B, H, n, ...] with rows [B, H, G, ...] in the places of global tokens.

    Every rank's x depends on its rows, be they none, so that a backward on all reaches their exchange.
    """
    batch, slot = tokens.valid.nonzero(as_tuple=True)
    new = rows.transpose(1, 2)[batch, slot]
    placed = x.transpose(1, 2).index_put((batch, tokens.at[batch, slot]), new)
    return placed.transpose(1, 2).contiguous()
