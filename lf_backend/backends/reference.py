"""Dense attention under the pattern's mask: every feature, any device, memory N x M.

The oracle's arithmetic in the caller's hands, and what runs patterns that are not bands.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Gradients
from lf_backend.numerics import band_bias, dense, dropout
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.problem import Feature


class Reference(Backend):
    """See the module."""

    name = "reference"
    capabilities = Capabilities(features=frozenset(Feature))

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        results = [dense.forward(_area(call, batch)) for batch in range(call.q.shape[0])]
        out, lse = (torch.stack(parts) for parts in zip(*results, strict=True))
        return out.to(call.q.dtype), lse

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        parts = [
            dense.backward(_area(call, batch), grad_out[batch], delta[batch], lse[batch])
            for batch in range(call.q.shape[0])
        ]
        grad_q, grad_k, grad_v = (
            torch.stack(grads).to(call.q.dtype)
            for grads in ([p.q for p in parts], [p.k for p in parts], [p.v for p in parts])
        )
        return Gradients(grad_q, grad_k, grad_v, _bias_gradient(call, [p.scores for p in parts]))


def weights(call: Call, lse: Tensor) -> Tensor:
    """Weights [B, H, N, M] of the local part, given the lse [B, H, N] of the whole softmax."""
    parts = [dense.weights(_area(call, batch), lse[batch]) for batch in range(call.q.shape[0])]
    return torch.stack(parts)


def _area(call: Call, batch: int) -> dense.Rectangle:
    heads = torch.arange(call.q.shape[1], device=call.q.device)
    queries = torch.arange(call.q.shape[2], device=call.q.device) + call.offset
    keys = torch.arange(call.k.shape[2], device=call.q.device)
    bias = keep = None
    if call.band_bias is not None:
        own = call.band_bias[batch if call.band_bias.shape[0] > 1 else 0]
        bias = band_bias.spread(
            own.to(accumulation_dtype(own.dtype)), call.lowered.bands[0], queries, len(keys)
        )
    if call.dropout_p:
        assert call.seed is not None, "the operator draws a seed"
        dtype = accumulation_dtype(call.q.dtype)
        keep = dropout.keep(call.seed, batch, heads, queries, keys, call.dropout_p, dtype)
    visible = _visible(call, batch, heads[:, None, None], queries[:, None], keys)
    return dense.Rectangle(
        call.q[batch], call.k[batch], call.v[batch], visible, bias, keep, call.scale, call.softcap
    )


def _visible(call: Call, batch: int, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Bool [H, N, M]: bands, predicates and columns, without padded keys."""
    seen = torch.zeros(len(head), len(query), len(key), dtype=torch.bool, device=key.device)
    documents = call.documents
    for form in call.lowered.forms:
        if documents is None:
            seen |= form.sees(head, query, key)
        else:
            seen |= form.sees(head, documents.inside(batch, query), documents.inside(batch, key))
    if call.columns is not None:
        is_global = torch.zeros_like(key, dtype=torch.bool)
        is_global.scatter_(0, call.columns.positions[batch], call.columns.valid[batch])
        seen |= is_global & (key <= query) if call.columns.causal else is_global
    if documents is not None:
        seen &= documents.together(batch, query, key)
    if call.key_padding is not None:
        seen &= ~call.key_padding[batch]
    return seen


def _bias_gradient(call: Call, scores: list[Tensor]) -> Tensor | None:
    if call.band_bias is None:
        return None
    queries = torch.arange(call.q.shape[2], device=call.q.device) + call.offset
    width = call.band_bias.shape[-1]
    grads = torch.stack([band_bias.collect(s, call.lowered.bands[0], queries, width) for s in scores])
    if call.band_bias.shape[0] == 1:
        grads = grads.sum(0, keepdim=True)
    return grads.to(call.band_bias.dtype)
