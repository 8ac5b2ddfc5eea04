"""A layer of `WindowCache` whose tensors never change their place or size, for a compiled step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from lf_backend.errors import UnsupportedError
from lf_huggingface.interface.cached_keys import Rolled


class StaticWindowLayer(CacheLayerMixin):
    """Keys and values [B, Hkv, S, D]: room for the global tokens, then the last `reach` positions.

    Until the window is full its first slots are empty, and hidden by the mask. The number of tokens seen is a
    tensor, so that a compiled step is the same for every token.

    Args:
        reach: how many positions before a query it may see.
        sinks: positions of global tokens, all among the first `reach + 1`.
    """

    is_compileable = True
    is_sliding = True
    keys: Tensor
    values: Tensor
    cumulative_length: Any  # a tensor, where upstream's class says int

    def __init__(self, reach: int, sinks: tuple[int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if sinks and sinks[-1] > reach:
            raise UnsupportedError(
                f"lf_attention: global positions among the first {reach + 1} wanted for a static "
                f"WindowCache, got {sinks[-1]}: it sees all before it, and that is dropped"
            )
        self.reach, self.sinks = reach, sinks
        self.cumulative_length = torch.tensor(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        slots = len(self.sinks) + self.reach
        self.keys, self.values = (
            x.new_zeros(*x.shape[:2], slots, x.shape[3]) for x in (key_states, value_states)
        )
        self.cumulative_length = self.cumulative_length.to(self.device)
        self._at = torch.tensor(self.sinks, dtype=torch.int64, device=self.device)
        if not torch.compiler.is_compiling():
            for x in (self.keys, self.values, self.cumulative_length):
                torch._dynamo.mark_static_address(x)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take new keys in; returns the global tokens, the window before the new keys, and these."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = self._taken(self.keys, key_states), self._taken(self.values, value_states)
        self.cumulative_length.add_(key_states.shape[2])
        return seen

    def _taken(self, kept: Tensor, new: Tensor) -> Tensor:
        """Return the part of `kept` and `new` that queries see; `kept` then holds the part for later ones."""
        count, length = len(self.sinks), new.shape[2]
        seen = torch.cat([kept, new], dim=2)
        if count:
            at = self._at - self.cumulative_length
            here = ((at >= 0) & (at < length))[:, None]
            kept[:, :, :count] = torch.where(here, new[:, :, at.clamp(0, length - 1)], seen[:, :, :count])
        kept[:, :, count:] = seen[:, :, count + length :]
        return seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, Any]:
        """Number of keys that an update with so many queries returns, and what they are."""
        length = len(self.sinks) + self.reach + query_length
        return length, Rolled(self.get_seq_length() - self.reach, self.sinks)

    def get_seq_length(self) -> Any:
        """Tokens seen: a tensor, 0 before the first."""
        return self.cumulative_length if self.is_initialized else 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Unsupported: static caches cannot be cropped.

        Raises:
            UnsupportedError: always; what the window would then reach is dropped already.
        """
        raise UnsupportedError(
            f"crop: a dynamic WindowCache wanted to take {tokens_to_remove} tokens back (assisted decoding), "
            "got a static one"
        )

    def reset(self) -> None:
        super().reset()
        self.cumulative_length.zero_()
