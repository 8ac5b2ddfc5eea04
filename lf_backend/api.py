"""What users call: `attention`, `explain`, `probabilities` and `patch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend.backends.reference import Reference, weights
from lf_backend.dispatch.selection import Selection
from lf_backend.errors import ArgumentError
from lf_backend.numerics import dropout
from lf_backend.ops import around_backend, checks, op, ordinary
from lf_backend.ops.arguments import Arguments
from lf_backend.ops.options import DEFAULTS, Options, takes_options
from lf_backend.ops.pattern_table import intern
from lf_backend.patching.apply import patch as patch
from lf_backend.pattern.terms import Pattern
from lf_backend.problem import Machine

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, *, return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...  # fmt: skip


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, *, return_lse: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


@takes_options
def attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, *, return_lse: bool = False,
    **options: Unpack[Options],
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Exact attention under a sparse pattern, differentiable, linear in length.

    Equal to dense attention under `pattern.mask(N, M)`: softmax in float32 (float64 for float64),
    output in the dtype of `q`. A row that sees no key gives output 0, lse -inf and zero gradients.

    Args:
        q: [B, H, N, D], any strides. The queries are the last N of the M positions.
        k: [B, Hkv, M, D] with H % Hkv == 0 and M >= N; heads of q share keys in groups.
        v: [B, Hkv, M, Dv]; Dv may differ from D where a backend says so.
        pattern: what sees what, as a pattern or its string.
        key_padding: bool [B, M], True = padded: seen by nobody, whatever it holds (NaN too). A
            padded query's row is 0; a padded global token is padding.
        global_mask: bool [B, M], True = global token, per example, besides those of the pattern: what
            `pattern | Global(the same positions)` means. A `Causal()` that is laid over the pattern cuts
            them as well; a window that ends at the query does not.
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
    arguments = _arguments(q, k, v, pattern, options)
    if _callers.wants_ordinary(arguments.tensors()):
        out, lse = ordinary.attention(arguments)
    else:
        out, lse = op.run(arguments)
    return (out, lse) if return_lse else out


@takes_options
def explain(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, *, machine: Machine | None = None,
    **options: Unpack[Options],
) -> Selection:  # fmt: skip
    """Which backend would run this call of `attention`, and why not the others.

    Takes `attention`'s arguments; computes nothing, so tensors on the "meta" device will do.

    Args:
        machine: the machine to ask about, by default the one that holds `q`.
    """
    return _arguments(q, k, v, pattern, options).selection(machine)


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
        arguments = _arguments(q, k, v, pattern, {**options, "backend": Reference.name})
        return around_backend.probabilities(arguments, weights)


def _arguments(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, options: Options) -> Arguments:
    """Return the operator's arguments, cast for autocast and checked."""
    text, pattern = pattern, checks.check_pattern(pattern)
    checks.check_tensors(q=q, k=k, v=v)
    given: dict[str, Any] = {**DEFAULTS, **options}
    q, k, v, *own = _autocast(q, k, v, *(given[name] for name in _PROJECTIONS))
    given.update(zip(_PROJECTIONS, own, strict=True))
    floats = (q, k, v, *own, given["sinks"], given["band_bias"])
    scale, softcap, dropout_p = (
        checks.check_number(name, given.pop(name)) for name in ("scale", "softcap", "dropout_p")
    )
    backend = given.pop("backend")
    seed = dropout.draw_seed(q) if dropout_p else None
    with _callers.not_traced():
        arguments = Arguments(
            q=q,
            k=k,
            v=v,
            **given,
            seed=seed,
            pattern=text if isinstance(text, str) else intern(pattern),
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            softcap=softcap,
            dropout_p=dropout_p or 0.0,
            differentiable=torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in floats),
            backend=backend or "",
        )
        checks.check(arguments, pattern)
    return arguments


_PROJECTIONS = ("global_q", "global_k", "global_v")


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """The tensors in autocast's dtype where autocast is on; float64 stays, as in PyTorch."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in tensors
    )
