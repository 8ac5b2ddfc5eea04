"""Tell who calls: may Python depend on the data of tensors, and will an opaque operator do.

*Free to look* means that what Python reads off a tensor now is what it will be whenever the result is used.
It is not where a tracer, an exporter or a compiler records what is done and runs it again on other data,
nor under `torch.vmap`, where one tensor stands for many.

An *opaque operator* is one that PyTorch cannot see into. Eager mode, `torch.compile` and `torch.export`
take ours as it is. `torch.jit.trace`, the transforms of `torch.func` and forward-mode differentiation do
not: they need ordinary operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lf_backend._graphs import constant_in_graphs

_C: Any = torch._C
_is_tracing: Any = _C._is_tracing  # by torch.jit.trace
_unpacked: Any = forward_ad.unpack_dual
_asked: ContextVar[bool] = ContextVar("lf_backend.portable", default=False)
_modes: Any = _C._TorchDispatchModeKey
_RECORDING = (_modes.PROXY, _modes.FAKE, _modes.FUNCTIONAL)  # make_fx, exporters, compilers
_PLAIN = (Tensor, torch.nn.Parameter)
_NOTHING = nullcontext()


@contextmanager
def portable() -> Iterator[None]:
    """Compute attention by ordinary operators of PyTorch within the block, for who cannot take ours.

        with lf.portable():
            torch.onnx.export(model, inputs, "model.onnx", dynamo=True)

    The answer is the same, in memory linear in length, and differentiable any number of times. It is what
    runs without being asked for under `torch.jit.trace`, the transforms of `torch.func`, and forward-mode
    and double differentiation. A call that names another backend than "portable" is refused then.
    """
    token = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(token)


def may_look(x: Tensor) -> bool:
    """Return whether Python may depend on the data of `x`; on another device than a CPU it waits for it."""
    if is_recorded() or type(x) not in _PLAIN or x.device.type == "meta":
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


def is_recorded() -> bool:
    """Return whether what Python does now is recorded, to be run again on other data."""
    if torch.compiler.is_compiling() or _is_tracing():
        return True
    return bool(_C._len_torch_dispatch_stack()) and any(map(_C._get_dispatch_mode, _RECORDING))


def is_traced() -> bool:
    """Return whether `torch.jit.trace` records, in which sizes are tensors."""
    return not torch.compiler.is_compiling() and bool(_is_tracing())


def is_mapped(x: Tensor) -> bool:
    """Return whether `x` stands for many tensors, under `torch.vmap`."""
    if torch.compiler.is_compiling():
        return False
    found = x
    while torch._C._functorch.is_functorch_wrapped_tensor(found):
        if torch._C._functorch.is_batchedtensor(found):
            return True
        found = torch._C._functorch.get_unwrapped(found)
    return False


class Form(Enum):
    """How a call is done: as the operator; by ordinary operators in its place; or, where nobody sees the
    difference, as a plain function, because to call an operator costs more than a small call itself.
    """

    OPERATOR = auto()
    ORDINARY = auto()
    PLAIN = auto()


def wanted(tensors: Iterable[Tensor | None]) -> Form:
    """Return how a call with these tensors has to be done."""
    if torch.compiler.is_compiling():
        return Form.ORDINARY if _is_asked() else Form.OPERATOR
    if _asked.get() or _is_tracing() or is_transformed(tensors):
        return Form.ORDINARY
    return Form.PLAIN if _is_plain(tensors) else Form.OPERATOR


def is_transformed(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether a transform of `torch.func` or forward-mode differentiation is at work on tensors."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return forward_ad._current_level >= 0 and any(map(_has_tangent, tensors))


@constant_in_graphs
def _is_asked() -> bool:
    """Return whether `portable` is on now, where a compiler or exporter traces."""
    return _asked.get()


def _has_tangent(x: Tensor | None) -> bool:
    return x is not None and bool(_unpacked(x).tangent is not None)


def is_plain_eager(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether nobody watches: no compiler, tracer, mode, transform or tensor subclass is there."""
    if torch.compiler.is_compiling() or _is_tracing():
        return False
    return _C._functorch.peek_interpreter_stack() is None and _is_plain(tensors)


def _is_plain(tensors: Iterable[Tensor | None]) -> bool:
    if _C._len_torch_dispatch_stack() or _C._is_torch_function_mode_enabled():
        return False
    for x in tensors:  # noqa: SIM110 - by all() it takes longer, and every call asks
        if x is not None and type(x) not in _PLAIN:
            return False
    return True


def fixed_size(x: Tensor, dim: int) -> int:
    """Return a size that a trace may take for constant: not that of a batch or a length."""
    with not_traced():
        return x.shape[dim]


def not_traced() -> AbstractContextManager[None]:
    """Hide what happens within the block from `torch.jit.trace`: looks at shapes that must not change."""
    return _tracing_paused() if is_traced() else _NOTHING


@contextmanager
def _tracing_paused() -> Iterator[None]:
    state = _C._get_tracing_state()
    _C._set_tracing_state(None)
    try:
        yield
    finally:
        _C._set_tracing_state(state)
