"""The masks of one forward pass, padding and global tokens, read once for all layers.

Upstream merges `attention_mask` (0 = padding, 1 = token) and `global_attention_mask` (1 = global) into
one code, attention_mask * (global_attention_mask + 1), so that a padded global token is padding and a
caller may also write 2 for "global" into `attention_mask` itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend._callers import may_look
from lf_backend.ops.global_tokens import positions_of


class TokenMasks(NamedTuple):
    """The masks as a model has read them, which it hands to its layers as their `attention_mask`.

    Attributes:
        padded: bool [B, N], True = padding, or None if no token is.
        global_mask: bool [B, N], True = global, or None if no token is, or if `positions` says which are.
        positions: int64 [B, G], of the global tokens, -1 = none; None if there is no global token, or where
            Python may not look how many there are.
        documents: int32 [1, N], where the tokens of several examples are packed into one row; else None.
        ends: of every example the first token that is no padding, and the end of the last; None where Python
            may not look.
        real: how many tokens of the batch are no padding, with `ends`.
    """

    padded: Tensor | None
    global_mask: Tensor | None
    positions: Tensor | None = None
    documents: Tensor | None = None
    ends: tuple[tuple[int, int], ...] | None = None
    real: int = 0

    @property
    def has_globals(self) -> bool:
        """Whether any token may be global."""
        return self.global_mask is not None or self.positions is not None

    @classmethod
    def read(
        cls, attention_mask: Tensor | None, global_attention_mask: Tensor | None, *, most: int | None
    ) -> TokenMasks:
        """The masks of a model call, at which Python looks once, for all layers and their backward.

        Masks that mark no token become None, and with them the work of every layer on them. A compiled graph
        must not depend on data: there a mask that was given counts as one that marks.

        Args:
            attention_mask, global_attention_mask: [B, N], any dtype, or None.
            most: the largest code that is global, None for no limit. (Longformer reads code 2 alone as
                global, LED any code above 1; they differ for a token marked in both masks.)
        """
        code = attention_mask
        if global_attention_mask is not None:
            code = global_attention_mask + 1
            code = code if attention_mask is None else attention_mask * code
        if code is None:
            return NOTHING_SAID
        # Without an attention_mask too: -1 in the other one comes out as padding upstream. A bool has no -1.
        given = attention_mask if attention_mask is not None else global_attention_mask
        alone = attention_mask is None and given is not None and given.dtype == torch.bool
        padded = None if alone else code <= 0
        if code.dtype == torch.bool:
            is_global = torch.zeros_like(code)
        else:
            is_global = code > 1 if most is None else (code > 1) & (code <= most)
        if not may_look(code) or not code.numel():
            return cls(padded, None if code.dtype == torch.bool else is_global)
        return _looked_at(padded, is_global)


NOTHING_SAID = TokenMasks(None, None)


def _looked_at(padded: Tensor | None, is_global: Tensor) -> TokenMasks:
    """The masks, after the one look at them."""
    batch, length = is_global.shape
    real = torch.ones_like(is_global) if padded is None else ~padded
    at = torch.arange(length, device=real.device)
    first = torch.where(real, at, length).amin(1)
    end = torch.where(real, at + 1, 0).amax(1)
    found = torch.stack((is_global.sum(1), real.sum(1), first, end)).tolist()
    count, reals, firsts, lasts = max(found[0]), sum(found[1]), found[2], found[3]
    ends = tuple((min(low, high), high) for low, high in zip(firsts, lasts, strict=True))
    padded = padded if reals < batch * length else None
    return TokenMasks(padded, None, positions_of(is_global, count) if count else None, None, ends, reals)
