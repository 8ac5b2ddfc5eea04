"""The architectures, made known to fairseq when it is imported, before this package or after.

As a `--user-dir` this package is imported by its folder's name. A copy under another name would be a second
package with the same architectures, of which fairseq keeps the first without a word, so it is refused.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from lf_backend.errors import LFError

PACKAGE = "lf_fairseq"
_HOME = "fairseq"


def check_name(name: str, path: str) -> None:
    """Raise LFError unless the package is imported by its own name."""
    if name != PACKAGE:
        raise LFError(
            f"--user-dir: the folder {PACKAGE} by its own name wanted, got {path} as {name}; its models "
            "are registered once, from one folder"
        )


def register() -> None:
    """Make the architectures known to fairseq; again is no harm.

    Raises:
        FairseqError: no fairseq that can be used.
    """
    from lf_fairseq import require

    require.fairseq()
    import lf_fairseq.architectures  # noqa: F401


def when_imported() -> None:
    """Register now if fairseq is loaded, else as soon as it is."""
    if _HOME in sys.modules:
        register()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    """Waits for fairseq to be imported, and is gone."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _HOME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load: Any = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                try:
                    register()
                except ImportError as error:  # a fairseq that is too old must not fail to import
                    warnings.warn(f"{PACKAGE} is not registered with fairseq: {error}", stacklevel=2)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
