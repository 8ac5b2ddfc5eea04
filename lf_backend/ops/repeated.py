"""Calls like an earlier one: all that was decided for it is looked up, and only the backend is left to run.

That is for plain eager mode without a gradient, and calls of nothing but q, k, v, windows and numbers, as in
decoding, where Python would take longer than the backend. All others decide most of it anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend._looked import once
from lf_backend.backend import Backend, Call
from lf_backend.dispatch.select import chosen, decisive, preference
from lf_backend.errors import BuildError
from lf_backend.ops.arguments import Arguments
from lf_backend.ops.around_backend import marks_any, simplified
from lf_backend.pattern.lowered import Lowered

MOST = 4096  # kinds that are remembered; then all are forgotten

Kind = tuple[Any, ...]


class _Decision(NamedTuple):
    backend: Backend
    lowered: Lowered
    scale: float
    softcap: float | None


_decisions: dict[Kind, _Decision] = {}
_NUMBERS = (float, int, type(None))


def kind_of(q: Tensor, k: Tensor, v: Tensor, pattern: Any, options: Mapping[str, Any]) -> Kind | None:
    """Return all that decisions about a call depend on; None if they are not remembered for such calls."""
    if q is None or k is None or v is None:
        return None
    if _callers.wanted((q, k, v)) is not _callers.Form.PLAIN or torch._C._is_any_autocast_enabled():
        return None
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return None
    scale = softcap = asked = None
    for name, value in options.items():
        if value is None:
            continue
        if name == "scale":
            scale = value
        elif name == "softcap":
            softcap = value
        elif name == "backend":
            asked = value
        elif name == "dropout_p":
            if type(value) not in _NUMBERS or value != 0:
                return None
        elif name != "key_padding" or not _marks_none(value, k):
            return None
    text = pattern if isinstance(pattern, str) else getattr(pattern, "text", None)
    if type(scale) not in _NUMBERS or type(softcap) not in _NUMBERS or not isinstance(text, str):
        return None
    asked = preference() if asked is None else asked
    if not isinstance(asked, str):
        return None
    form = q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device
    return (type(pattern), text, scale, softcap, asked, *form, *decisive())


def run(kind: Kind, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return out and lse of a call of a kind that is remembered; None if it is not, or cannot be built."""
    known = _decisions.get(kind)
    if known is None:
        return None
    call = Call(q, k, v, known.lowered, None, None, None, known.scale, known.softcap, 0.0, None)
    try:
        return known.backend.forward(call)
    except BuildError:
        return None


def remember(kind: Kind, a: Arguments) -> None:
    """Keep what was decided for a call that ran."""
    a, lowered = simplified(a), a.lowered
    if lowered.others or lowered.positions or not lowered.bands or a.q.numel() == 0 or a.k.numel() == 0:
        return
    if len(_decisions) >= MOST:
        _decisions.clear()
    _decisions[kind] = _Decision(chosen(a.selection()), lowered, a.scale, a.softcap)


def _marks_none(padding: Any, k: Tensor) -> bool:
    """Return whether padding fits, and says that there is none, where a look is cheap."""
    if type(padding) is not Tensor or padding.dtype is not torch.bool or padding.device.type != "cpu":
        return False
    batch, _, keys, _ = k.shape if k.ndim == 4 else (0, 0, 0, 0)
    return padding.shape == (batch, keys) and k.device == padding.device and not once(marks_any, padding)
