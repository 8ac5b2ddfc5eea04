"""The one custom operator pair and its autograd.

`lf_backend::attention` and `lf_backend::attention_backward` are opaque to torch.compile: shapes stay
symbolic, and the choice of the backend happens when they run. In plain eager mode, where nobody sees the
difference, `run` steps around the operator: its wrapper in Python costs more than a small call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lf_backend._callers import is_plain_eager
from lf_backend.dispatch.select import preference
from lf_backend.errors import UnsupportedError
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.ops import around_backend, ordinary
from lf_backend.ops.arguments import DIFFERENTIABLE, NAMES, TENSORS, Arguments, schema
from lf_backend.ops.pattern_table import interned

_BACKWARD = "Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse"


def run(a: Arguments) -> tuple[Tensor, Tensor]:
    """Return out and lse of a call, with their derivative if the call is differentiable."""
    if not is_plain_eager(a.tensors()):
        found: tuple[Tensor, Tensor] = attention(*a.values())
        return found
    if not a.differentiable:
        return around_backend.forward(a)
    apply: Any = _Eager.apply
    found = apply(*a.values())
    return found


def _forward(*values: Any) -> tuple[Tensor, Tensor]:
    return around_backend.forward(Arguments(*values))


def _backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *values: Any
) -> list[Tensor]:
    return around_backend.backward(Arguments(*values), grad_out, grad_lse, out, lse)


attention = torch.library.custom_op(
    "lf_backend::attention", _forward, mutates_args=(), schema=f"({schema()}) -> (Tensor, Tensor)"
)
attention_backward = torch.library.custom_op(
    "lf_backend::attention_backward", _backward, mutates_args=(),
    schema=f"({_BACKWARD}, {schema()}) -> Tensor[]",
)  # fmt: skip


@attention.register_fake
def _(*values: Any) -> tuple[Tensor, Tensor]:
    arguments = Arguments(*values)
    q, v = arguments.q, arguments.v
    lse = q.new_empty(q.shape[:3], dtype=accumulation_dtype(q.dtype))
    return q.new_empty(*q.shape[:3], v.shape[3]), lse


@attention_backward.register_fake
def _(grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *values: Any) -> list[Tensor]:
    arguments = Arguments(*values)
    given = (getattr(arguments, name) for name in DIFFERENTIABLE)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in given if x is not None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    arguments = Arguments(*inputs)
    # The backward runs where and when autograd likes: what is asked for now is asked for then.
    ctx.arguments = replace(arguments.without_tensors(), backend=arguments.backend or preference())
    ctx.pattern = interned(arguments.pattern)  # held, for the backward to find it
    ctx.save_for_backward(*output, *(getattr(arguments, name) for name in TENSORS))


def _autograd(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    out, lse, *tensors = ctx.saved_tensors
    arguments = ctx.arguments.with_tensors(tuple(tensors))
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    if torch.is_grad_enabled():  # create_graph: this backward will be differentiated
        return _differentiable(arguments, grad_out, grad_lse, ctx.needs_input_grad)
    if is_plain_eager((grad_out, grad_lse)):
        grads = iter(around_backend.backward(arguments, grad_out, grad_lse, out, lse))
    else:
        grads = iter(attention_backward(grad_out, grad_lse, out, lse, *arguments.values()))
    given = ((name, getattr(arguments, name)) for name in NAMES)
    return tuple(next(grads) if name in DIFFERENTIABLE and x is not None else None for name, x in given)


def _differentiable(
    a: Arguments, grad_out: Tensor, grad_lse: Tensor | None, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients as ordinary operators compute them, which have derivatives themselves."""
    out, lse = ordinary.attention(a)
    names = [name for name, wanted in zip(NAMES, needed, strict=True) if wanted and name in DIFFERENTIABLE]
    upstream = grad_out, torch.zeros_like(lse) if grad_lse is None else grad_lse
    inputs = [getattr(a, name) for name in names]
    found = torch.autograd.grad((out, lse), inputs, upstream, create_graph=True, materialize_grads=True)
    grads = dict(zip(names, found, strict=True))
    return tuple(grads.get(name) for name in NAMES)


attention.register_autograd(_autograd, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The operator without the operator: the same forward, and the same derivative."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup)
    backward = staticmethod(_autograd)


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise UnsupportedError("double backward: attention can be differentiated once, not twice")


attention_backward.register_autograd(_refuse)
