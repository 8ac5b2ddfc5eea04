"""One block of the blocked backend: scores, softmax over all its parts, gradients.

What it owes to the machine (x86 with AVX-512, where it was measured):
- Masks and -lse enter through the addend of the score product, which costs nothing.
- Exponentials are exp2, twice as fast as exp; scores carry the factor log2(e) for it.
- Products of half-precision inputs stay in that precision; softmax is float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend.backends.blocked.strips import LOG2E, Block, Part


class BlockGradients(NamedTuple):
    """Of q [H, R, D], and for each part of k, v [Hkv, K, D] and of the scores [H, R, K]."""

    q: Tensor
    k: list[Tensor]
    v: list[Tensor]
    scores: list[Tensor]


def attend(block: Block) -> tuple[Tensor, Tensor]:
    """Out [H, R, D] and lse [H, R] of a block, in the accumulation dtype."""
    if not block.parts:
        return block.q.new_zeros(block.q.shape), _no_lse(block)
    scores = [_scores(block, part)[0] for part in block.parts]
    top = scores[0].amax(-1, keepdim=True)
    for more in scores[1:]:
        top = torch.maximum(top, more.amax(-1, keepdim=True))
    top.masked_fill_(top == -math.inf, 0)
    weights = [part_scores.sub_(top).exp2_() for part_scores in scores]
    total = weights[0].sum(-1, keepdim=True)
    for more in weights[1:]:
        total += more.sum(-1, keepdim=True)
    out = None
    for part, part_weights in zip(block.parts, weights, strict=True):
        if part.keep is not None:
            part_weights *= part.keep
        product = torch.bmm(_fold(part_weights.to(part.v.dtype), part), part.v)
        out = product if out is None else out.add_(product)
    assert out is not None, "a block has parts"
    lse = total.log2().add_(top).mul_(1 / LOG2E).squeeze(-1)
    return out.view(block.q.shape).div(total.masked_fill(total == 0, 1)), lse


def differentiate(block: Block, grad_out: Tensor, delta: Tensor, lse: Tensor) -> BlockGradients:
    """Gradients of a block; grad_out [H, R, D], delta and lse [H, R] as in `Backend.backward`."""
    scale = block.call.scale
    grad_q = torch.zeros_like(block.q)
    found = BlockGradients(grad_q, [], [], [])
    for part in block.parts:
        weights, capped = _scores(block, part, lse[..., None] * LOG2E)
        weights.exp2_()
        upstream = _fold(grad_out, part)
        scores = _grad_scores(weights, part, upstream, delta[..., None])
        found.scores.append(scores)
        if part.keep is not None:
            weights *= part.keep
        found.v.append(torch.bmm(_fold(weights.to(part.v.dtype), part).mT, upstream))
        if capped is not None:
            scores = scores * capped.square_().neg_().add_(1)
        raw = _fold(scores.to(part.k.dtype), part)
        grad_q += torch.bmm(raw, part.k).view(block.q.shape)
        found.k.append(torch.bmm(raw.mT, _fold(block.q, part)).mul_(scale))
    grad_q *= scale
    return found


def _scores(block: Block, part: Part, minus: Tensor | float = 0.0) -> tuple[Tensor, Tensor | None]:
    """Masked scores [H, R, K] times log2(e), less `minus`; and tanh(score / cap) if capped."""
    call, (heads, rows, _) = block.call, block.q.shape
    q, shape = _fold(block.q, part), (heads, rows, part.k.shape[1])
    if call.softcap is None and part.mask.dtype == q.dtype:
        scores = (part.mask - minus).expand(shape).contiguous()
        _fold(scores, part).baddbmm_(q, part.k.mT, alpha=call.scale * LOG2E)
        return scores, None
    raw = torch.bmm(q, part.k.mT).view(shape).to(part.mask.dtype)
    if call.softcap is None:
        return raw.mul_(call.scale * LOG2E).add_(part.mask).sub_(minus), None
    capped = raw.mul_(call.scale / call.softcap).tanh_()
    return (capped * (call.softcap * LOG2E)).add_(part.mask).sub_(minus), capped


def _grad_scores(weights: Tensor, part: Part, upstream: Tensor, delta: Tensor) -> Tensor:
    """weights * (keep * (grad_out @ v) - delta), [H, R, K]."""
    if part.keep is None and weights.dtype == part.v.dtype:
        grad = (-delta).expand(weights.shape).contiguous()
        _fold(grad, part).baddbmm_(upstream, part.v.mT)
        return grad.mul_(weights)
    grad = torch.bmm(upstream, part.v.mT).view(weights.shape).to(weights.dtype)
    if part.keep is not None:
        grad *= part.keep
    return grad.sub_(delta).mul_(weights)


def _fold(x: Tensor, part: Part) -> Tensor:
    """[H, R, *] to [Hkv, H / Hkv * R, *]: heads that share keys become rows of one product."""
    heads = part.k.shape[0]
    return x if x.shape[0] == heads else x.reshape(heads, -1, x.shape[-1])


def _no_lse(block: Block) -> Tensor:
    dtype = torch.float64 if block.q.dtype == torch.float64 else torch.float32
    return block.q.new_full(block.q.shape[:2], -math.inf, dtype=dtype)
