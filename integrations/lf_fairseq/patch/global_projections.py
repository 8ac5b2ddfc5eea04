"""Giving a patched model projections of its own for global tokens."""

from __future__ import annotations

import copy

from torch import nn

from lf_backend.errors import PatchError
from lf_fairseq.attention.projections import LOCAL, has_own, own


def add_global_projections(model: nn.Module) -> None:
    """Give all patched self-attention of a model projections of global tokens; they stay when it is undone.

    Raises:
        PatchError: nothing is patched, or the projections are there already.
    """
    from lf_fairseq.attention.self_attention import SparseMultiheadAttention  # loads fairseq

    found = [module for module in model.modules() if isinstance(module, SparseMultiheadAttention)]
    if not found or any(has_own(attention) for attention in found):
        raise PatchError(
            "model: patched self-attention without global projections wanted, got "
            + ("some that has them" if found else f"{type(model).__name__} without any")
        )
    for attention in found:
        for name in LOCAL:
            attention.add_module(own(name), copy.deepcopy(attention.get_submodule(name)))
