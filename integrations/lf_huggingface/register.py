"""`attn_implementation="lf"`: the attention function and the mask function under one name, or none of both.

With the first alone transformers builds no mask at all, and says nothing: padding, packing and the room of
a static cache would be lost.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from lf_backend.errors import LFError

NAME = "lf"
# transformers looks for these in a name, and means something else by it.
_MISREAD = ("flash", "sdpa", "flex_attention", "/", "|", "eager")
_HOME = "transformers.modeling_utils"


def register(name: str = NAME, *, strict: bool = False) -> None:
    """Make `attn_implementation=name` known to transformers; again is no harm.

    Args:
        name: what users write.
        strict: a mask function that is not known is an error, instead of running densely with a warning.

    Raises:
        LFError: a name that transformers misreads, or that is somebody else's.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    from lf_huggingface.masks import mask
    from lf_huggingface.routed import attention

    if not name or any(word in name for word in _MISREAD):
        raise LFError(f"name: one without any of {list(_MISREAD)} wanted, got {name!r}")
    taken = AttentionInterface._global_mapping.get(name)
    if taken not in (None, attention):
        raise LFError(f"name: a free one wanted, {name!r} is {taken!r}")
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, partial(mask, strict=strict))


def unregister(name: str = NAME) -> None:
    """Take the name back. Models that use it refuse to run until they are given another.

    Raises:
        LFError: the name is not registered, or somebody else's.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    from lf_huggingface.routed import attention

    if AttentionInterface._global_mapping.get(name) is not attention:
        raise LFError(f"name: one that lf_huggingface has registered wanted, got {name!r}")
    del AttentionInterface._global_mapping[name]
    del AttentionMaskInterface._global_mapping[name]


def when_imported() -> None:
    """Register now if transformers' models are loaded, else as soon as they are.

    So `import lf_huggingface` costs nothing where no model of transformers is used.
    """
    if _HOME in sys.modules:
        register()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting(MetaPathFinder):
    """Waits for one module to be imported, and is gone."""

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
                except ImportError as error:  # a transformers that is too old must not fail to import
                    warnings.warn(f"'lf' is not registered with transformers: {error}", stacklevel=2)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
