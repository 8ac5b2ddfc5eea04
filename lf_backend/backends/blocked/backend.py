"""The loop of the blocked backend over strips and blocks, forward and backward."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Gradients, accumulation_dtype
from lf_backend.backends.blocked.arithmetic import attend, differentiate
from lf_backend.backends.blocked.strips import strips
from lf_backend.problem import Feature


class Blocked(Backend):
    """See the package."""

    name = "blocked"
    priority = 50
    capabilities = Capabilities(features=frozenset(Feature) - {Feature.PREDICATE})

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        call, dtype = _computable(call), call.q.dtype
        out = torch.empty(call.q.shape, dtype=_result_dtype(call), device=call.q.device)
        lse = torch.empty(call.q.shape[:3], dtype=accumulation_dtype(dtype), device=call.q.device)
        for strip in strips(call):
            own_out, own_lse = strip.of_queries(out), strip.of_queries(lse)
            store = _write if strip.first else _merge
            for block in strip.blocks():
                store(own_out[:, block.rows], own_lse[:, block.rows], *attend(block))
        return out.to(dtype), lse

    def backward(self, call: Call, grad_out: Tensor, delta: Tensor, lse: Tensor) -> Gradients:
        call, dtype = _computable(call), call.q.dtype
        bias, grad_out = call.band_bias, grad_out.to(call.q.dtype)
        accumulate = accumulation_dtype(dtype)
        grad_q = torch.zeros(call.q.shape, dtype=_result_dtype(call), device=call.q.device)
        grad_k, grad_v = (torch.zeros(call.k.shape, dtype=accumulate, device=call.k.device) for _ in "kv")
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=accumulate, device=bias.device)
        for strip in strips(call):
            upstream, own_delta, own_lse = map(strip.of_queries, (grad_out, delta, lse))
            own_q = strip.of_queries(grad_q)
            own_k, own_v = (grad[strip.batch, strip.kv_heads] for grad in (grad_k, grad_v))
            for block in strip.blocks():
                rows = block.rows
                found = differentiate(block, upstream[:, rows], own_delta[:, rows], own_lse[:, rows])
                own_q[:, rows] += found.q
                for index, part in enumerate(block.parts):
                    part.add(own_k, found.k[index])
                    part.add(own_v, found.v[index])
                    if grad_bias is not None:
                        part.add_bias(strip.of_queries(grad_bias)[:, rows], found.scores[index])
        if bias is not None and grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return Gradients(grad_q.to(dtype), grad_k.to(dtype), grad_v.to(dtype), grad_bias)


def _computable(call: Call) -> Call:
    """The call in a dtype whose products are fast: float16 products crawl on CPUs, float32 ones run."""
    if call.q.device.type != "cpu" or call.q.dtype != torch.float16:
        return call
    return replace(call, q=call.q.float(), k=call.k.float(), v=call.v.float())


def _result_dtype(call: Call) -> torch.dtype:
    """Results that several passes add to are rounded once, at the end."""
    return accumulation_dtype(call.q.dtype) if len(call.lowered.bands) > 1 else call.q.dtype


def _write(out: Tensor, lse: Tensor, new_out: Tensor, new_lse: Tensor) -> None:
    out.copy_(new_out)
    lse.copy_(new_lse)


def _merge(out: Tensor, lse: Tensor, new_out: Tensor, new_lse: Tensor) -> None:
    """Join two softmaxes over disjoint keys; an empty side weighs 0."""
    total = torch.logaddexp(lse, new_lse)
    reference = total.masked_fill(total == -math.inf, 0)
    out.mul_((lse - reference).exp_()[..., None]).add_(new_out * (new_lse - reference).exp_()[..., None])
    lse.copy_(total)
