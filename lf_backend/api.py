"""The functions that users call: `attention`, `explain`, `probabilities` and `patch`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend.backends.reference import Reference, weights
from lf_backend.dispatch.selection import Selection
from lf_backend.errors import ArgumentError
from lf_backend.numerics import dropout
from lf_backend.ops import around_backend, checks, op, ordinary, repeated
from lf_backend.ops.arguments import Arguments
from lf_backend.ops.options import DEFAULTS, Options, takes_options
from lf_backend.ops.static_documents import lifted
from lf_backend.patching.apply import patch as patch
from lf_backend.pattern.interned import intern
from lf_backend.pattern.terms import Pattern
from lf_backend.problem import Machine

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | str,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | str,
    *,
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...


@takes_options
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | str,
    *,
    return_lse: bool = False,
    **options: Unpack[Options],
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention under a sparse pattern, differentiable, linear in length.

    Equal to dense attention under `pattern.mask(N, M)`: softmax in float32 (float64 for float64),
    output in the dtype of `q`. A row that sees no key gives output 0, lse -inf and zero gradients.

    Args:
        q: [B, H, N, D], any strides. The queries are the last N of the M positions. A DTensor that is
            sharded along them runs over ranks, once `lf_backend.distributed` is imported.
        k: [B, Hkv, M, D] with H % Hkv == 0 and M >= N; heads of q share keys in groups.
        v: [B, Hkv, M, Dv]; Dv may differ from D where a backend says so.
        pattern: what sees what, as a pattern or its string.
        key_padding: bool [B, M], True = padded: seen by nobody, whatever it holds (NaN too). A
            padded query's row is 0; a padded global token is padding.
        global_mask: bool [B, M], True = global token, per example, besides those of the pattern: what
            `pattern | Global(the same positions)` means. A `Causal()` that is laid over the pattern cuts
            them as well; a window that ends at the query does not.
        global_positions: int [B, G], the same as positions, once each, -1 = none. Its width says how many
            there can be, so that nothing waits to count them: what CUDA graphs want. Either these or a mask.
        documents: int [B, M], packed documents: neighbours with one id are one, and the answer is as if each
            were a row of its own. Positions of the pattern count from its start: `Global(0)` is the first
            token of every document, `Global(9)` the tenth of those that have one. Every other argument keeps
            its meaning and its positions in the row, dropout's draws too. See `document_ids`.
        global_q: [B, H, N, D], and global_k, global_v like k and v: separate projections
            (Longformer, section 3.1). The rows of global tokens use them, over all keys, and nothing
            else does. All three or none.
        scale: factor on q @ k, D ** -0.5 by default.
        softcap: score = softcap * tanh(score / softcap) after scaling (Gemma 2), before any bias.
        sinks: [H], one more logit per head in the denominator (GPT-OSS).
        band_bias: [1 or B, H, N, left + right + 1], added to the score of a query and the key at tap
            t of the pattern's only window, t - left dilated steps away; differentiable. It belongs to
            the pair, whichever term shows it.
        dropout_p: probability of dropping a weight, in [0, 1). Keyed by (seed, batch, head, query,
            key), the seed being drawn from the default generator of q's device.
        return_lse: also return the log-sum-exp [B, H, N], natural logarithm, float32 (float64 for
            float64), differentiable.
        backend: name of the backend that must run it; by default `use_backend`, then LF_BACKEND, then
            the best that can.

    Returns:
        The output [B, H, N, Dv], contiguous, or (output, lse).

    Raises:
        ShapeError: tensors or numbers that do not fit, saying which, wanted and got.
        PatternError: a pattern that does not fit the call.
        UnsupportedError: nobody, or not the backend asked for, can run it; holds every reason.
    """
    if (taken := elsewhere.get(type(q))) is not None:
        found: Tensor | tuple[Tensor, Tensor] = taken(q, k, v, pattern, return_lse=return_lse, **options)
        return found
    out, lse = _attention(q, k, v, pattern, options)
    return (out, lse) if return_lse else out


