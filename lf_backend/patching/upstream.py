"""Another package's private seams, compared when a model is patched: a changed one is an error, no surprise.

What a replaced function is called with, and which attributes it finds, is nobody's promise. So signatures
are compared and not versions, which forks share and which say nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from lf_backend.errors import PatchError


@dataclass(frozen=True)
class Upstream:
    """A package that an integration patches.

    Attributes:
        name: its import name.
        tested: the versions that the integration is tested with, for errors.
    """

    name: str
    tested: str

    def check_call(self, function: Callable[..., Any], like: Callable[..., Any], what: str) -> None:
        """Raise PatchError unless the package's method takes the parameters of ours, in their order."""
        wanted, got = (", ".join(list(inspect.signature(each).parameters)[1:]) for each in (like, function))
        if wanted != got:
            raise PatchError(f"{self._changed(what)}({wanted}) wanted, got ({got})")

    def check_takes(self, function: Callable[..., Any], wanted: Iterable[str], what: str) -> None:
        """Raise PatchError unless the package's method takes these parameters among others."""
        missing = [name for name in wanted if name not in inspect.signature(function).parameters]
        if missing:
            raise PatchError(f"{self._changed(what)} with parameters {missing} wanted, got none such")

    def check_attributes(self, module: nn.Module, names: Iterable[str]) -> None:
        """Raise PatchError unless the module has all these attributes."""
        missing = [name for name in names if not hasattr(module, name)]
        if missing:
            what = self._changed(type(module).__name__)
            raise PatchError(f"{what} with attributes {missing} wanted, got none such")

    def _changed(self, what: str) -> str:
        version = import_module(self.name).__version__
        return f"{self.name} {version} (tested: {self.tested}): {what}"
