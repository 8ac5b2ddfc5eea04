"""Patterns whose global tokens are not where the pattern says: beyond the keys, or marked by the call.

    within((window(3, 3) | global(0, 9)), 8)     window(3, 3) | global(0)     position 9 does not exist yet
    unplaced(window(3, 3) | global(0, 9))        window(3, 3) | global()      the call marks the tokens

Caches need the first, since keys arrive one by one; and the second, since they drop keys, and so the rest has
other places. Padding on the left moves tokens as well.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from lf_backend._graphs import constant_in_graphs
from lf_backend.errors import UnsupportedError
from lf_backend.pattern.interned import resolve
from lf_backend.pattern.named import Named
from lf_backend.pattern.terms import Global, Intersection, Pattern, Union, intersection, union


def within(pattern: Pattern, length: int) -> Pattern:
    """Return the pattern for `length` keys: global positions beyond them are dropped."""
    if not pattern.global_positions or pattern.global_positions[-1] < length:
        return pattern
    return _rewritten(pattern, length)


def unplaced(pattern: Pattern) -> Pattern:
    """Return the pattern without its global positions, for keys that the call marks instead.

    Raises:
        UnsupportedError: see `check_movable`.
    """
    check_movable(pattern)
    return _rewritten(pattern, 0) if pattern.global_positions else pattern


def check_movable(pattern: Pattern) -> None:
    """Check that global tokens can be marked elsewhere.

    Raises:
        UnsupportedError: a rule of the pattern asks for their positions, and would have to move with them.
    """
    if pattern.lowered.positions != pattern.global_positions:
        raise UnsupportedError(
            "pattern: global positions joined by | alone wanted where padding or a cache moves tokens, got "
            f"{pattern}"
        )


def _rewritten(pattern: Pattern, length: int) -> Pattern:
    if torch.compiler.is_compiling():
        return resolve(_text(pattern.text, length))
    return _cut(pattern, length)


@constant_in_graphs
def _text(text: str, length: int) -> str:
    """Return the text of a rewritten pattern: what a graph can hold of it."""
    return _cut(resolve(text), length).text


@lru_cache(maxsize=64)
def _cut(pattern: Pattern, length: int) -> Pattern:
    if isinstance(pattern, Named):
        return _cut(pattern.made, length) if pattern.global_positions else pattern
    if isinstance(pattern, Global):
        return Global(*(at for at in pattern.positions if at < length))
    if isinstance(pattern, Union):
        return union(*(_cut(term, length) for term in pattern.terms))
    if isinstance(pattern, Intersection):
        return intersection(*(_cut(term, length) for term in pattern.terms))
    return pattern
