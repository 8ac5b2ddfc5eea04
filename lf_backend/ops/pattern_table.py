"""Patterns as strings and back: an operator of PyTorch takes no other values of ours."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from lf_backend._graphs import constant_in_graphs
from lf_backend.pattern.notation import parse
from lf_backend.pattern.terms import Pattern

# As attributes and not in a dict, of which torch.compile sees no entry that was made in the same trace.
_patterns = SimpleNamespace()


def intern(pattern: Pattern) -> str:
    """Return the pattern as a string argument of the operator; `resolve` is the way back.

    In a compiled function the pattern is not kept, and read from its text where it runs.
    """
    if not torch.compiler.is_compiling():
        setattr(_patterns, pattern.text, pattern)
    return pattern.text


def resolve(text: str) -> Pattern:
    """Return the pattern behind a string: one that was interned, else what the text says."""
    _read(text)
    found: Pattern = getattr(_patterns, text)
    return found


@constant_in_graphs
def _read(text: str) -> None:
    """Read the text at once where torch.compile traces, which would put it off until after the run."""
    if not hasattr(_patterns, text):
        setattr(_patterns, text, parse(text))
