"""The answer to a call over ranks: windows over a slice and its halo, global tokens as columns and as rows.

Windows see the slice and what neighbours lend. Columns, the keys of global tokens, come from all ranks and
are joined to the windows' softmax. Rows, the queries of global tokens, go to all ranks, each of which
computes them over its own keys; the owner joins what comes back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lf_backend.backends.portable.pieces import Piece, joined, sink
from lf_backend.distributed.exchange import Parcel, exchange
from lf_backend.distributed.pieces import Rectangle, as_piece, piece_of
from lf_backend.distributed.plan import Plan, refusals
from lf_backend.distributed.slices import returning
from lf_backend.distributed.tokens import Tokens
from lf_backend.distributed.windows import agree_on_backend, gathered, own_of, windows
from lf_backend.errors import ShapeError, UnsupportedError


def computed(plan: Plan, known: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Return out [B, H, n, Dv] and lse [B, H, n] of a call.

    Args:
        known: the same, if they were computed before; the derivative is there all the same.

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


def _computed(plan: Plan, known: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    (out, lse), arrived = windows(plan, known)
    if plan.tokens is None:
        return out, lse
    apply: Any = _Placed.apply
    found: tuple[Tensor, Tensor] = apply(out, lse, *_rows(plan, plan.tokens, arrived), plan.tokens.places)
    return found


def _rows(plan: Plan, tokens: Tokens, arrived: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return out [B, H, G, Dv] and lse [B, H, G] of this rank's global tokens as queries, over all keys."""
    a = plan.a
    k, v = (a.k, a.v) if a.global_k is None or a.global_v is None else (a.global_k, a.global_v)
    if a.key_padding is not None:
        k, v = (x.masked_fill(a.key_padding[:, None, :, None], 0) for x in (k, v))
    keys = own_of(plan)._replace(seen=None if a.key_padding is None else ~a.key_padding)
    rectangle = Rectangle(a, gathered(arrived), keys, tokens.causal)
    partial, lse = joined([piece_of(rectangle, arrived["row_q"], k, v, arrived.get("row_bias"))])
    ranks = plan.group.size
    route = returning(tokens.counts, plan.group.rank)
    back = exchange(plan.group, [Parcel(partial, route), Parcel(lse[..., None], route)])
    pieces = [as_piece(x, y[..., 0]) for x, y in zip(*(z.tensor_split(ranks, 2) for z in back), strict=True)]
    return _with_sinks(plan, pieces)


def _with_sinks(plan: Plan, pieces: list[Piece]) -> tuple[Tensor, Tensor]:
    sinks = plan.a.sinks
    return joined(pieces if sinks is None else [*pieces, sink(sinks, pieces[0])])


class _Placed(torch.autograd.Function):
    """Writes rows [B, H, G, ...] of out and lse into the places of global tokens, which have nothing yet.

    Every rank's out depends on its rows, be they none, so that a backward on all reaches their exchange.
    """

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, lse: Tensor, row_out: Tensor, row_lse: Tensor, where: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        batch, slot, at = where
        out[batch, :, at] = row_out[batch, :, slot].to(out.dtype)
        lse[batch, :, at] = row_lse[batch, :, slot].to(lse.dtype)
        ctx.mark_dirty(out, lse)
        ctx.set_materialize_grads(False)
        ctx.shapes, ctx.dtypes = (row_out.shape, row_lse.shape), (row_out.dtype, row_lse.dtype)
        # Kept to be asked whether somebody has written to it since: what the windows need of it they have.
        ctx.save_for_backward(out, *where)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        _, batch, slot, at = ctx.saved_tensors
        rows: list[Tensor | None] = []
        for grad, shape, dtype in zip(grads, ctx.shapes, ctx.dtypes, strict=True):
            found = None if grad is None else grad.new_zeros(shape, dtype=dtype)
            if grad is not None and found is not None:
                found[batch, :, slot] = grad[batch, :, at].to(dtype)
            rows.append(found)
        return *grads, *rows, None  # of places that windows leave alone whatever their gradient is
