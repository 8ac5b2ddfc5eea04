"""Attention of a rectangle of queries x keys under an explicit mask, forward and backward.

The plain formulas, in float32 (float64 for float64), for what is small or need not be fast: the rows
of global tokens and the reference backend. Products are torch.bmm, which takes views as they are; `@`
copies them. Shapes are those of one example:
q [H, N, D], k and v [Hkv, M, D], masks and scores [H, N, M].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend.numerics.precision import accumulation_dtype


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Attributes:
    q, k, v: any float dtype.
    visible: bool, broadcasts to [H, N, M].
    bias: added to the capped scores, broadcasts to [H, N, M], or None.
    keep: dropout factors [H, N, M], or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    visible: Tensor
    bias: Tensor | None
    keep: Tensor | None
    scale: float
    softcap: float | None


class RectangleGradients(NamedTuple):
    """In the accumulation dtype; `scores` [H, N, M] is the gradient of the biased scores."""

    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor


def forward(area: Rectangle) -> tuple[Tensor, Tensor]:
    """Out [H, N, D] in the accumulation dtype and lse [H, N]; 0 and -inf where nothing is seen."""
    scores, _ = _scores(area)
    unit = scores.amax(-1, keepdim=True)
    unit.masked_fill_(unit == -torch.inf, 0)
    weights = scores.sub_(unit).exp_()
    total = weights.sum(-1, keepdim=True)
    if area.keep is not None:
        weights *= area.keep
    out = torch.bmm(_fold(weights, area), area.v.to(weights.dtype)).view(*area.q.shape[:2], -1)
    return out.div_(total.masked_fill(total == 0, 1)), total.log_().add_(unit).squeeze(-1)


def weights(area: Rectangle, lse: Tensor) -> Tensor:
    """exp(score - lse) [H, N, M], without dropout."""
    return (_scores(area)[0] - _safe(lse)).exp_()


def backward(area: Rectangle, grad_out: Tensor, delta: Tensor, lse: Tensor) -> RectangleGradients:
    """Gradients from those of out [H, N, D]; delta and lse [H, N] as in `Backend.backward`."""
    scores, capped = _scores(area)
    probabilities = (scores - _safe(lse)).exp_()
    q, k, v = (x.to(scores.dtype) for x in (area.q, area.k, area.v))
    grad = _fold(grad_out.to(scores.dtype), area)
    grad_scores = torch.bmm(grad, v.mT).view(scores.shape)
    dropped = probabilities
    if area.keep is not None:
        grad_scores *= area.keep
        dropped = probabilities * area.keep
    grad_v = torch.bmm(_fold(dropped, area).mT, grad)
    grad_scores = (grad_scores - delta[..., None]) * probabilities
    raw = grad_scores if capped is None else grad_scores * (1 - capped * capped)
    raw = _fold(raw, area) * area.scale
    grad_q, grad_k = torch.bmm(raw, k).view(q.shape), torch.bmm(raw.mT, _fold(q, area))
    return RectangleGradients(grad_q, grad_k, grad_v, grad_scores)


def _scores(area: Rectangle) -> tuple[Tensor, Tensor | None]:
    """Scores [H, N, M], -inf where invisible, and tanh(score / cap) if capped."""
    dtype = accumulation_dtype(area.q.dtype)
    scores = torch.bmm(_fold(area.q.to(dtype), area), area.k.to(dtype).mT)
    scores = scores.view(*area.q.shape[:2], area.k.shape[1]).mul_(area.scale)
    capped = None
    if area.softcap is not None:
        capped = torch.tanh(scores / area.softcap)
        scores = capped * area.softcap
    if area.bias is not None:
        scores = scores + area.bias
    return scores.masked_fill_(~area.visible, -torch.inf), capped


def _safe(lse: Tensor) -> Tensor:
    """lse [H, N, 1] with +inf for rows that see nothing, so that their weights are 0, not NaN."""
    return lse.masked_fill(lse == -torch.inf, torch.inf)[..., None]


def _fold(x: Tensor, area: Rectangle) -> Tensor:
    """[H, N, *] to [Hkv, H / Hkv * N, *]: heads that share keys become rows of one product."""
    return x.reshape(area.k.shape[0], -1, x.shape[-1])
