"""Facts about tensors, kept until these are written to or gone.

A model hands one mask to all of its layers, and to their backward: it is looked at once, and what is made of
it is made once. That is so in eager mode alone. Whoever compiles or captures may write to a tensor again
without saying so, and has everything found anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

T = TypeVar("T")

MOST = 16  # facts about one tensor; the oldest make room

_facts: Any = WeakIdKeyDictionary()  # of a tensor: by what was made, with what else, and where, the result
_lock = Lock()
_anew: ContextVar[bool] = ContextVar("lf_backend.anew", default=False)


@contextmanager
def anew() -> Iterator[None]:
    """Find everything anew within the block, and keep none of it."""
    token = _anew.set(True)
    try:
        yield
    finally:
        _anew.reset(token)


def once(make: Callable[..., T], *parts: Any) -> T:
    """Return `make(*parts)`, made only once for each state of the tensors among the parts.

    Nobody may write to what is made, and it may be no view of a part, which it would keep for ever. Parts are
    tensors or hashable. On a GPU each stream has results of its own.
    """
    tensors = [x for x in parts if isinstance(x, Tensor)]
    if not _may_keep(tensors):
        return make(*parts)
    key = (make, _stream(tensors[0]), *[id(x) if isinstance(x, Tensor) else x for x in parts])
    versions = [x._version for x in tensors]
    with _lock:
        known = _facts.get(tensors[0], {}).get(key)
    if known is not None and known[0] == versions and all(map(_is, known[1], tensors)):
        result: T = known[2]
        return result
    made = make(*parts)
    with _lock:
        facts = _facts.setdefault(tensors[0], {})
        facts.pop(key, None)
        if len(facts) >= MOST:
            del facts[next(iter(facts))]
        facts[key] = versions, [ref(x) for x in tensors], made
    return made


def _is(kept: ref[Tensor], x: Tensor) -> bool:
    return kept() is x


def _may_keep(tensors: list[Tensor]) -> bool:
    """Tell whether a tensor that was written to says so; one of inference mode has no version."""
    if not tensors or _anew.get():
        return False
    for x in tensors:
        if x.is_inference():
            return False
    return not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
