"""The work around a backend's local part, done once for all backends.

Sinks are one more logit in the denominator, rows of global tokens are computed apart, padded queries
give zeros, and NaN or inf in padded keys never reaches a product.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from lf_backend._looked import once
from lf_backend.backend import Backend, Call, Gradients
from lf_backend.dispatch.select import chosen, rule_out
from lf_backend.errors import BuildError
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.ops.arguments import DIFFERENTIABLE, Arguments
from lf_backend.ops.documents import boundaries
from lf_backend.ops.global_rows import Rows
from lf_backend.ops.global_tokens import columns_of
from lf_backend.ops.static_documents import lifted

T = TypeVar("T")

_NOTHING = nullcontext()


def forward(a: Arguments) -> tuple[Tensor, Tensor]:
    """Return out [B, H, N, D] and lse [B, H, N] of the whole call."""
    if a.q.numel() == 0 or a.k.numel() == 0:
        return _empty(a)
    with _exact(a.q):
        return _on_backend(simplified(a), _forward_on)


def backward(
    a: Arguments, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor
) -> list[Tensor]:
    """Return the gradients of the floating tensors that were given, in the order of `DIFFERENTIABLE`."""
    inputs = {name: x for name in DIFFERENTIABLE if (x := getattr(a, name)) is not None}
    if a.q.numel() == 0 or a.k.numel() == 0:
        return [torch.zeros_like(x) for x in inputs.values()]
    with _exact(a.q):
        work = partial(_backward_on, grad_out=grad_out, grad_lse=grad_lse, out=out, lse=lse)
        grads = _on_backend(simplified(a), work)
    return [torch.zeros_like(x) if (grad := grads.get(name)) is None else grad for name, x in inputs.items()]


def probabilities(a: Arguments, local: Callable[[Call, Tensor], Tensor]) -> Tensor:
    """Return the weights [B, H, N, M], of the local part by `local(call, lse)` and of the global rows."""
    if a.q.numel() == 0 or a.k.numel() == 0:
        return a.q.new_zeros(*a.q.shape[:3], a.k.shape[2], dtype=accumulation_dtype(a.q.dtype))
    _, lse = forward(a)
    a = lifted(a)
    call, rows = _prepared(a, chosen(a.selection()))
    found = local(call, lse)
    if rows is not None:
        rows.weigh(found, lse)
    return found


def _exact(q: Tensor) -> AbstractContextManager[object]:
    """Turn autocast off inside: the arguments have their dtypes, and float32 means float32."""
    kind = q.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING


def simplified(a: Arguments) -> Arguments:
    """Return the same call with documents as a tensor, and without padding that marks nothing: on a CPU
    a look is cheap."""
    a = lifted(a)
    padding = a.key_padding
    if padding is None or padding.device.type != "cpu" or once(marks_any, padding):
        return a
    return a.replaced(key_padding=None)


def marks_any(mask: Tensor) -> bool:
    return bool(mask.any())


def _on_backend(a: Arguments, work: Callable[[Arguments, Backend], T]) -> T:
    """Have a pass done by the chosen backend, or by the next if that cannot be built."""
    while True:
        selection = a.selection()
        try:
            return work(a, chosen(selection))
        except BuildError as error:
            rule_out(selection, error)


def _forward_on(a: Arguments, backend: Backend) -> tuple[Tensor, Tensor]:
    call, rows = _prepared(a, backend)
    out, lse = backend.forward(call) if call.shows_anything else _empty(a)
    if rows is not None:
        rows.forward(out, lse)
    if a.sinks is not None:
        total = torch.logaddexp(lse, a.sinks.to(lse.dtype)[:, None])
        out = out.mul_((lse - total).exp_()[..., None].to(out.dtype))
        lse = total
    cleared = backend.capabilities.clears_padding and call.shows_anything and a.sinks is None
    if not cleared and (padded := _query_padding(a)) is not None:
        out.masked_fill_(padded[..., None], 0)
        lse.masked_fill_(padded, -torch.inf)
    return out, lse


def _backward_on(
    a: Arguments, backend: Backend, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor
) -> dict[str, Tensor | None]:
    """Return gradients by name; one that is missing is zero."""
    call, rows = _prepared(a, backend)
    cleared = backend.capabilities.clears_padding and a.sinks is None
    if not cleared and (padded := _query_padding(a)) is not None:
        grad_out = grad_out.masked_fill(padded[..., None], 0)
    delta, local = backend.deltas(grad_out, out, lse, None if rows is None else rows.listed)
    given = out if grad_lse is None else None
    if grad_lse is not None:
        delta -= grad_lse.masked_fill(lse == -torch.inf, 0)
    if call.shows_anything:
        found = backend.backward(call, grad_out, given, delta, local)
    else:
        found = Gradients(torch.zeros_like(a.q), torch.zeros_like(a.k), torch.zeros_like(a.v), None)
    grads: dict[str, Tensor | None] = found._asdict()
    if a.sinks is not None:
        share = (a.sinks.to(lse.dtype)[:, None] - lse.masked_fill(lse == -torch.inf, torch.inf)).exp_()
        grads["sinks"] = -(share * delta).sum((0, 2)).to(a.sinks.dtype)
    if rows is not None:
        separate = a.global_q is not None
        more = rows.backward(grad_out, given, delta, lse, None if separate else found, found.band_bias)
        names = ("global_q", "global_k", "global_v") if separate else ("q", "k", "v")
        grads.update(zip(names, more, strict=True))
    return grads


def _prepared(a: Arguments, backend: Backend) -> tuple[Call, Rows | None]:
    """Return the local part and the global rows."""
    # Rows that meet a band bias are computed by dense products, for which padding has to be finite.
    clean = _as_they_are if backend.capabilities.skips_padding and a.band_bias is None else _without_padding
    q, k, v = clean(a, a.q, a.k, a.v)
    documents = None if a.documents is None else once(boundaries, a.documents)
    call = Call(
        q,
        k,
        v,
        a.lowered,
        columns_of(a, documents),
        a.key_padding,
        a.band_bias,
        a.scale,
        a.softcap,
        a.dropout_p,
        a.seed,
        documents=documents,
    )
    own = None
    if a.global_q is not None and a.global_k is not None and a.global_v is not None:
        own = clean(a, a.global_q, a.global_k, a.global_v)
    return call, Rows.of(call, own, backend)


def _query_padding(a: Arguments) -> Tensor | None:
    """Return bool [B, 1, N], True where the query is padded."""
    if a.key_padding is None:
        return None
    return a.key_padding[:, None, a.k.shape[2] - a.q.shape[2] :]


def _as_they_are(a: Arguments, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q, k, v


def _without_padding(a: Arguments, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same tensors with zeros where a padded position holds inf or NaN."""
    if a.key_padding is None:
        return q, k, v
    own = a.key_padding[:, k.shape[2] - q.shape[2] :]
    return _zero_padding(q, own), _zero_padding(k, a.key_padding), _zero_padding(v, a.key_padding)


def _zero_padding(x: Tensor, padding: Tensor) -> Tensor:
    """x [B, H, N, D], copied only where it must be: a CPU can look before it copies.

    A copy has the layout of x, so that not even the rounding of products tells the two apart.
    """
    if x.device.type == "cpu" and bool(x.transpose(1, 2)[padding].isfinite().all()):
        return x
    return torch.empty_like(x).copy_(x).masked_fill_(padding[:, None, :, None], 0)


def _empty(a: Arguments) -> tuple[Tensor, Tensor]:
    """Return the answer where there is no query, or no key to see."""
    lse = a.q.new_full(a.q.shape[:3], -torch.inf, dtype=accumulation_dtype(a.q.dtype))
    return a.q.new_zeros(*a.q.shape[:3], a.v.shape[3]), lse
