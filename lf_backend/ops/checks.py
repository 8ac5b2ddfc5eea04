"""Every check of a call, done once, before any backend. Messages name the argument, wanted and got."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend._looked import once
from lf_backend.errors import PatternError, ShapeError
from lf_backend.ops.arguments import Arguments
from lf_backend.ops.documents import INTS, check_documents, check_layout
from lf_backend.pattern.interned import resolve
from lf_backend.pattern.terms import Pattern

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_pattern(pattern: Any) -> Pattern:
    """The pattern itself, or what its string says."""
    if isinstance(pattern, str):
        return resolve(pattern)
    if not isinstance(pattern, Pattern):
        raise PatternError(f"pattern: a lf_backend pattern or its string wanted, got {pattern!r}")
    return pattern


def check_tensors(**tensors: Any) -> None:
    """Raise ShapeError for what is no tensor at all."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ShapeError(f"{name}: a tensor wanted, got {type(x).__name__}")


def check_number(name: str, value: Any) -> float:
    """Return a number that is no tensor as a float: a tensor's gradient would be lost."""
    if isinstance(value, Tensor):
        raise ShapeError(
            f"{name}: a float wanted, got a tensor, whose gradient would be lost; scale the queries instead "
            "(q * scale, with scale=1.0) if it is to be learned"
            if name == "scale"
            else f"{name}: a float wanted, got a tensor, whose gradient would be lost"
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ShapeError(f"{name}: a float wanted, got {value!r}") from None


def default_scale(q: Tensor) -> float:
    """Return D ** -0.5; a query without D is refused later."""
    head_dim = q.shape[-1] if q.ndim else 0
    if type(head_dim) is not int:  # traced
        head_dim = _callers.fixed_size(q, -1)
    scale: float = head_dim**-0.5 if head_dim else 1.0
    return scale


def check(a: Arguments, pattern: Pattern) -> None:
    """Raise ShapeError or PatternError unless the arguments agree with each other."""
    known = a.known()
    if not known.is_right:
        _check_kind(a, pattern)
        known.is_right = True
    _check_data(a)
    _check_numbers(a)


def _check_kind(a: Arguments, pattern: Pattern) -> None:
    _check_layout(a)
    pattern.check_heads(a.q.shape[1])
    if a.documents is None:  # in a document a position that it has not is nobody's
        pattern.check_positions(a.k.shape[2])
    _check_projections(a, pattern)
    batch, heads, queries = a.q.shape[:3]
    for name in ("key_padding", "global_mask"):
        _check_mask(name, getattr(a, name), (batch, a.k.shape[2]), a.q.device)
    _check_positions(a)
    _check_documents(a)
    if a.sinks is not None:
        _check_like("sinks", a.sinks, a.q, (heads,))
    if a.band_bias is not None:
        _check_like("band_bias", a.band_bias, a.q, None)
        taps = _taps(pattern)
        if a.band_bias.shape not in ((1, heads, queries, taps), (batch, heads, queries, taps)):
            wanted = f"[1 or {batch}, {heads}, {queries}, {taps}]"
            raise ShapeError(f"band_bias: shape {wanted} wanted, got {list(a.band_bias.shape)}")


def _check_layout(a: Arguments) -> None:
    for name, x in (("q", a.q), ("k", a.k), ("v", a.v)):
        if x.ndim != 4:
            raise ShapeError(f"{name}: [batch, heads, length, head_dim] wanted, got {list(x.shape)}")
    if a.q.dtype not in _DTYPES:
        raise ShapeError(f"q: dtype in {[str(d) for d in _DTYPES]} wanted, got {a.q.dtype}")
    if a.k.shape[:3] != a.v.shape[:3]:
        wanted = f"batch, heads and length of k {list(a.k.shape[:3])}, of any width,"
        raise ShapeError(f"v: {wanted} wanted, got {list(a.v.shape)}")
    if a.q.shape[3] == 0 or a.v.shape[3] == 0:
        name = "q" if a.q.shape[3] == 0 else "v"
        raise ShapeError(f"{name}: head_dim >= 1 wanted, got {list(getattr(a, name).shape)}")
    for name, x in (("k", a.k), ("v", a.v)):
        _check_like(name, x, a.q, None)
    if a.k.shape[0] != a.q.shape[0] or a.k.shape[3] != a.q.shape[3]:
        wanted = f"batch {a.q.shape[0]} and head_dim {a.q.shape[3]} of q"
        raise ShapeError(f"k: {wanted} wanted, got {list(a.k.shape)}")
    heads, kv_heads = a.q.shape[1], a.k.shape[1]
    if kv_heads == 0 or heads == 0 or heads % kv_heads:
        raise ShapeError(f"k: a number of heads that divides q's {heads} wanted, got {kv_heads}")
    if a.q.shape[2] > a.k.shape[2]:
        raise ShapeError(f"q: at most as many queries as keys ({a.k.shape[2]}) wanted, got {a.q.shape[2]}")


def _check_projections(a: Arguments, pattern: Pattern) -> None:
    given = {name: getattr(a, name) for name in ("global_q", "global_k", "global_v")}
    missing = [name for name, x in given.items() if x is None]
    if len(missing) == 3:
        return
    if missing:
        raise ShapeError(f"global_q, global_k, global_v: all or none wanted, missing {missing}")
    for (name, x), like in zip(given.items(), (a.q, a.k, a.v), strict=True):
        _check_like(name, x, a.q, tuple(like.shape))
    if not a.brings_globals and not pattern.lowered.positions:
        wanted = "a pattern with global tokens, a global_mask or global_positions"
        raise PatternError(f"global_q: {wanted} wanted, got {pattern}")


def _check_like(name: str, x: Any, q: Tensor, shape: tuple[int, ...] | None) -> None:
    if x.dtype != q.dtype and name not in ("sinks", "band_bias"):
        raise ShapeError(f"{name}: dtype {q.dtype} of q wanted, got {x.dtype}")
    if not x.is_floating_point():
        raise ShapeError(f"{name}: a floating dtype wanted, got {x.dtype}")
    if x.device != q.device:
        raise ShapeError(f"{name}: device {q.device} of q wanted, got {x.device}")
    if shape is not None and tuple(x.shape) != shape:
        raise ShapeError(f"{name}: shape {list(shape)} wanted, got {list(x.shape)}")


def _check_mask(name: str, mask: Any, shape: tuple[int, int], device: torch.device) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise ShapeError(f"{name}: a bool tensor wanted, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        meaning = "padded" if name == "key_padding" else "global"
        reverse = "; Hugging Face's attention_mask is the reverse: pass attention_mask == 0"
        advice = reverse if name == "key_padding" else ""
        raise ShapeError(f"{name}: dtype torch.bool (True = {meaning}) wanted, got {mask.dtype}{advice}")
    if tuple(mask.shape) != shape:
        raise ShapeError(f"{name}: shape [batch, keys] = {list(shape)} wanted, got {list(mask.shape)}")
    if mask.device != device:
        raise ShapeError(f"{name}: device {device} of q wanted, got {mask.device}")


def _check_positions(a: Arguments) -> None:
    at = a.global_positions
    if at is None:
        return
    if a.global_mask is not None:
        raise ShapeError("global_positions: either these or a global_mask wanted, got both")
    if not isinstance(at, Tensor):
        raise ShapeError(f"global_positions: an int tensor wanted, got {type(at).__name__}")
    if at.dtype not in INTS:
        raise ShapeError(f"global_positions: a dtype of ints wanted, got {at.dtype}")
    batch = a.k.shape[0]
    if at.ndim != 2 or at.shape[0] != batch:
        raise ShapeError(
            f"global_positions: shape [batch, tokens] = [{batch}, any] wanted, got {list(at.shape)}"
        )
    if at.device != a.q.device:
        raise ShapeError(f"global_positions: device {a.q.device} of q wanted, got {at.device}")


def _check_data(a: Arguments) -> None:
    """Look at numbers, where looking is free."""
    if (ids := a.documents) is not None and ids.device.type == "cpu" and _callers.may_look(ids):
        once(check_documents, ids)
    at, keys = a.global_positions, a.k.shape[2]
    if at is not None and at.device.type == "cpu" and _callers.may_look(at) and at.numel():
        least, most, repeated = once(_ends, at)
        if least < -1 or most >= keys:
            got = least if least < -1 else most
            raise ShapeError(f"global_positions: positions below {keys}, or -1 for none, wanted, got {got}")
        if repeated is not None:
            raise ShapeError(
                f"global_positions: a position once in each example wanted, got {repeated} twice"
            )


def _ends(positions: Tensor) -> tuple[int, int, int | None]:
    """Return the least and the greatest of some positions [B, G], and one that an example names twice."""
    ordered = positions.sort(1).values
    twice = ordered[:, 1:][(ordered.diff(dim=1) == 0) & (ordered[:, 1:] >= 0)]
    return int(ordered.min()), int(ordered.max()), int(twice[0]) if len(twice) else None


def _check_documents(a: Arguments) -> None:
    if a.documents is None:
        return
    check_layout(a.documents)
    wanted = [a.k.shape[0], a.k.shape[2]]
    if list(a.documents.shape) != wanted:
        got = list(a.documents.shape)
        raise ShapeError(f"documents: shape [batch, keys] = {wanted} wanted, got {got}")
    if a.documents.device != a.q.device:
        raise ShapeError(f"documents: device {a.q.device} of q wanted, got {a.documents.device}")


def _taps(pattern: Pattern) -> int:
    bands = pattern.lowered.bands
    taps = bands[0].taps() if len(bands) == 1 else None
    if taps is None:
        raise PatternError(f"band_bias: a pattern with exactly one limited window wanted, got {pattern}")
    return taps


def check_probability(name: str, value: float) -> None:
    """Raise ShapeError unless a weight can be dropped with that probability."""
    if not 0 <= value < 1:
        raise ShapeError(f"{name}: a probability in [0, 1) wanted, got {value}")


def _check_numbers(a: Arguments) -> None:
    if not abs(a.scale) < math.inf:  # compares, so that a symbolic number will do
        raise ShapeError(f"scale: a finite number wanted, got {a.scale}")
    if a.softcap is not None and not 0 < a.softcap < math.inf:
        raise ShapeError(f"softcap: a finite number > 0 or None wanted, got {a.softcap}")
    check_probability("dropout_p", a.dropout_p)
