"""The one custom operator pair and its autograd.

`lf_backend::attention` and `lf_backend::attention_backward` are opaque to torch.compile: shapes stay
symbolic, and the choice of the backend happens when they run. They have twins under another name for calls
that wait for the device, which alone keep CUDA graphs away. In plain eager mode, where nobody sees the
difference, a call steps around the operator: its wrapper in Python costs more than a small call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lf_backend._callers import is_plain_eager
from lf_backend._looked import anew
from lf_backend.dispatch.select import preference
from lf_backend.errors import UnsupportedError
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.ops import around_backend, ordinary
from lf_backend.ops.arguments import DIFFERENTIABLE, NAMES, Arguments, schema
from lf_backend.ops.global_tokens import with_positions
from lf_backend.pattern.interned import interned

_BACKWARD = "Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse"


def called(a: Arguments) -> tuple[Tensor, Tensor]:
    """Return out and lse of a call, with their derivative if the call is differentiable."""
    found: tuple[Tensor, Tensor] = operators(a).forward(*a.values())
    return found


def stepped_around(a: Arguments) -> tuple[Tensor, Tensor]:
    """Return what `called` does, in plain eager mode."""
    if not a.differentiable:
        return around_backend.forward(a)
    a = with_positions(a)
    apply: Any = _Eager.apply
    found: tuple[Tensor, Tensor] = apply(a, *a.floats())
    return found


def _forward(*values: Any) -> tuple[Tensor, Tensor]:
    return around_backend.forward(Arguments(*values))


def _opaque_forward(*values: Any) -> tuple[Tensor, Tensor]:
    with anew():
        return _forward(*values)


def _opaque_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *values: Any
) -> list[Tensor]:
    with anew():
        return around_backend.backward(Arguments(*values), grad_out, grad_lse, out, lse)


def _fake_forward(*values: Any) -> tuple[Tensor, Tensor]:
    arguments = Arguments(*values)
    q, v = arguments.q, arguments.v
    lse = q.new_empty(q.shape[:3], dtype=accumulation_dtype(q.dtype))
    return q.new_empty(*q.shape[:3], v.shape[3]), lse


def _fake_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *values: Any
) -> list[Tensor]:
    given = (x for x in Arguments(*values).floats() if x is not None)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in given]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _remember(ctx, Arguments(*inputs), output)


def _remember(ctx: Any, a: Arguments, output: tuple[Tensor, Tensor]) -> None:
    """Keep what the backward needs."""
    # It runs where and when autograd likes: what is asked for now is asked for then.
    ctx.arguments = a.without_tensors(a.backend or preference())
    if a.held is None:
        ctx.arguments.held = interned(a.pattern)  # for the backward to find it
    ctx.set_materialize_grads(False)  # what has no gradient is not one of zeros, which backends would add
    ctx.save_for_backward(*output, *a.tensors())


def _autograd(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    needed = dict(zip(NAMES, ctx.needs_input_grad, strict=True))
    grads = _gradients(ctx, grad_out, grad_lse, needed)
    return tuple(grads.get(name) for name in NAMES)


def _gradients(
    ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, needed: Mapping[str, bool]
) -> dict[str, Tensor]:
    """Return the gradients by name, of all floating tensors that were given or of all that are needed."""
    out, lse, *tensors = ctx.saved_tensors
    arguments = ctx.arguments.with_tensors(tensors)
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    if torch.is_grad_enabled():  # create_graph: this backward will be differentiated
        return _differentiable(arguments, grad_out, grad_lse, needed)
    if is_plain_eager((grad_out, grad_lse)):
        grads = around_backend.backward(arguments, grad_out, grad_lse, out, lse)
    else:
        grads = operators(arguments).backward(grad_out, grad_lse, out, lse, *arguments.values())
    given = [name for name, x in zip(DIFFERENTIABLE, arguments.floats(), strict=True) if x is not None]
    return dict(zip(given, grads, strict=True))


def _differentiable(
    a: Arguments, grad_out: Tensor, grad_lse: Tensor | None, needed: Mapping[str, bool]
) -> dict[str, Tensor]:
    """Return the gradients as ordinary operators compute them, which have derivatives themselves."""
    out, lse = ordinary.attention(a)
    names = [name for name in DIFFERENTIABLE if needed[name]]
    upstream = grad_out, torch.zeros_like(lse) if grad_lse is None else grad_lse
    inputs = [getattr(a, name) for name in names]
    found = torch.autograd.grad((out, lse), inputs, upstream, create_graph=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


class _Eager(torch.autograd.Function):
    """The operator without the operator: the same forward, and the same derivative.

    Takes the call, and once more its floating tensors, which are all that autograd looks for.
    """

    @staticmethod
    def forward(ctx: Any, a: Arguments, *floats: Tensor | None) -> tuple[Tensor, Tensor]:
        output = around_backend.forward(a)  # not by setup_context, which takes twice as long, for transforms
        _remember(ctx, a, output)
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        grad_out, grad_lse = upstream
        needed = dict(zip(DIFFERENTIABLE, ctx.needs_input_grad[1:], strict=True))
        found = _gradients(ctx, grad_out, grad_lse, needed)
        return (None, *map(found.get, DIFFERENTIABLE))


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise UnsupportedError("double backward: attention can be differentiated once, not twice")


class Pair(NamedTuple):
    """The operator and its derivative, which PyTorch knows as operators as well."""

    forward: Any
    backward: Any

    @classmethod
    def registered(cls, name: str, *tags: torch.Tag) -> Pair:
        """Register the pair under `lf_backend::name` and `lf_backend::name_backward`."""
        forward = torch.library.custom_op(
            f"lf_backend::{name}",
            _opaque_forward,
            mutates_args=(),
            tags=tags,
            schema=f"({schema()}) -> (Tensor, Tensor)",
        )
        backward = torch.library.custom_op(
            f"lf_backend::{name}_backward",
            _opaque_backward,
            mutates_args=(),
            tags=tags,
            schema=f"({_BACKWARD}, {schema()}) -> Tensor[]",
        )
        forward.register_fake(_fake_forward)
        backward.register_fake(_fake_backward)
        forward.register_autograd(_autograd, setup_context=_setup)
        backward.register_autograd(_refuse)
        return cls(forward, backward)


# A call that waits for the device cannot be captured, so that CUDA graphs have to end before it.
_PAIRS = {
    False: Pair.registered("attention"),
    True: Pair.registered("attention_that_waits", torch.Tag.cudagraph_unsafe),
}


def operators(a: Arguments) -> Pair:
    """Return the operators of a call."""
    return _PAIRS[a.waits]
