"""The one custom operator pair and its autograd.

`lf_backend::attention` and `lf_backend::attention_backward` are opaque to torch.compile: shapes stay
symbolic, and the choice of the backend happens when they run. Around the backend's local part this
module does, once for all backends: sinks (one more logit in the denominator), rows of global tokens,
zeros for padded queries, and NaN or inf in padded keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Gradients, accumulation_dtype
from lf_backend.bands import Lowered
from lf_backend.disjoint import disjoint
from lf_backend.errors import BuildError, UnsupportedError
from lf_backend.globals import Rows, positions
from lf_backend.notation import parse
from lf_backend.pattern import Pattern
from lf_backend.problem import Coverage, Feature, Machine, Problem
from lf_backend.selection import Selection, chosen, preference, rule_out, select

T = TypeVar("T")

# As attributes and not in a dict, of which torch.compile sees no entry that was made in the same trace.
_patterns = SimpleNamespace()


def intern(pattern: Pattern) -> str:
    """The pattern as a string argument of the operator; `resolve` is the way back.

    In a compiled function the pattern is not kept, and read from its text where it runs.
    """
    if not torch.compiler.is_compiling():
        setattr(_patterns, pattern.text, pattern)
    return pattern.text


def resolve(text: str) -> Pattern:
    """The pattern behind a string: one that was interned, else what the text says."""
    _read(text)
    found: Pattern = getattr(_patterns, text)
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _read(text: str) -> None:
    """Runs at once where torch.compile traces, which would put the entry off until after the run."""
    if not hasattr(_patterns, text):
        setattr(_patterns, text, parse(text))


@dataclass(frozen=True, eq=False)
class Arguments:
    """The operator's arguments, in its order. Shapes as in `lf_backend.attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    global_q: Tensor | None
    global_k: Tensor | None
    global_v: Tensor | None
    key_padding: Tensor | None
    global_mask: Tensor | None
    sinks: Tensor | None
    band_bias: Tensor | None
    seed: Tensor | None
    pattern: str
    scale: float
    softcap: float | None
    dropout_p: float
    differentiable: bool
    backend: str

    def problem(self) -> Problem:
        """What the call needs."""
        batch, heads, queries, head_dim = self.q.shape
        _, kv_heads, keys, _ = self.k.shape
        pattern = resolve(self.pattern)
        needs = _pattern_needs(pattern.lowered)
        needs |= {feature for feature, needed in self._needs() if needed}
        dtype = str(self.q.dtype).removeprefix("torch.")
        window, coverage = _extent(pattern, queries, keys)
        return Problem(needs, dtype, batch, heads, kv_heads, queries, keys, head_dim, window, coverage)

    def _needs(self) -> tuple[tuple[Feature, bool], ...]:
        return (
            (Feature.GLOBAL_COLUMNS, self.global_mask is not None),
            (Feature.KEY_PADDING, self.key_padding is not None),
            (Feature.GROUPED_HEADS, self.q.shape[1] != self.k.shape[1]),
            (Feature.LONGER_KEYS, self.q.shape[2] != self.k.shape[2]),
            (Feature.BAND_BIAS, self.band_bias is not None),
            (Feature.SOFTCAP, self.softcap is not None),
            (Feature.DROPOUT, self.dropout_p > 0),
            (Feature.BACKWARD, self.differentiable),
        )

    def selection(self, machine: Machine | None = None) -> Selection:
        """Who runs the call, here or on another machine."""
        machine = machine or Machine.of(self.q.device)
        return select(self.problem(), machine, self.backend or preference())

    def simplified(self) -> Arguments:
        """The same call without a padding mask that marks nothing: on a CPU a look is cheap."""
        padding = self.key_padding
        if padding is None or padding.device.type != "cpu" or bool(padding.any()):
            return self
        return replace(self, key_padding=None)

    def on_backend(self, work: Callable[[Backend], T]) -> T:
        """Have a pass done by the chosen backend, or by the next if that cannot be built."""
        while True:
            selection = self.selection()
            try:
                return work(chosen(selection))
            except BuildError as error:
                rule_out(selection, error)

    def prepare(self, backend: Backend) -> tuple[Call, Rows | None]:
        """The local part and the global rows."""
        pattern = resolve(self.pattern)
        q, k, v = self._without_padding(self.q, self.k, self.v)
        columns = positions(pattern.lowered, pattern.is_causal, self.global_mask, self.key_padding, k)
        call = Call(
            q, k, v, pattern.lowered, columns, self.key_padding, self.band_bias,
            self.scale, self.softcap, self.dropout_p, self.seed,
        )  # fmt: skip
        own = None
        if self.global_q is not None and self.global_k is not None and self.global_v is not None:
            own = self._without_padding(self.global_q, self.global_k, self.global_v)
        return call, Rows.of(call, own, backend)

    def query_padding(self) -> Tensor | None:
        """Bool [B, 1, N], True where the query is padded."""
        if self.key_padding is None:
            return None
        return self.key_padding[:, None, self.k.shape[2] - self.q.shape[2] :]

    def _without_padding(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same tensors with zeros where a padded position holds inf or NaN."""
        if self.key_padding is None:
            return q, k, v
        offset = k.shape[2] - q.shape[2]
        return (
            _zero_padding(q, self.key_padding[:, offset:]),
            _zero_padding(k, self.key_padding),
            _zero_padding(v, self.key_padding),
        )


def _zero_padding(x: Tensor, padding: Tensor) -> Tensor:
    """x [B, H, N, D], copied only where it must be: a CPU can look before it copies.

    A copy has the layout of x, so that not even the rounding of products tells the two apart.
    """
    if x.device.type == "cpu" and bool(x.transpose(1, 2)[padding].isfinite().all()):
        return x
    return torch.empty_like(x).copy_(x).masked_fill_(padding[:, None, :, None], 0)


@lru_cache(maxsize=1024)
def _pattern_needs(lowered: Lowered) -> frozenset[Feature]:
    dilations = [set(band.dilations) for band in lowered.bands]
    needs = (
        (Feature.DILATION, any(max(steps) > 1 for steps in dilations)),
        (Feature.DILATION_PER_HEAD, any(len(steps) > 1 for steps in dilations)),
        (Feature.UNLIMITED_REACH, any(band.taps() is None for band in lowered.bands)),
        (Feature.SEVERAL_WINDOWS, len(lowered.bands) > 1),
        (Feature.CROSSING_WINDOWS, disjoint(lowered.bands) is None),
        (Feature.GLOBAL_COLUMNS, bool(lowered.positions)),
        (Feature.PREDICATE, bool(lowered.others)),
    )
    return frozenset(feature for feature, needed in needs if needed)


@lru_cache(maxsize=4096)
def _extent(pattern: Pattern, queries: int, keys: int) -> tuple[int, Coverage]:
    past, every = pattern.lowered.covers(queries, keys)
    covered = Coverage.PAST if past and pattern.is_causal else Coverage.PART
    return pattern.lowered.window(keys), Coverage.ALL if every else covered


@torch.library.custom_op("lf_backend::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    global_q: Tensor | None,
    global_k: Tensor | None,
    global_v: Tensor | None,
    key_padding: Tensor | None,
    global_mask: Tensor | None,
    sinks: Tensor | None,
    band_bias: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    differentiable: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Out [B, H, N, D] and lse [B, H, N]; arguments as in `Arguments`."""
    arguments = Arguments(
        q, k, v, global_q, global_k, global_v, key_padding, global_mask, sinks, band_bias, seed,
        pattern, scale, softcap, dropout_p, differentiable, backend,
    )  # fmt: skip
    with _exact(q):
        return _forward(arguments.simplified())


@torch.library.custom_op("lf_backend::attention_backward", mutates_args=())
def attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    global_q: Tensor | None,
    global_k: Tensor | None,
    global_v: Tensor | None,
    key_padding: Tensor | None,
    global_mask: Tensor | None,
    sinks: Tensor | None,
    band_bias: Tensor | None,
    seed: Tensor | None,
    pattern: str,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    differentiable: bool,
    backend: str,
) -> list[Tensor]:
    """Gradients of the floating tensors that were given, in the order of `_DIFFERENTIABLE`."""
    arguments = Arguments(
        q, k, v, global_q, global_k, global_v, key_padding, global_mask, sinks, band_bias, seed,
        pattern, scale, softcap, dropout_p, differentiable, backend,
    )  # fmt: skip
    with _exact(q):
        return _backward(arguments.simplified(), grad_out, grad_lse, out, lse)


