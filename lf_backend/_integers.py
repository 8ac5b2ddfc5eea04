"""Reading an integer that a user wrote, with errors that name it and say wanted and got."""

from __future__ import annotations

import operator
from typing import Any

from lf_backend.errors import PatternError


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """The value as an int, if it is one: no bool, no float, `low <= value < high` where given.

    Raises:
        PatternError: anything else.
    """
    try:
        number = int(operator.index(value))
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise PatternError(f"{name}: an int wanted, got {value!r}")
    if high is not None and not (low or 0) <= number < high:
        raise PatternError(f"{name} in [{low or 0}, {high}) wanted, got {number}")
    if low is not None and number < low:
        raise PatternError(f"{name} >= {low} wanted, got {number}")
    return number
