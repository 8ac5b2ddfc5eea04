"""The loop of the blocked backend over strips and blocks, forward and backward."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Gradients
from lf_backend.backends.blocked.arithmetic import Arithmetic
from lf_backend.backends.blocked.plan import passes, strips
from lf_backend.backends.blocked.strips import Strip, part, settle
from lf_backend.numerics.join import join
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.problem import Feature


class Blocked(Backend):
    """See the package."""

    name = "blocked"
    capabilities = Capabilities(features=frozenset(Feature))

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        call, dtype = _computable(call), call.q.dtype
        shape = (*call.q.shape[:3], call.v.shape[3])
        out = torch.empty(shape, dtype=_result_dtype(call), device=call.q.device)
        lse = torch.empty(call.q.shape[:3], dtype=accumulation_dtype(dtype), device=call.q.device)
        arithmetic = Arithmetic(call.scale, call.softcap)
        for strip in strips(call):
            pass_ = _write if strip.first else _merge
            pass_(strip, arithmetic, strip.of_queries(out), strip.of_queries(lse))
        return out.to(dtype), lse

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        call, dtype = _computable(call), call.q.dtype
        accumulate, bias = accumulation_dtype(dtype), call.band_bias
        upstream = (grad_out.to(call.q.dtype), delta[..., None], lse[..., None])
        grad_q = torch.empty(call.q.shape, dtype=_result_dtype(call), device=call.q.device)
        grad_k, grad_v = (torch.zeros(x.shape, dtype=accumulate, device=x.device) for x in (call.k, call.v))
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=accumulate, device=bias.device)
        arithmetic = Arithmetic(call.scale, call.softcap)
        for strip in strips(call):
            _differentiate(strip, arithmetic, upstream, grad_q, grad_k, grad_v, grad_bias)
        if bias is not None and grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return Gradients(grad_q.to(dtype), grad_k.to(dtype), grad_v.to(dtype), grad_bias)


def _computable(call: Call) -> Call:
    """The call in a dtype whose products are fast: float16 products crawl on CPUs, float32 ones run.

    So do bfloat16 products on a CPU that has none of its own, such as an x86 without AVX-512.
    """
    crawls = call.q.dtype == torch.float16 or (call.q.dtype == torch.bfloat16 and not _multiplies_bfloat16())
    if call.q.device.type != "cpu" or not crawls:
        return call
    return replace(call, q=call.q.float(), k=call.k.float(), v=call.v.float())


@cache
def _multiplies_bfloat16() -> bool:
    """Whether PyTorch has this CPU's own products of bfloat16 matrices, by oneDNN."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _result_dtype(call: Call) -> torch.dtype:
    """Results that several passes add to are rounded once, at the end."""
    return accumulation_dtype(call.q.dtype) if passes(call) > 1 else call.q.dtype


def _write(strip: Strip, arithmetic: Arithmetic, out: Tensor, lse: Tensor) -> None:
    """The first pass over these rows: out [H, n, D], lse [H, n]."""
    totals, units = torch.empty_like(lse)[..., None], torch.empty_like(lse)[..., None]
    for block in strip.blocks():
        rows = block.rows
        values, total, units[:, rows] = arithmetic.attend(block, strip.sees_itself)
        totals[:, rows] = total
        if not strip.sees_itself:
            total.masked_fill_(total == 0, 1)
        torch.div(values, total, out=out[:, rows])
    torch.add(totals.log_().squeeze(-1), units.squeeze(-1), out=lse)


def _merge(strip: Strip, arithmetic: Arithmetic, out: Tensor, lse: Tensor) -> None:
    """A later pass."""
    for block in strip.blocks():
        values, total, unit = arithmetic.attend(block, strip.sees_itself)
        more_lse = total.log().add_(unit).squeeze(-1)
        more = values.div_(total.masked_fill_(total == 0, 1))
        join(out[:, block.rows], lse[:, block.rows], more, more_lse)


def _differentiate(
    strip: Strip,
    arithmetic: Arithmetic,
    upstream: tuple[Tensor, Tensor, Tensor],
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    grad_bias: Tensor | None,
) -> None:
    """Add the strip's gradients to those of the call; the first pass over its queries writes theirs."""
    own_q, grad_out, delta, lse = map(strip.of_queries, (grad_q, *upstream))
    own_k, own_v = strip.accumulator(grad_k), strip.accumulator(grad_v)
    for block in strip.blocks():
        rows = block.rows
        weighed = arithmetic.weigh(block, grad_out[:, rows], delta[:, rows], lse[:, rows])
        block_k, block_v = part(own_k, block.at), part(own_v, block.at)
        arithmetic.add_values(block_v, block, weighed, grad_out[:, rows])
        arithmetic.add_keys(block_k, block, weighed)
        settle(own_k, block.at, block_k)
        settle(own_v, block.at, block_v)
        found = arithmetic.grad_q(block, weighed)
        if strip.first:
            torch.mul(found, arithmetic.scale, out=own_q[:, rows])
        else:
            own_q[:, rows].add_(found, alpha=arithmetic.scale)
        if grad_bias is not None:
            strip.add_bias(grad_bias, block, weighed.scores)
    strip.settle(grad_k, own_k)
    strip.settle(grad_v, own_v)