_DIFFERENTIABLE = ("q", "k", "v", "global_q", "global_k", "global_v", "sinks", "band_bias")


def _exact(q: Tensor) -> torch.autocast:
    """No autocast inside: the operator's arguments have their dtypes, and float32 means float32."""
    return torch.autocast(q.device.type, enabled=False)


def _forward(a: Arguments) -> tuple[Tensor, Tensor]:
    if a.q.numel() == 0 or a.k.numel() == 0:
        return _empty(a.q)
    return a.on_backend(partial(_forward_on, a))


def _forward_on(a: Arguments, backend: Backend) -> tuple[Tensor, Tensor]:
    call, rows = a.prepare(backend)
    out, lse = backend.forward(call) if call.shows_anything else _empty(a.q)
    if rows is not None:
        rows.forward(out, lse)
    if a.sinks is not None:
        total = torch.logaddexp(lse, a.sinks.to(lse.dtype)[:, None])
        out = out.mul_((lse - total).exp_()[..., None].to(out.dtype))
        lse = total
    if (padded := a.query_padding()) is not None:
        out.masked_fill_(padded[..., None], 0)
        lse.masked_fill_(padded, -torch.inf)
    return out, lse


def probabilities(a: Arguments, local: Callable[[Call, Tensor], Tensor]) -> Tensor:
    """Weights [B, H, N, M], of the local part by `local(call, lse)` and of the global rows."""
    if a.q.numel() == 0 or a.k.numel() == 0:
        return a.q.new_zeros(*a.q.shape[:3], a.k.shape[2], dtype=accumulation_dtype(a.q.dtype))
    _, lse = _forward(a)
    call, rows = a.prepare(chosen(a.selection()))
    found = local(call, lse)
    if rows is not None:
        rows.weigh(found, lse)
    return found


