"""The loop of the blocked backend over strips and blocks, forward and backward."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Gradients, accumulation_dtype
from lf_backend.backends.blocked.arithmetic import Arithmetic
from lf_backend.backends.blocked.strips import LOG2E, Strip, strips
from lf_backend.problem import Feature


class Blocked(Backend):
    """See the package."""

    name = "blocked"
    priority = 50
    capabilities = Capabilities(features=frozenset(Feature) - {Feature.PREDICATE})

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        call, dtype = _computable(call), call.q.dtype
        accumulate = accumulation_dtype(dtype)
        out = torch.empty(call.q.shape, dtype=_result_dtype(call), device=call.q.device)
        lse = torch.empty(call.q.shape[:3], dtype=accumulate, device=call.q.device)
        if not call.lowered.bands and call.columns is None:
            return out.zero_().to(dtype), lse.fill_(-math.inf)
        arithmetic = Arithmetic(call.scale, call.softcap)
        for strip in strips(call):
            if strip.first:
                _write(strip, arithmetic, out, lse)
            else:
                _merge(strip, arithmetic, out, lse)
        return out.to(dtype), lse

    def backward(self, call: Call, grad_out: Tensor, delta: Tensor, lse: Tensor) -> Gradients:
        call, dtype = _computable(call), call.q.dtype
        accumulate, bias = accumulation_dtype(dtype), call.band_bias
        grad_out, delta, lse = grad_out.to(call.q.dtype), delta[..., None], lse[..., None] * LOG2E
        grad_q = torch.zeros(call.q.shape, dtype=_result_dtype(call), device=call.q.device)
        grad_k, grad_v = (torch.zeros(call.k.shape, dtype=accumulate, device=call.k.device) for _ in "kv")
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=accumulate, device=bias.device)
        arithmetic = Arithmetic(call.scale, call.softcap)
        for strip in strips(call):
            own_q, *above = map(strip.of_queries, (grad_q, grad_out, delta, lse))
            for block in strip.blocks():
                weighed = arithmetic.weigh(block, *(x[:, block.rows] for x in above))
                strip.add_keys(grad_v, block, arithmetic.grad_v(weighed))
                found = arithmetic.differentiate(block, weighed)
                strip.add_keys(grad_k, block, found.k)
                own_q[:, block.rows] += found.q
                if grad_bias is not None:
                    strip.add_bias(grad_bias, block, found.scores)
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
    passes = len(call.lowered.bands) + (call.columns is not None)
    return accumulation_dtype(call.q.dtype) if passes > 1 else call.q.dtype


def _write(strip: Strip, arithmetic: Arithmetic, out: Tensor, lse: Tensor) -> None:
    """The first pass over these rows."""
    own_out, own_lse = strip.of_queries(out), strip.of_queries(lse)
    for block in strip.blocks():
        values, total, unit = arithmetic.attend(block, strip.sees_itself)
        own_lse[:, block.rows] = _log(total, unit)
        if not strip.sees_itself:
            total.masked_fill_(total == 0, 1)
        torch.div(values, total, out=values)
        own_out[:, block.rows] = values


def _merge(strip: Strip, arithmetic: Arithmetic, out: Tensor, lse: Tensor) -> None:
    """A later pass: join two softmaxes over disjoint keys. An empty side weighs 0."""
    own_out, own_lse = strip.of_queries(out), strip.of_queries(lse)
    for block in strip.blocks():
        values, total, unit = arithmetic.attend(block, strip.sees_itself)
        old = own_lse[:, block.rows]
        joint = torch.logaddexp(old, _log(total, unit))
        reference = joint.masked_fill(joint == -math.inf, 0)
        share = (unit.squeeze(-1) / LOG2E - reference).exp_()[..., None]
        rows = own_out[:, block.rows]
        rows.mul_((old - reference).exp_()[..., None]).addcmul_(values.to(rows.dtype), share)
        own_lse[:, block.rows] = joint


def _log(total: Tensor, unit: Tensor) -> Tensor:
    """lse [H, R] in natural logarithms; -inf where the total is 0."""
    return total.log2().add_(unit).mul_(1 / LOG2E).squeeze(-1)
