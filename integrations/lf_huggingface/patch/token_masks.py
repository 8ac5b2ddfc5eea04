"""Which tokens are padding and which are global: the masks of one forward pass, read once for all layers.

Upstream merges `attention_mask` (0 = padding, 1 = token) and `global_attention_mask` (1 = global) into
one code, attention_mask * (global_attention_mask + 1), so that a padded global token is padding and a
caller may also write 2 for "global" into `attention_mask` itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend._callers import may_look


class Tokens(NamedTuple):
    """Attributes:
    padded: bool [B, N], True = padding, or None if no token is.
    global_mask: bool [B, N], True = global, or None if no token is.
    """

    padded: Tensor | None
    global_mask: Tensor | None

    @classmethod
    def read(
        cls, attention_mask: Tensor | None, global_attention_mask: Tensor | None, *, most: int | None,
        exact: bool,
    ) -> Tokens:  # fmt: skip
        """The masks of a model call.

        Where looking costs nothing, on a CPU, masks that mark no token become None, and with them the
        work of every layer on global tokens. A compiled graph must not depend on data, and another
        device would have to be waited for: there a mask that was given counts as one that marks.

        Args:
            attention_mask, global_attention_mask: [B, N], any dtype, or None.
            most: the largest code that is global, None for no limit. (Longformer reads code 2 alone as
                global, LED any code above 1; they differ for a token marked in both masks.)
            exact: the caller needs to know whether there are globals, at the price of waiting.
        """
        code = attention_mask
        if global_attention_mask is not None:
            code = global_attention_mask + 1
            code = code if attention_mask is None else attention_mask * code
        if code is None:
            return cls(None, None)
        # Without an attention_mask too: -1 in the other one comes out as padding upstream. A bool has no -1.
        given = attention_mask if attention_mask is not None else global_attention_mask
        alone = attention_mask is None and given is not None and given.dtype == torch.bool
        padded = None if alone else code <= 0
        if code.dtype == torch.bool:
            return cls(_marking(padded, look=False), None)
        is_global = code > 1 if most is None else (code > 1) & (code <= most)
        # Codes of an attention mask alone seldom mark globals, so looking once saves more than it costs.
        look = exact or global_attention_mask is None
        return cls(_marking(padded, look=False), _marking(is_global, look=look))


NOTHING_SAID = Tokens(None, None)


def is_free_to_read(x: Tensor) -> bool:
    """Whether Python may depend on the data of x at no cost: on a CPU, and not where calls are recorded."""
    return x.device.type == "cpu" and may_look(x)


def _marking(mask: Tensor | None, look: bool) -> Tensor | None:
    """The mask, or None if it marks nothing, as far as that may be looked at."""
    if mask is None or not may_look(mask) or not (look or is_free_to_read(mask)):
        return mask
    return mask if bool(mask.any()) else None