def _backward(
    a: Arguments, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor
) -> list[Tensor]:
    inputs = {name: x for name in _DIFFERENTIABLE if (x := getattr(a, name)) is not None}
    if a.q.numel() == 0 or a.k.numel() == 0:
        return [torch.zeros_like(x) for x in inputs.values()]
    grads = a.on_backend(lambda backend: _backward_on(a, inputs, backend, grad_out, grad_lse, out, lse))
    return [grads[n] if grads.get(n) is not None else torch.zeros_like(x) for n, x in inputs.items()]  # type: ignore[misc]


def _backward_on(
    a: Arguments, inputs: dict[str, Tensor], backend: Backend,
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor,
) -> dict[str, Tensor | None]:  # fmt: skip
    """Gradients by name; one that is missing is zero."""
    call, rows = a.prepare(backend)
    if (padded := a.query_padding()) is not None:
        grad_out = grad_out.masked_fill(padded[..., None], 0)
        grad_lse = None if grad_lse is None else grad_lse.masked_fill(padded, 0)
    delta = (grad_out.to(lse.dtype) * out).sum(-1)
    if grad_lse is not None:
        delta -= grad_lse.masked_fill(lse == -torch.inf, 0)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    local = lse if rows is None else rows.without(lse)
    if call.shows_anything:
        found = backend.backward(call, grad_out, delta, local)
    else:
        found = Gradients(torch.zeros_like(a.q), torch.zeros_like(a.k), torch.zeros_like(a.v), None)
    grads: dict[str, Tensor | None] = {**_named(found)}
    if a.sinks is not None:
        share = (a.sinks.to(lse.dtype)[:, None] - lse).exp_()
        grads["sinks"] = -(share * delta).sum((0, 2)).to(a.sinks.dtype)
    if rows is not None:
        separate = a.global_q is not None
        names = ("global_q", "global_k", "global_v") if separate else ("q", "k", "v")
        targets = [torch.zeros_like(inputs[n]) if separate else grads[n] for n in names]
        rows.backward(grad_out, delta, lse, tuple(targets), found.band_bias)  # type: ignore[arg-type]
        grads.update(zip(names, targets, strict=True))
    return grads


def _named(found: Gradients) -> dict[str, Tensor | None]:
    return {"q": found.q, "k": found.k, "v": found.v, "band_bias": found.band_bias}


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    """The answer where there is no query, or no key to see."""
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=accumulation_dtype(q.dtype))
    return torch.zeros_like(q, memory_format=torch.contiguous_format), lse


@attention.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:3], dtype=accumulation_dtype(q.dtype))
    return torch.empty_like(q, memory_format=torch.contiguous_format), lse


@attention_backward.register_fake
def _(grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *rest: Any) -> list[Tensor]:
    arguments = Arguments(*rest)
    given = (getattr(arguments, name) for name in _DIFFERENTIABLE)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in given if x is not None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    arguments = Arguments(*inputs)
    # The backward runs where and when autograd likes: what is asked for now is asked for then.
    ctx.arguments = replace(arguments, backend=arguments.backend or preference(), **_NO_TENSORS)
    ctx.save_for_backward(*output, *(getattr(arguments, name) for name in _TENSORS))


def _autograd(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    out, lse, *tensors = ctx.saved_tensors
    arguments = replace(ctx.arguments, **dict(zip(_TENSORS, tensors, strict=True)))
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    values = [getattr(arguments, name) for name in Arguments.__dataclass_fields__]
    grads = iter(attention_backward(grad_out, grad_lse, out, lse, *values))
    return tuple(
        next(grads) if name in _DIFFERENTIABLE and value is not None else None
        for name, value in zip(Arguments.__dataclass_fields__, values, strict=True)
    )


_TENSORS = tuple(Arguments.__dataclass_fields__)[:11]
_NO_TENSORS: dict[str, Any] = dict.fromkeys(_TENSORS)

attention.register_autograd(_autograd, setup_context=_setup)


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise UnsupportedError("double backward: attention can be differentiated once, not twice")


attention_backward.register_autograd(_refuse)
