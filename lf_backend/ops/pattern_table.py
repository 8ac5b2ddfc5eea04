"""Patterns as strings and back: an operator of PyTorch takes no other values of ours."""

from __future__ import annotations

from threading import Lock
from weakref import WeakValueDictionary

import torch

from lf_backend._graphs import constant_in_graphs
from lf_backend.pattern.notation import parse
from lf_backend.pattern.terms import Pattern

_patterns: WeakValueDictionary[str, Pattern] = WeakValueDictionary()  # those that somebody holds
_lock = Lock()


def intern(pattern: Pattern) -> str:
    """Return the pattern as a string argument of the operator; `resolve` is the way back.

    Who needs the pattern later must hold it. In a compiled function it is read from its text where it runs.
    """
    if not torch.compiler.is_compiling():
        with _lock:
            _patterns[pattern.text] = pattern
    return pattern.text


def resolve(text: str) -> Pattern:
    """Return the pattern behind a string: one that was interned and is alive, else what the text says."""
    if torch.compiler.is_compiling():
        return _resolved(text)
    return _patterns.get(text) or parse(text)


@constant_in_graphs
def _resolved(text: str) -> Pattern:
    """`resolve` at once, where torch.compile traces."""
    return _patterns.get(text) or parse(text)
