"""A softmax over some of the keys of every query, and several of them joined into one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend.backend import Call, Documents
from lf_backend.numerics import dropout
from lf_backend.numerics.precision import accumulation_dtype


class Piece(NamedTuple):
    """Attributes, the sums being in units of exp(unit):
    values: [..., R, Dv], sum of weights times v.
    total: [..., R, 1], sum of weights, 0 where a query sees none of these keys.
    unit: [..., R, 1], the largest score, -inf where there is none. It is a constant to derivatives.
    """

    values: Tensor
    total: Tensor
    unit: Tensor


def attend(call: Call, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, bias: Tensor | None,
           keep: Tensor | None) -> Piece:  # fmt: skip
    """Return the piece of queries [..., R, D] and keys [..., K, D]; the rest broadcasts to [..., R, K]."""
    dtype = accumulation_dtype(q.dtype)
    scores = (q.to(dtype) @ k.to(dtype).mT) * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    if bias is not None:
        scores = scores + bias.to(dtype)
    scores = scores.masked_fill(~visible, -math.inf)
    unit = scores.detach().amax(-1, keepdim=True)
    weights = (scores - _finite(unit)).exp()
    total = weights.sum(-1, keepdim=True)
    if keep is not None:
        weights = weights * keep
    return Piece(weights @ v.to(dtype), total, unit)


def joined(pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
    """Return out [..., R, Dv] and lse [..., R] of one softmax over the keys of all pieces."""
    unit = pieces[0].unit
    for piece in pieces[1:]:
        unit = torch.maximum(unit, piece.unit)
    finite = _finite(unit)
    shares = [(piece.unit - finite).exp() for piece in pieces]
    values, total = (
        sum(share * x for share, x in zip(shares[1:], sums[1:], strict=True)) + shares[0] * sums[0]
        for sums in ([piece.values for piece in pieces], [piece.total for piece in pieces])
    )
    nothing = total == 0
    total = total.masked_fill(nothing, 1)
    lse = (total.log() + finite).masked_fill(nothing, -math.inf)
    return values / total, lse.squeeze(-1)


def sink(sinks: Tensor, like: Piece) -> Piece:
    """Return one more logit per head, sinks [H], beside a piece [B, H, R, ...]: a weight without a value."""
    logit = sinks.to(like.total.dtype)[:, None, None]
    unit = logit.detach()
    total = (logit - unit).exp() + torch.zeros_like(like.total)
    return Piece(torch.zeros_like(like.values), total, unit.expand_as(total))


def kept(call: Call, heads: Tensor, queries: Tensor, keys: Tensor) -> Tensor | None:
    """Return the factors of dropout, None without. Positions broadcast with each other and with heads.

    Args:
        heads: int64 [H, 1, ...], as many dimensions as a block of scores has less the batch.
        queries, keys: int64, positions.
    """
    if not call.dropout_p:
        return None
    assert call.seed is not None, "the operator draws a seed"
    examples = torch.arange(call.q.shape[0], device=call.q.device)
    examples = examples.reshape(-1, *(1,) * heads.ndim)
    dtype = accumulation_dtype(call.q.dtype)
    return dropout.factors(call.seed, examples, heads, queries, keys, call.dropout_p, dtype)


def together(documents: Documents, queries: Tensor, keys: Tensor) -> Tensor:
    """Return bool [B, 1, ...] of positions of as many dimensions: whether they share a document."""
    start = documents.start
    return (start[:, queries] == start[:, keys])[:, None]


def of_heads(x: Tensor, heads: int) -> Tensor:
    """Return x [B, Hkv, ...] with every head as often as heads of queries share it."""
    shared = _callers.fixed_size(x, 1)
    if shared == heads:
        return x
    wide = x[:, :, None].expand(-1, -1, heads // shared, *(-1,) * (x.ndim - 2))
    return wide.flatten(1, 2)


def _finite(unit: Tensor) -> Tensor:
    return unit.masked_fill(unit == -math.inf, 0)
