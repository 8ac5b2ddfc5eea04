"""Padding and global tokens in one mask of keys.

A layer of fairseq hands its attention one mask of keys and nothing else. So that mask carries both: bool
[B, T] where there is only padding, as in fairseq, or uint8 [B, T] of the bits below. Being an argument like
any other, it goes through activation checkpoints, which call a layer again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lf_backend.errors import ShapeError

PADDED, GLOBAL = 1, 2


def encode(padded: Tensor | None, marked: Tensor | None) -> Tensor | None:
    """One mask [B, T] of padding and of global tokens, both bool [B, T] or None."""
    if marked is None:
        return padded
    code = marked.to(torch.uint8) * GLOBAL
    return code if padded is None else code | padded.to(torch.uint8) * PADDED


def padded(mask: Tensor) -> Tensor:
    """Bool [B, T], True where a mask says padding; fairseq's own masks are bool, or 1 for padding."""
    return mask if mask.dtype == torch.bool else (mask.to(torch.uint8) & PADDED) != 0


def marked(mask: Tensor) -> Tensor | None:
    """Bool [B, T], True for global tokens, or None if the mask has no room for them."""
    return (mask & GLOBAL) != 0 if mask.dtype == torch.uint8 else None


def of_tokens(tokens: Tensor, padding: int, wanted: tuple[int, ...], global_mask: Any) -> Tensor | None:
    """The mask of a batch with global tokens, or None if nothing can be global in it.

    Args:
        tokens: [B, T], of a dictionary.
        padding: the dictionary's padding.
        wanted: ids of tokens that are global wherever they are.
        global_mask: bool [B, T], True = global, or None.

    Raises:
        ShapeError: a `global_mask` that does not fit the tokens.
    """
    found = None
    if wanted:
        found = (tokens[..., None] == torch.tensor(wanted, device=tokens.device)).any(-1)
    if global_mask is not None:
        _check(global_mask, tokens)
        found = global_mask if found is None else found | global_mask
    return None if found is None else encode(tokens == padding, found)


def _check(global_mask: Any, tokens: Tensor) -> None:
    if not isinstance(global_mask, Tensor) or global_mask.dtype != torch.bool:
        got = global_mask.dtype if isinstance(global_mask, Tensor) else type(global_mask).__name__
        raise ShapeError(f"global_mask: dtype torch.bool (True = global) wanted, got {got}")
    if global_mask.shape != tokens.shape:
        raise ShapeError(
            f"global_mask: shape [batch, length] = {list(tokens.shape)} wanted, got {list(global_mask.shape)}"
        )
