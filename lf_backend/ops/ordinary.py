"""The whole call by ordinary operators of PyTorch: what runs where an opaque operator will not do.

The same as `op.attention`: the local part of the portable backend, and around it what `around_backend` does
for every backend, here without a look at data and without writing in place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend._device_constants import on_device
from lf_backend.backend import Call, Columns, Documents
from lf_backend.backends.portable.backend import Portable, local_pieces
from lf_backend.backends.portable.pieces import Piece, joined, sink
from lf_backend.backends.portable.tokens import row_piece
from lf_backend.dispatch.select import preference
from lf_backend.errors import UnsupportedError
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.ops.arguments import Arguments
from lf_backend.ops.documents import boundaries
from lf_backend.ops.global_tokens import marked


def attention(a: Arguments) -> tuple[Tensor, Tensor]:
    """Return out [B, H, N, Dv] and lse [B, H, N].

    Raises:
        UnsupportedError: another backend is asked for by name.
    """
    if (asked := a.backend or preference()) not in ("", Portable.name):
        raise UnsupportedError(
            f"backend: {Portable.name!r} or no name wanted under torch.jit.trace, torch.func, forward-mode "
            f"or double differentiation and `lf.portable()`, got {asked!r}"
        )
    with torch.autocast(a.q.device.type, enabled=False):
        return _attention(a)


def _attention(a: Arguments) -> tuple[Tensor, Tensor]:
    q, k, v, *own = _without_padding(a)
    documents = None if a.documents is None else boundaries(a.documents)
    columns, is_global = _columns(a, documents)
    call = Call(
        q,
        k,
        v,
        a.lowered,
        columns,
        a.key_padding,
        a.band_bias,
        a.scale,
        a.softcap,
        a.dropout_p,
        a.seed,
        documents=documents,
    )
    pieces = local_pieces(call) or [_nothing(a)]
    out, lse = _with_sinks(a, pieces)
    if columns is not None and is_global is not None:
        projections = (own[0], own[1], own[2]) if own else (q, k, v)
        rows = _with_sinks(a, [row_piece(call, projections, columns)])
        out, lse = _placed((out, lse), rows, is_global, a)
    if a.key_padding is not None:
        padded = a.key_padding[:, None, call.offset :]
        out, lse = out.masked_fill(padded[..., None], 0), lse.masked_fill(padded, -math.inf)
    return out.to(a.q.dtype), lse


def _without_padding(a: Arguments) -> list[Tensor]:
    """Return q, k, v, and the projections of global rows if there are any, with 0 where they are padded."""
    given = [x for x in (a.q, a.k, a.v, a.global_q, a.global_k, a.global_v) if x is not None]
    if a.key_padding is None:
        return given
    queries = a.key_padding[:, None, a.k.shape[2] - a.q.shape[2] :, None]
    keys = a.key_padding[:, None, :, None]
    return [x.masked_fill(keys if index % 3 else queries, 0) for index, x in enumerate(given)]


def _columns(a: Arguments, documents: Documents | None) -> tuple[Columns | None, Tensor | None]:
    """Return the global tokens, and as a mask bool [B, M]; None if there cannot be any.

    Tokens of the pattern alone are counted by it, and those that come as positions by their shape. How many a
    mask marks is data, and nothing depends on it but the size of what is computed.
    """
    lowered = a.lowered
    if not a.brings_globals and not lowered.positions:
        return None, None
    size = a.k.shape[0], a.k.shape[2]
    given = a.key_padding, a.global_mask, a.global_positions, None if documents is None else documents.start
    mask = marked(lowered.positions, size, a.k.device, *given)
    at = torch.arange(a.k.shape[2], device=a.k.device)
    if _is_of_pattern(a):
        static = on_device(lowered.positions, torch.int64, at.device).expand(a.k.shape[0], -1)
        return Columns(static, mask.gather(1, static), lowered.causal_globals), mask
    slots = torch.arange(_slots(a, mask), device=at.device)
    rank = torch.where(mask, mask.cumsum(1), 0)  # from 1, 0 for what is no global token
    positions = torch.where(rank[:, None] == slots[:, None] + 1, at, 0).sum(2)
    valid = slots < mask.sum(1, keepdim=True)
    causal = a.resolved.is_causal if a.brings_globals else lowered.causal_globals
    return Columns(positions, valid, causal), mask


def _is_of_pattern(a: Arguments) -> bool:
    """Whether the pattern alone says where the global tokens are."""
    return not a.brings_globals and a.documents is None


def _slots(a: Arguments, mask: Tensor) -> int:
    """Return a number of slots that holds the global tokens of every example."""
    static = len(a.lowered.positions)
    if a.global_positions is None or (a.documents is not None and static):
        return _most(mask)
    return _callers.fixed_size(a.global_positions, 1) + static


def _most(mask: Tensor) -> int:
    """Return the largest number of marks in a row, at least 1, or what is surely no less."""
    if _callers.may_look(mask):
        return max(1, int(mask.sum(1).max())) if mask.numel() else 1
    if _callers.is_mapped(mask):
        return mask.shape[1]
    most = mask.sum(1).max().clamp(min=1)
    if _callers.is_traced():
        return most  # type: ignore[return-value]  # an integer that the trace computes anew
    count: Any = most.item()
    check: Any = torch._check
    check(count >= 1)
    check(count <= mask.shape[1])
    return count  # type: ignore[no-any-return]  # a symbol


def _nothing(a: Arguments) -> Piece:
    """Return the piece of a pattern that shows nothing; its derivatives are 0."""
    total = (a.q[..., :1] * 0).to(accumulation_dtype(a.q.dtype))
    values = total * a.v[:, :1, :1].to(total.dtype)
    return Piece(values, total, torch.full_like(total.detach(), -math.inf))


def _with_sinks(a: Arguments, pieces: list[Piece]) -> tuple[Tensor, Tensor]:
    return joined(pieces if a.sinks is None else [*pieces, sink(a.sinks, pieces[0])])


def _placed(
    results: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor], is_global: Tensor, a: Arguments
) -> tuple[Tensor, Tensor]:
    """Return out and lse with the rows [B, H, G, ...] of global tokens in their places.

    A query reads the row of its rank among the global tokens of its example; nothing is written, so that
    slots that an example does not use cannot collide with one that it does.
    """
    offset = a.k.shape[2] - a.q.shape[2]
    if _is_of_pattern(a):  # slots are the pattern's, padded ones included
        static = on_device(a.lowered.positions, torch.int64, is_global.device)
        at = torch.arange(a.k.shape[2], device=is_global.device)
        rank = (at[:, None] > static).sum(1).clamp(max=len(a.lowered.positions) - 1)
        rank = rank.expand(is_global.shape[0], -1)[:, offset:]
    else:
        rank = (is_global.cumsum(1) - 1).clamp(min=0)[:, offset:]
    chosen = is_global[:, None, offset:]
    index = rank[:, None].expand(-1, a.q.shape[1], -1)
    lse = torch.where(chosen, rows[1].gather(2, index), results[1])
    wide = index[..., None].expand(-1, -1, -1, results[0].shape[3])
    return torch.where(chosen[..., None], rows[0].gather(2, wide), results[0]), lse
