"""Waiting for another package to be imported, so that an integration can register itself with it."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def when_imported(module: str, then: Callable[[], None]) -> None:
    """Call a function once the module is imported: now, if it is loaded, else right after its import.

    So an integration can register itself with a package without importing it. An ImportError of the function
    becomes a warning: a package that is too old must not fail to import.
    """
    if module in sys.modules:
        then()
    elif _Waiting(module, then) not in sys.meta_path:
        sys.meta_path.insert(0, _Waiting(module, then))


class _Waiting(MetaPathFinder):
    """Waits for one module to be imported, and is gone."""

    def __init__(self, module: str, then: Callable[[], None]) -> None:
        self.module, self.then = module, then

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Waiting) and (self.module, self.then) == (other.module, other.then)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load: Any = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                try:
                    self.then()
                except ImportError as error:
                    ours, theirs = (x.partition(".")[0] for x in (self.then.__module__, name))
                    warnings.warn(f"{ours} is not registered with {theirs}: {error}", stacklevel=2)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