def _attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, options: Options
) -> tuple[Tensor, Tensor]:
    kind = repeated.kind_of(q, k, v, pattern, options)
    if kind is not None and (found := repeated.run(kind, q, k, v)) is not None:
        return found
    arguments = checked_arguments(q, k, v, pattern, options)
    found = computed(arguments)
    if kind is not None:
        repeated.remember(kind, arguments)
    return found


# What takes calls with a query of a tensor's subclass: `lf_backend.distributed` those of DTensors.
elsewhere: dict[type, Callable[..., Any]] = {}


@takes_options
def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | str,
    *,
    machine: Machine | None = None,
    **options: Unpack[Options],
) -> Selection:
    """Say which backend would run this call of `attention`, and why not the others.

    Takes `attention`'s arguments; computes nothing, so tensors on the "meta" device will do.

    Args:
        machine: the machine to ask about, by default the one that holds `q`.
    """
    return lifted(checked_arguments(q, k, v, pattern, options)).selection(machine)


@takes_options
def probabilities(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, **options: Unpack[Options]
) -> Tensor:
    """The attention weights [B, H, N, M] themselves, before dropout: for people, and quadratic.

    Takes `attention`'s arguments. In float32 (float64 for float64), without gradient; a row sums to 1
    less the share of its sink, and to 0 where it sees nothing. `weights @ v` is `attention`'s output,
    but for global rows with projections of their own, which weigh `global_v`.
    """
    for name in ("dropout_p", "backend"):
        if options.get(name):
            raise ArgumentError(
                f"probabilities: {name} left out wanted, got {options[name]!r}: weights "
                "are shown before dropout, computed densely"
            )
    with torch.no_grad():
        arguments = checked_arguments(q, k, v, pattern, {**options, "backend": Reference.name})
        return around_backend.probabilities(arguments, weights)


def computed(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Return out and lse of a checked call, by ordinary operators where the caller wants these."""
    form = _callers.wanted(arguments.tensors())
    if form is _callers.Form.PLAIN:
        return op.stepped_around(arguments)
    return ordinary.attention(arguments) if form is _callers.Form.ORDINARY else op.called(arguments)


def checked_arguments(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, options: Options) -> Arguments:
    """Return the operator's arguments, cast for autocast and checked."""
    found = checks.check_pattern(pattern)
    arguments = collected(q, k, v, pattern if isinstance(pattern, str) else intern(found), options)
    arguments.held = found
    with _callers.not_traced():
        checks.check(arguments, found)
    return arguments


def collected(q: Tensor, k: Tensor, v: Tensor, pattern: str, options: Options) -> Arguments:
    """Return the operator's arguments, cast for autocast; of them it is checked that tensors are tensors."""
    given: dict[str, Any] = {**DEFAULTS, **options}
    floats = [q, k, v]
    checks.check_tensors(q=q, k=k, v=v)
    for name in _DIFFERENTIABLE:
        if (x := given[name]) is not None:
            checks.check_tensors(**{name: x})
            floats.append(x)
    if _is_autocast(q.device.type):
        q, k, v = _autocast(q), _autocast(k), _autocast(v)
        given.update((name, _autocast(given[name])) for name in _PROJECTIONS)
    for name in _NUMBERS:
        if given[name] is not None:
            given[name] = checks.check_number(name, given[name])
    if given["scale"] is None:
        given["scale"] = checks.default_scale(q)
    given["dropout_p"] = given["dropout_p"] or 0.0
    given["backend"] = given["backend"] or ""
    return Arguments(
        q=q,
        k=k,
        v=v,
        **given,
        seed=dropout.draw_seed(q) if given["dropout_p"] else None,
        pattern=pattern,
        differentiable=torch.is_grad_enabled() and _needs_grad(floats),
    )


def _needs_grad(tensors: Iterable[Tensor]) -> bool:
    for x in tensors:  # noqa: SIM110 - by any() it takes longer, and every call asks
        if x.requires_grad:
            return True
    return False


_PROJECTIONS = ("global_q", "global_k", "global_v")
_DIFFERENTIABLE = (*_PROJECTIONS, "sinks", "band_bias")
_NUMBERS = ("scale", "softcap", "dropout_p")


def _is_autocast(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)


def _autocast(x: Any) -> Any:
    """A tensor in autocast's dtype; float64 stays, as in PyTorch."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
