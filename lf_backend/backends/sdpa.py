"""PyTorch's own dense kernel on CPUs, for calls that show every pair or every past one.

A window over the whole sequence leaves no pair to skip, and short sequences are mostly overhead: there the
operator behind `scaled_dot_product_attention` has the least. It is called itself, because the public
function keeps the log-sum-exp to itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Gradients
from lf_backend.numerics import dense
from lf_backend.numerics.positive_scale import positive_scale
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.problem import Coverage, Feature, Machine, Problem

_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Sdpa(Backend):
    """See the module."""

    name = "sdpa"
    capabilities = Capabilities(
        features=frozenset(
            {
                Feature.UNLIMITED_REACH,
                Feature.GLOBAL_COLUMNS,
                Feature.KEY_PADDING,
                Feature.GROUPED_HEADS,
                Feature.LONGER_KEYS,
                Feature.BACKWARD,
            }
        ),
        devices=frozenset({"cpu"}),
    )

    def reasons(self, problem: Problem, machine: Machine) -> list[str]:
        found = super().reasons(problem, machine)
        if problem.coverage is Coverage.PART:
            found.append(
                "sdpa needs a window that covers every key, or every past key and nothing else; this one "
                f"shows {problem.window} of {problem.keys}"
            )
        if problem.coverage is Coverage.PAST:
            if problem.queries != problem.keys:
                found.append(f"as many queries as keys under causality wanted, call has {problem.queries}")
            if Feature.KEY_PADDING in problem.features:
                found.append("key padding under causality is not supported")
        return found

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        q, scale, _ = positive_scale(call.q, call.scale)
        out, lse = _flash(q, *_grouped(call), 0.0, _is_causal(call), attn_mask=_mask(call), scale=scale)
        lse = lse.masked_fill(_sees_nothing(call), -torch.inf)
        return out.contiguous(), lse

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        if out is None:  # the kernel forms delta itself, from an output that does not exist here
            return _dense_backward(call, grad_out, delta, lse)
        q, scale, sign = positive_scale(call.q, call.scale)
        grad_q, grad_k, grad_v = _flash_backward(
            grad_out, q, *_grouped(call), out, lse, 0.0, _is_causal(call), attn_mask=_mask(call), scale=scale
        )
        grad_q = grad_q if sign == 1 else sign * grad_q
        return Gradients(grad_q, _of_groups(grad_k, call.k), _of_groups(grad_v, call.v), None)


def _is_causal(call: Call) -> bool:
    """Return whether only the past is visible; `Sdpa.reasons` admits nothing else but every pair."""
    return not call.lowered.covers(call.q.shape[2], call.k.shape[2])[1]


def _grouped(call: Call) -> tuple[Tensor, Tensor]:
    """k and v with as many heads as q."""
    group = call.q.shape[1] // call.k.shape[1]
    if group == 1:
        return call.k, call.v
    return call.k.repeat_interleave(group, 1), call.v.repeat_interleave(group, 1)


def _of_groups(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient [B, H, M, D] of repeated heads as that of `like` [B, Hkv, M, D]."""
    if grad.shape == like.shape:
        return grad
    batch, heads, *rest = like.shape
    grouped = grad.view(batch, heads, grad.shape[1] // heads, *rest)
    return grouped.sum(2, dtype=accumulation_dtype(grad.dtype)).to(like.dtype)


def _mask(call: Call) -> Tensor | None:
    """[B, 1, 1, M], added to scores."""
    if call.key_padding is None:
        return None
    mask = torch.zeros(call.key_padding.shape, dtype=call.q.dtype)
    return mask.masked_fill_(call.key_padding, -torch.inf)[:, None, None]


def _sees_nothing(call: Call) -> Tensor:
    """Bool [B or 1, 1, 1], True where every key is padded, of which the kernel says lse 0."""
    if call.key_padding is None:
        return torch.zeros(1, 1, 1, dtype=torch.bool)
    return call.key_padding.all(1)[:, None, None]


def _dense_backward(call: Call, grad_out: Tensor, delta: Tensor, lse: Tensor) -> Gradients:
    """Compute the gradients by products of whole matrices."""
    n, m = call.q.shape[2], call.k.shape[2]
    visible = torch.ones(n, m, dtype=torch.bool)
    visible = visible.tril_() if _is_causal(call) else visible
    found = []
    for batch in range(call.q.shape[0]):
        seen = visible if call.key_padding is None else visible & ~call.key_padding[batch]
        area = dense.Rectangle(
            call.q[batch], call.k[batch], call.v[batch], seen, None, None, call.scale, call.softcap
        )
        found.append(dense.backward(area, grad_out[batch], delta[batch], lse[batch]))
    q, k, v = (torch.stack([getattr(one, name) for one in found]).to(call.q.dtype) for name in "qkv")
    return Gradients(q, k, v, None)
