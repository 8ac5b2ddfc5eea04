"""The paper's `loop` implementation (section 3.2): one diagonal per tap, here all taps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from lf_backend import Backend, Capabilities, Feature
from lf_backend.backend import Call, Gradients


class Loop(Backend):
    """One window, dilated or not, on any device; keys are gathered tap by tap: memory N x taps."""

    name = "loop"
    priority = -10
    capabilities = Capabilities(
        features=frozenset({Feature.DILATION, Feature.KEY_PADDING, Feature.LONGER_KEYS, Feature.BACKWARD}),
        dtypes=frozenset({"float32", "float64"}),
    )

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        _, _, v, scores = _taps(call)
        lse = scores.logsumexp(-1)
        weights = (scores - lse.masked_fill(lse.isinf(), 0)[..., None]).exp()
        return (weights[..., None] * v).sum(-2), lse

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        at, k, v, scores = _taps(call)
        weights = (scores - lse[..., None]).exp()
        raw = weights * ((grad_out[..., None, :] * v).sum(-1) - delta[..., None]) * call.scale
        grad_q = (raw[..., None] * k).sum(-2)
        grad_k = _home(at, raw[..., None] * call.q[..., None, :], call.k)
        grad_v = _home(at, weights[..., None] * grad_out[..., None, :], call.v)
        return Gradients(grad_q, grad_k, grad_v, None)


def _taps(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions [N, T], keys and values there [B, H, N, T, D], masked scores [B, H, N, T]."""
    (band,) = call.lowered.bands
    keys, device = call.k.shape[2], call.k.device
    steps = torch.arange(-band.left, band.right + 1, device=device)
    at = torch.arange(call.offset, keys, device=device)[:, None] + band.dilation(0) * steps
    hidden = (at < 0) | (at >= keys)
    at = at.clamp(0, keys - 1)
    k, v = call.k[:, :, at], call.v[:, :, at]
    scores = (call.q[..., None, :] * k).sum(-1) * call.scale
    if call.key_padding is not None:
        hidden = hidden | call.key_padding[:, None, at]
    return at, k, v, scores.masked_fill(hidden, -torch.inf)


def _home(at: Tensor, grads: Tensor, like: Tensor) -> Tensor:
    """Sum gradients [B, H, N, T, D] into the shape of `like` [B, H, M, D]."""
    return torch.zeros_like(like, memory_format=torch.contiguous_format).index_add_(
        2, at.flatten(), grads.flatten(2, 3)
    )
