"""fairseq's seams, compared when a model is patched: a changed one is an error, not a surprise.

What a replaced `forward` is called with, and how a layer calls its attention, differs between versions and
forks of fairseq, which share version numbers. So signatures are compared, not versions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from lf_backend.errors import PatchError

TESTED = "0.12.3.1 (the distribution fairseq-fixed)"


def check_call(upstream: Callable[..., Any], wanted: Iterable[str], name: str) -> None:
    """Raise PatchError unless upstream's function takes these parameters, in this order, after self."""
    names, got = list(wanted), list(inspect.signature(upstream).parameters)[1:]
    if names != got:
        raise PatchError(f"{_changed(name)}({', '.join(names)}) wanted, got ({', '.join(got)})")


def check_takes(upstream: Callable[..., Any], wanted: Iterable[str], name: str) -> None:
    """Raise PatchError unless upstream's function takes these parameters among others."""
    missing = [key for key in wanted if key not in inspect.signature(upstream).parameters]
    if missing:
        raise PatchError(f"{_changed(name)} with parameters {missing} wanted, got none such")


def check_attributes(module: nn.Module, names: Iterable[str]) -> None:
    """Raise PatchError unless the module has all these attributes."""
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise PatchError(f"{_changed(type(module).__name__)} with attributes {missing} wanted, got none such")


def _changed(name: str) -> str:
    from fairseq import __version__

    return f"fairseq {__version__} (tested: {TESTED}): {name}"
