"""Results derived from a pattern, kept as long as the pattern lives and no longer.

`functools.lru_cache` holds its arguments, and so the boundaries of every batch of packed documents. Windows
and global tokens are small and few, and go there; a pattern with a predicate keeps what is derived from it
in the predicate itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from threading import Lock
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from lf_backend.pattern.bands import Band
from lf_backend.pattern.lowered import Form, Lowered, Rule, Tokens

P = ParamSpec("P")
T = TypeVar("T")
W = TypeVar("W", Lowered, tuple[Form, ...])

_MISSING = object()


def kept(most: int) -> Callable[[Callable[Concatenate[W, P], T]], Callable[Concatenate[W, P], T]]:
    """For a pure function of a lowered pattern, or of some of its forms, and of hashable values.

    Safe under threads, two of which may compute the same result at once.

    Args:
        most: how many results are kept for one predicate, and how many for all patterns without one. The
            oldest go first.
    """

    def decorate(make: Callable[Concatenate[W, P], T]) -> Callable[Concatenate[W, P], T]:
        elsewhere: Any = lru_cache(maxsize=most)(make)
        lock = Lock()

        @wraps(make)
        def found(what: W, /, *args: P.args, **kwargs: P.kwargs) -> T:
            holder = _holder(what.others if isinstance(what, Lowered) else what)
            if holder is None:
                result: T = elsewhere(what, *args, **kwargs)
                return result
            table: dict[Any, T] = vars(holder).setdefault(f"kept {make.__qualname__}", {})
            key = (_apart(what, holder), args, *kwargs.items())
            value: Any = table.get(key, _MISSING)
            if value is _MISSING:
                value = make(what, *args, **kwargs)
                with lock:
                    while len(table) >= most:
                        del table[next(iter(table))]
                    table[key] = value
            result = value
            return result

        return cast("Callable[Concatenate[W, P], T]", found)

    return decorate


def _holder(forms: tuple[Form, ...]) -> Form | None:
    """The first part that is neither a window nor global tokens."""
    parts = (part for form in forms for part in (form.parts if isinstance(form, Rule) else (form,)))
    return next((part for part in parts if not isinstance(part, Band | Tokens)), None)


def _apart(what: Any, holder: Form) -> Any:
    """Return a key for `what` that does not hold the holder, which will hold the key."""
    if isinstance(what, Lowered):
        return (what.bands, what.positions, what.causal_globals, _apart(what.others, holder))
    if isinstance(what, Rule):
        return _apart(what.parts, holder)
    if isinstance(what, tuple):
        return tuple(_apart(item, holder) for item in what)
    return None if what is holder else what
