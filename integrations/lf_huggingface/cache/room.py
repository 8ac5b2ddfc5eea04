"""Memory with room behind a window, so that a token is appended without a copy of all others."""

from __future__ import annotations

import torch
from torch import Tensor

SHARE = 8  # one slot is free for so many that are taken: the copy of all comes as seldom


class Room:
    """Keys and values [B, H, S, D] in memory that is longer: they move on by a slot with each token.

    Args:
        seen: keys and values, which are copied. None of them may need a gradient: slots are written again.
        held: how many leading slots stay the first ones, whatever is dropped behind them.
    """

    def __init__(self, seen: tuple[Tensor, Tensor], held: int) -> None:
        slots = seen[0].shape[2]
        self._low, self._slots, self._held = 0, slots, held
        self._memory = [_longer(x, max(slots // SHARE, 1)) for x in seen]
        self._front = [x[:, :, :held].clone() for x in seen]
        self.seen = seen

    def holds(self, keys: Tensor) -> bool:
        """Tell whether these keys are what was seen last here, which may still be written behind."""
        outside = self._memory[0].is_inference() and not torch.is_inference_mode_enabled()
        return keys is self.seen[0] and not outside and self._low + self._slots < self._memory[0].shape[2]

    def append(self, new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Put a token behind the others in place of the first that is not held; returns all, as views."""
        self._low += 1
        high = self._low + self._slots
        for memory, front, x in zip(self._memory, self._front, new, strict=True):
            memory[:, :, high - 1 : high] = x
            memory[:, :, self._low : self._low + self._held] = front
        keys, values = (memory[:, :, self._low : high] for memory in self._memory)
        self.seen = keys, values
        return self.seen


def _longer(x: Tensor, free: int) -> Tensor:
    memory = x.new_empty(*x.shape[:2], x.shape[2] + free, x.shape[3])
    memory[:, :, : x.shape[2]] = x
    return memory
