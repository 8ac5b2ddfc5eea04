"""Generation in bounded memory: a cache of a pattern's global tokens and of what its windows still reach.

    cache = lf_huggingface.WindowCache(model.config)
    model.generate(ids, past_key_values=cache, max_new_tokens=100_000)

With `config.lf_attention = "window(1023, 0) | global(0, 1, 2, 3)"` that is attention with sinks (Xiao et al.
2023, arXiv 2309.17453, with positions as in the text): four tokens and the last 1,024, however long it runs.
The answer is exactly that of a cache of everything under the same pattern.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

from lf_backend.errors import PatternError, UnsupportedError
from lf_backend.pattern.terms import Pattern
from lf_huggingface.cache.room import Room
from lf_huggingface.cache.static import StaticWindowLayer
from lf_huggingface.interface import config_patterns
from lf_huggingface.interface.attention import attention
from lf_huggingface.interface.cached_keys import Kept


class WindowLayer(DynamicLayer):
    """Keys and values of one layer, [B, Hkv, S, D]: global tokens in order, then the window.

    Args:
        reach: how many positions before a query it may see.
        sinks: positions of global tokens, which are kept for ever.
    """

    is_sliding = True
    keys: Tensor
    values: Tensor

    def __init__(self, reach: int, sinks: tuple[int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reach, self.sinks = reach, sinks
        self.cumulative_length = 0  # tokens seen
        self.held = 0  # leading slots that are copies of global tokens
        self.records = False
        self._room: Room | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take new keys in; returns the global tokens, the window before the new keys, and these.

        What is returned is good until the next update, which may write to the same memory.

        Raises:
            UnsupportedError: a new token is global, and what it must see is gone.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, new = self.cumulative_length, key_states.shape[2]
        late = [at for at in self.sinks if past <= at < past + new]
        if late and past > self.reach:
            raise UnsupportedError(
                f"lf_attention: global positions among the first {self.reach + 1}, or in the first forward, "
                f"wanted for a WindowCache, got {late[0]}: it sees all before it, and that is dropped"
            )
        if self.records:
            self._set(past + new, ([self.keys, key_states], [self.values, value_states]), self.held)
            return self._laid(past, min(past, self.reach) + new)
        if new == 1 and self._slides(key_states, value_states):
            return self._slide(key_states, value_states)
        kept = self._parts(past, min(past, self.reach))
        both = zip(kept, (key_states, value_states), strict=True)
        self._set(past + new, [[*parts, last] for parts, last in both], self._sinks(past))
        seen = self.keys, self.values
        if new > 1:
            self._trim()
        return seen

    def _slides(self, *new: Tensor) -> bool:
        """Tell whether a token takes the place of another one, and nobody wants to know what was there."""
        full = self.keys.shape[2] == len(self.sinks) + self.reach + 1 and self.held == len(self.sinks)
        watched = any(x.requires_grad for x in (self.keys, self.values, *new))
        return full and not watched and not torch.compiler.is_compiling()

    def _slide(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        if self._room is None or not self._room.holds(self.keys):
            self._room = Room((self.keys, self.values), self.held)
        self.keys, self.values = self._room.append((key_states, value_states))
        self.cumulative_length += 1
        return self.keys, self.values

    def _set(self, length: int, parts: Iterable[list[Tensor]], held: int) -> None:
        """Keys and values from their parts, of which the first `held` slots are global tokens."""
        self.keys, self.values = (torch.cat(some, dim=2) for some in parts)
        self.cumulative_length, self.held = length, held

    def _sinks(self, length: int) -> int:
        return sum(at < length for at in self.sinks)

    def _parts(self, length: int, window: int) -> list[list[Tensor]]:
        """Keep, of keys and of values, the global tokens among the first `length`, then the last `window`."""
        slots = self.keys.shape[2]
        first = self.cumulative_length - (slots - self.held)  # position of the window's first slot
        wanted = self.sinks[: self._sinks(length)]
        front = [self.held + at - first if at >= first else self.sinks.index(at) for at in wanted]
        return [[x[:, :, front], x[:, :, slots - window :]] for x in (self.keys, self.values)]

    def _laid(self, length: int, window: int) -> tuple[Tensor, Tensor]:
        keys, values = (torch.cat(parts, dim=2) for parts in self._parts(length, window))
        return keys, values

    def _trim(self) -> None:
        """Drop what the last query does not see, and so no later one."""
        length = self.cumulative_length
        self._set(length, self._parts(length, min(length, self.reach + 1)), self._sinks(length))

    def get_mask_sizes(self, query_length: int) -> tuple[int, Any]:
        """Number of keys that an update with so many queries returns, and what they are."""
        past = self.cumulative_length
        window = min(past, self.reach)
        sinks = self.sinks[: self._sinks(past)]
        return len(sinks) + window + query_length, Kept(past - window, sinks)

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def activate_past_recording(self) -> None:
        """Drop nothing until `crop`: candidates of assisted decoding may be taken back."""
        self.records = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, their number being negative as upstream has it.

        Raises:
            UnsupportedError: what the window would then reach is dropped already.
        """
        length = self.cumulative_length - abs(tokens_to_remove)
        kept = self.keys.shape[2] - self.held - abs(tokens_to_remove) if self.is_initialized else length
        if length < 0:
            seen = self.cumulative_length
            raise UnsupportedError(
                f"crop: at most the {seen} tokens that were seen wanted, got {abs(tokens_to_remove)}"
            )
        if tokens_to_remove > 0 or kept < min(length, self.reach):
            raise UnsupportedError(
                f"crop: a negative number of tokens, no more than are kept beyond the window, wanted, got "
                f"{tokens_to_remove}; activate_past_recording() keeps more"
            )
        if self.is_initialized:
            slots = self.keys.shape[2] + tokens_to_remove
            self.keys, self.values = self.keys[:, :, :slots], self.values[:, :, :slots]
            self.cumulative_length = length
            self._trim()

    def reset(self) -> None:
        super().reset()
        self.cumulative_length = self.held = 0
        self._room = None


