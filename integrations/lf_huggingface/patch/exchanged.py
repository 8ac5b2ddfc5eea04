"""Classes that modules are given, and that nobody constructs."""

from __future__ import annotations

from typing import Any


class Exchanged:
    """The first base of every class that takes the place of one of transformers.

    A module becomes an instance by having its class exchanged, and carries the `lf_mark` that says what it
    runs. `type(module)(config)` and `type(module).from_pretrained(...)` know of no mark: they make a module
    of transformers' own class, to be patched like any other.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs:  # copying and unpickling
            return super().__new__(cls)
        stock = next(base for base in cls.__mro__ if base.__module__.startswith("transformers."))
        return stock(*args, **kwargs)
