"""The native backend's face to the registry."""

from __future__ import annotations

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Gradients
from lf_backend.backends.native import arguments, library
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.problem import Feature, Machine, Problem

MOST_KEYS = 2**30  # positions, and sums of two, are words of 32 bits in the kernels

BESIDE_RULES = {Feature.DOCUMENTS, Feature.DILATION}  # in which a block of queries is not one of a rule's


class Native(Backend):
    """See the package."""

    name = "native"
    capabilities = Capabilities(
        features=frozenset(Feature) - {Feature.VALUE_WIDTH},
        devices=frozenset({"cpu"}),
        max_head_dim=256,
        listed_queries=True,
        skips_padding=True,
    )

    def reasons(self, problem: Problem, machine: Machine) -> list[str]:
        found = super().reasons(problem, machine)
        if Feature.PREDICATE in problem.features:
            beside = sorted(feature.value for feature in problem.features & BESIDE_RULES)
            found += [f"no predicates beside {feature} wanted, call has both" for feature in beside]
        if problem.keys > MOST_KEYS:
            found.append(f"keys <= {MOST_KEYS} wanted, call has {problem.keys}")
        if machine.device == "cpu" and isinstance(compiled := library.found(), library.Missing):
            found.append(compiled.reason)
        return found

    def details(self) -> str:
        compiled = library.found()
        return "" if isinstance(compiled, library.Missing) else f"instruction set: {compiled.name}"

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        q = call.q
        batch, heads, queries, _ = q.shape
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty((batch, heads, queries), dtype=accumulation_dtype(q.dtype))
        _library().forward(arguments.packed(call, arguments.Forward(out, lse)))
        return out, lse

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        q, k, bias, dtype = call.q, call.k, call.band_bias, accumulation_dtype(call.q.dtype)
        grad_q = torch.empty(q.shape, dtype=q.dtype)
        grad_k, grad_v = torch.empty(k.shape, dtype=dtype), torch.empty(k.shape, dtype=dtype)
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=dtype)
        results = arguments.Backward(grad_out, delta, lse, grad_q, grad_k, grad_v, grad_bias)
        _library().backward(arguments.packed(call, results))
        if grad_bias is not None:
            grad_bias = grad_bias.to(q.dtype)
        return Gradients(grad_q, grad_k.to(q.dtype), grad_v.to(q.dtype), grad_bias)


def _library() -> library.Library:
    compiled = library.found()
    assert isinstance(compiled, library.Library), "a missing library is a reason"
    return compiled
