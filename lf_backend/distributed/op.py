"""The call as one custom operator and its derivative, which torch.compile takes into a graph as they are.

Collectives are inside, so that graphs do not break. A graph has no place for what a plan holds and for what
neighbours have lent, whose sizes only the ranks together know: the backward plans again, asks neighbours
again, and computes rows of global tokens again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lf_backend._graphs import constant_in_graphs
from lf_backend._looked import anew
from lf_backend.distributed.computed import computed
from lf_backend.distributed.group import Group
from lf_backend.distributed.plan import collected_slices, gradients_of, planned_again
from lf_backend.errors import LFError, UnsupportedError
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.ops.arguments import NAMES, Arguments, schema
from lf_backend.pattern.interned import resolve

_MORE = "str gradients, str group"  # names of tensors that have one, and that of the process group


def run(q: Tensor, k: Tensor, v: Tensor, pattern: Any, mesh: Any, options: Any) -> tuple[Tensor, Tensor]:
    """Return out and lse of `attention` where a graph is made."""
    a = collected_slices(q, k, v, pattern, mesh, options)
    resolve(a.pattern)  # which the graph refers to from now on
    found: tuple[Tensor, Tensor] = _attention(*a.values(), ",".join(gradients_of(a)), _name_of(mesh))
    return found


def fits(q: Tensor, k: Tensor, v: Tensor, mesh: Any) -> bool:
    """Return whether a graph may have the call; if not, it breaks there, and all ranks are told why."""
    tensors = all(isinstance(x, Tensor) and x.ndim == 4 for x in (q, k, v))
    return tensors and _is_line(mesh)


@constant_in_graphs
def _is_line(mesh: Any) -> bool:
    try:
        Group.of(mesh)
    except LFError:
        return False
    return True


@constant_in_graphs
def _name_of(mesh: Any) -> str:
    return Group.of(mesh).name


def _forward(*values: Any) -> tuple[Tensor, Tensor]:
    *given, gradients, group = values
    with anew():
        out, lse = computed(_planned(Arguments(*given), gradients, group))
    return out.contiguous(), lse.contiguous()


def _fake_forward(*values: Any) -> tuple[Tensor, Tensor]:
    a = Arguments(*values[: len(NAMES)])
    shape = (*a.q.shape[:3], a.v.shape[3])
    return a.q.new_empty(shape), a.q.new_empty(shape[:3], dtype=accumulation_dtype(a.q.dtype))


def _backward(
    grad_out: Tensor | None, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *values: Any
) -> list[Tensor]:
    *given, gradients, group = values
    a, names = Arguments(*given), gradients.split(",")
    with anew(), _recorded():
        leaves = {name: getattr(a, name).detach().requires_grad_() for name in names}
        plan = _planned(replace(a, **leaves), gradients, group)
        again = computed(plan, (out.detach().clone(), lse.detach().clone()))  # rows are written into them
        pairs = [(x, grad) for x, grad in zip(again, (grad_out, grad_lse), strict=True) if grad is not None]
        outputs, upstream = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, list(leaves.values()), upstream, materialize_grads=True)
    return [x.contiguous() for x in found]


def _fake_backward(
    grad_out: Tensor | None, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *values: Any
) -> list[Tensor]:
    a, gradients = Arguments(*values[: len(NAMES)]), values[len(NAMES)]
    found = (getattr(a, name) for name in gradients.split(","))
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in found]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    a = Arguments(*inputs[: len(NAMES)])
    ctx.arguments, ctx.more = a.without_tensors(a.backend), inputs[len(NAMES) :]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *a.tensors())


def _autograd(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    out, lse, *tensors = ctx.saved_tensors
    a = ctx.arguments.with_tensors(tensors)
    found = _attention_backward(grad_out, grad_lse, out, lse, *a.values(), *ctx.more)
    grads = dict(zip(ctx.more[0].split(","), found, strict=True))
    return *map(grads.get, NAMES), None, None


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise UnsupportedError("double backward: attention over ranks can be differentiated once, not twice")


def _planned(a: Arguments, gradients: str, group: str) -> Any:
    names = gradients.split(",") if gradients else []
    return planned_again(Group.named(group, a.q.device), a, names)


@contextmanager
def _recorded() -> Iterator[None]:
    """Have autograd record inside, which it does not within an operator."""
    keys: Any = torch._C.DispatchKey
    excluded: Any = torch._C._dispatch_tls_local_exclude_set()
    for key in (keys.AutogradFunctionality, keys.AutogradOther, keys.AutogradNestedTensor):
        excluded = excluded.remove(key)
    included: Any = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def _registered(name: str, given: str, returned: str, function: Any, fake: Any, autograd: Any) -> Any:
    """Return an operator that CUDA graphs have to end before, like all collectives of uneven sizes."""
    found = torch.library.custom_op(
        f"lf_backend::{name}",
        function,
        mutates_args=(),
        tags=(torch.Tag.cudagraph_unsafe,),
        schema=f"({given}{schema()}, {_MORE}) -> {returned}",
    )
    found.register_fake(fake)
    found.register_autograd(autograd[0], setup_context=autograd[1])
    return found


_UPSTREAM = "Tensor? grad_out, Tensor? grad_lse, Tensor out, Tensor lse, "
_attention = _registered(
    "attention_over_ranks",
    "",
    "(Tensor, Tensor)",
    _forward,
    _fake_forward,
    (_autograd, _setup),
)
_attention_backward = _registered(
    "attention_over_ranks_backward", _UPSTREAM, "Tensor[]", _backward, _fake_backward, (_refuse, None)
)
