"""Marks on functions that torch.compile reads, set without loading the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def constant_in_graphs(function: F) -> F:
    """Decorate a function that torch.compile calls while it traces, and whose result it keeps.

    This is `torch.compiler.assume_constant_result`, which sets this attribute and nothing else, but imports
    the whole compiler first: more than a second, for programs that never compile.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def settled(size: int) -> int:
    """Return a size as a number where torch.compile traces with a symbol; another one is another graph."""
    return int(f"{size}")  # text has no symbols
