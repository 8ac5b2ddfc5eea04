"""Models that come patched from `from_pretrained`, `from_config` or their constructor, whoever calls it.

    with lf_huggingface.auto_patch():
        pipe = pipeline("fill-mask", model=DIR)

Every model of transformers calls `post_init` at the end of its constructor, before weights are loaded; that
is where it is patched. (transformers' own `register_patch_mapping` puts other classes into its modules while
a model is built. It misses the class that `from_pretrained` is called on, which reads the masks of a
Longformer, leaves classes exchanged after an exception, and searches names by regular expression.)
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import lf_backend as lf
from lf_backend.errors import PatchError
from lf_backend.pattern.terms import Pattern
from lf_huggingface.patch.adapter import is_known


class AutoPatch:
    """The handle of `auto_patch`: `undo()` ends it, and so does leaving its `with` block."""

    def __init__(self, pattern: Pattern | str | Sequence[Pattern | str] | None, backend: str | None) -> None:
        from transformers import PreTrainedModel

        self._home: Any = PreTrainedModel
        self._stock: Any = PreTrainedModel.post_init
        if hasattr(self._stock, "lf_auto_patch"):
            raise PatchError("auto_patch: one at a time wanted, another is on; undo() it first")

        def post_init(model: Any) -> None:
            self._stock(model)
            if is_known(model) and not any("lf_mark" in vars(module) for module in model.modules()):
                lf.patch(model, pattern, backend=backend)

        post_init.lf_auto_patch = self  # type: ignore[attr-defined]
        self._ours = post_init
        self._home.post_init = post_init  # type: ignore[method-assign]

    def undo(self) -> None:
        """Models made from now on are stock again; those made before stay patched, `lf.Patch.of` has them.

        Raises:
            PatchError: undone already, or another tool has changed `post_init` since.
        """
        if self._home.post_init is not self._ours:
            raise PatchError(f"undo: the patch of post_init wanted, got {self._home.post_init!r}")
        self._home.post_init = self._stock

    def __enter__(self) -> AutoPatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._home.post_init is self._ours:
            self.undo()


def auto_patch(
    pattern: Pattern | str | Sequence[Pattern | str] | None = None, *, backend: str | None = None
) -> AutoPatch:
    """Patch each model that attends in code of its own, and that `lf.patch` knows, when it is made.

    Others are left alone. It ends with `undo()`.

    Args:
        pattern, backend: as in `lf.patch`; by default what each model's own configuration says.

    Raises:
        PatchError: it is on already.
        PatternError, PatchError: later, from the constructor of a model that the pattern does not fit.
    """
    return AutoPatch(pattern, backend)