class WindowCache(Cache):
    """A cache that keeps, in each layer, the global tokens and the reach of its windows, and nothing else.

    For `past_key_values` of a model or of `generate()`, in any mode: greedy, sampling, beams, assisted.

    Args:
        config: the model's, with `lf_attention`.
        static: tensors of one place and size, for a compiled step; without assisted decoding.

    Raises:
        PatternError: no `lf_attention`, or one with a window that has no bound.
        UnsupportedError: the model does not attend through this library, whose masks alone know this
            cache; or a static cache of global tokens beyond the window.
    """

    def __init__(self, config: Any, *, static: bool = False) -> None:
        config = config.get_text_config(decoder=True)
        name = config._attn_implementation
        if AttentionInterface._global_mapping.get(name) is not attention:
            raise UnsupportedError(
                f"config: a model with attn_implementation='lf' wanted, got {name!r}, which would take the "
                "keys of this cache for others"
            )
        patterns = config_patterns.layers(config)
        if not patterns:
            raise PatternError(
                "config: lf_attention wanted, got none; for a model's own window use "
                "transformers.DynamicCache(config=config)"
            )
        if len(patterns) == 1:
            patterns *= config.num_hidden_layers
        sinks = tuple(sorted({at for pattern in patterns for at in pattern.global_positions}))
        kind: Any = StaticWindowLayer if static else WindowLayer
        layers = [kind(_reach(pattern), sinks) for pattern in patterns]
        super().__init__(layers=list(layers))
        self._widest = max(layers, key=lambda layer: layer.reach)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, Any]:
        """Sizes for the layer with the widest window; the others take the mask's end (`Mask.of_layer`)."""
        sizes: tuple[int, Any] = self._widest.get_mask_sizes(query_length)
        return sizes


def _reach(pattern: Pattern) -> int:
    reach = pattern.lowered.reach
    if reach is None:
        raise PatternError(f"lf_attention: windows with a bound wanted for a WindowCache, got {pattern}")
    return reach
