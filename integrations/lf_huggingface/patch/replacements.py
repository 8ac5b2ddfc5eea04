"""The words in which a file of this room says what it puts in the place of upstream's classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lf_backend.pattern.terms import Pattern


def takes_any(pattern: Pattern) -> None:
    """Accept every pattern."""


@dataclass(frozen=True)
class Replacements:
    """The replacements of one upstream module: `REPLACEMENTS` of a file.

    Attributes:
        classes: named as the upstream classes that they replace.
        native: makes of a config the pattern of every layer, None for a layer that makes its own.
        check: raises PatternError for a pattern of the user's that does not fit.
    """

    classes: tuple[type[nn.Module], ...]
    native: Callable[[Any], tuple[Pattern | None, ...]]
    check: Callable[[Pattern], None] = takes_any

    def of(self, name: str) -> type[nn.Module]:
        """Return the class in the place of upstream's class of that name."""
        return next(found for found in self.classes if found.__name__ == name)
