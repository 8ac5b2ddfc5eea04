"""Tokens that are global wherever they are, by their ids: what `--global-tokens` sets."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lf_backend._integers import integer
from lf_backend.errors import PatchError
from lf_backend.patching import PatchMark


def set_global_tokens(model: nn.Module, tokens: Iterable[int]) -> None:
    """Make tokens global wherever they are, in all patched encoders and decoders of a model.

    Args:
        model: patched with `lf.patch`; undoing the patch takes this back as well.
        tokens: ids of the model's dictionary, such as `[dictionary.index("<s>")]`; none ends it.

    Raises:
        PatchError: no patched encoder or decoder in the model.
        PatternError: an id that is no int >= 0.
    """
    from lf_fairseq.patch.stacks import STACKS, TokensPatchMark  # loads fairseq

    ids = tuple(sorted({integer("tokens", token, 0) for token in tokens}))
    found = [module for module in model.modules() if type(module) in STACKS.values()]
    if not found:
        raise PatchError(
            f"model: a patched encoder or decoder wanted, got {type(model).__name__} without one"
        )
    for module in found:
        mark: PatchMark = vars(module)["lf_mark"]
        values = {name: getattr(mark, name) for name in PatchMark.__dataclass_fields__}
        vars(module)["lf_mark"] = TokensPatchMark(**values, tokens=ids)
