"""Upstream's private seams, compared when a model is patched: a changed one is an error, not a surprise.

What a replaced `forward` is called with is not public in transformers. So its parameters must be those
of the `forward` that replaces it, and what lies between two replaced modules must pass them on.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from lf_backend.errors import PatchError

TESTED = "5.17 to 5.23"


def check_forward(upstream: type[nn.Module], like: type[nn.Module]) -> None:
    """Raise PatchError unless upstream's `forward` takes the parameters of `like`'s."""
    wanted, got = _parameters(like), _parameters(upstream)
    if wanted != got:
        raise PatchError(f"{_changed(upstream.__name__)}.forward({wanted}) wanted, got ({got})")


def like(forward: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """For a `forward` around upstream's: it takes the same parameters, which others look at."""
    return functools.wraps(forward)


def check_attributes(module: nn.Module, names: Iterable[str]) -> None:
    """Raise PatchError unless the module has all these attributes."""
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise PatchError(f"{_changed(type(module).__name__)} with attributes {missing} wanted, got none such")


def _changed(name: str) -> str:
    from transformers import __version__

    return f"transformers {__version__} (tested: {TESTED}): {name}"


def _parameters(kind: type[nn.Module]) -> str:
    return ", ".join(list(inspect.signature(kind.forward).parameters)[1:])
