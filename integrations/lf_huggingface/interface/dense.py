"""Attention that is dense by nature: every pair is scored. What has no sparse form runs here.

Full bidirectional and cross attention, scores with a dense bias (T5), masks of the user's, mask functions
that are not known. Rows that see nothing give 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lf_backend.numerics.precision import accumulation_dtype
from lf_huggingface.interface.layer_call import LayerCall


def attend(call: LayerCall, visible: Tensor | None, bias: Tensor | None) -> Tensor:
    """Out [B, H, Q, D]; visible (bool, None shows all) and bias (or None) broadcast to [B, H, Q, K]."""
    if call.softcap is None and call.sinks is None and bias is None:
        return _torch(call, visible)
    groups = call.q.shape[1] // call.k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (call.k, call.v))
    dtype = accumulation_dtype(call.q.dtype)
    scores = (call.q @ k.mT).to(dtype) * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    if bias is not None:
        scores = scores + bias
    if visible is not None:
        scores = scores.masked_fill(~visible, torch.finfo(dtype).min)
    if call.sinks is not None:
        sinks = call.sinks.to(dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=3)
    weights = scores.softmax(3)[..., : k.shape[2]]
    if visible is not None:
        weights = weights.masked_fill(~visible, 0)
    weights = nn.functional.dropout(weights, call.dropout_p, training=call.dropout_p > 0)
    return weights.to(v.dtype) @ v


def _torch(call: LayerCall, visible: Tensor | None) -> Tensor:
    """Attend by torch's own dense attention, which makes no copy of the scores."""
    out: Tensor = nn.functional.scaled_dot_product_attention(
        call.q,
        call.k,
        call.v,
        attn_mask=visible,
        dropout_p=call.dropout_p,
        scale=call.scale,
        enable_gqa=call.q.shape[1] != call.k.shape[1],
    )
    if visible is None:
        return out
    return out.masked_fill(~visible.any(3, keepdim=True), 0)
