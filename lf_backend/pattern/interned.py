"""Patterns as strings and back: an operator of PyTorch takes no other values of ours."""

from __future__ import annotations

from threading import Lock
from types import SimpleNamespace
from weakref import WeakValueDictionary

import torch

from lf_backend._graphs import constant_in_graphs
from lf_backend.pattern.notation import parse
from lf_backend.pattern.terms import Pattern

_patterns: WeakValueDictionary[str, Pattern] = WeakValueDictionary()  # those that somebody holds
_lock = Lock()
# Those that compiled graphs have met, which refer to them. As attributes and not in a dict, of which
# torch.compile sees no entry that was made in the same trace.
_traced = SimpleNamespace()


def intern(pattern: Pattern) -> str:
    """Return the pattern as a string argument of the operator; `resolve` is the way back.

    Who needs the pattern later must hold it. In a compiled function it is read from its text where it runs.
    """
    text = pattern.text
    if not torch.compiler.is_compiling() and _patterns.get(text) is not pattern:
        with _lock:
            _patterns[text] = pattern
    return text


def interned(text: str) -> Pattern | None:
    """Return the pattern that was interned and is alive, to be held by who needs it later."""
    return _patterns.get(text)


def resolve(text: str) -> Pattern:
    """Return the pattern behind a string: one that was interned and is alive, else what the text says."""
    if torch.compiler.is_compiling():
        _read(text)
        found: Pattern = getattr(_traced, text)
        return found
    return _patterns.get(text) or parse(text)


@constant_in_graphs
def _read(text: str) -> None:
    """Read the text at once where torch.compile traces, which would put it off until after the run."""
    if not hasattr(_traced, text):
        setattr(_traced, text, _patterns.get(text) or parse(text))
