"""Keys and values of the steps before, for incremental decoding: global tokens and the reach of the windows.

fairseq's own buffer keeps every step. This one keeps, in the order of positions,

    kept: global tokens that the windows have left behind | window: the last `reach` positions

and the answer is the same, step by step. Nothing is dropped before the last global position that a pattern
names, because that token sees all before it; nor ever under a pattern that is more than global tokens and
windows with a bound. A token that is global by its id may come at any time; if it comes after something was
dropped, that is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from lf_backend.errors import UnsupportedError
from lf_backend.pattern.bands import Band
from lf_backend.pattern.global_positions import check_movable, unplaced, within
from lf_backend.pattern.terms import Causal, Global, Pattern, Window, union
from lf_fairseq.attention import global_positions, mask_bits
from lf_fairseq.attention.keys import OrderedKeys

_PAST = Causal()


@dataclass(frozen=True, eq=False)
class Buffer:
    """The keys and values that one layer keeps.

    Attributes:
        keys, values: [B, H, S, D].
        mask: uint8 [B, S], bits of `marks`, all global tokens among them; None as long as there was neither
            padding nor a token that is global by its id. A kept slot that is not global in an example is
            padding there.
        tokens: [B], how many positions were no padding; None as long as `mask` is.
        kept: positions of the leading slots, which the windows have left behind.
        length: number of positions seen.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None
    tokens: Tensor | None = None
    kept: tuple[int, ...] = ()
    length: int = 0

    @classmethod
    def empty(cls, k: Tensor, v: Tensor) -> Buffer:
        """A buffer of no positions, for keys like these."""
        return cls(k[:, :, :0], v[:, :, :0])

    @property
    def first(self) -> int:
        """Position of the window's first slot."""
        return self.length - (self.keys.shape[2] - len(self.kept))

    @property
    def is_whole(self) -> bool:
        """Whether nothing was dropped yet."""
        return self.keys.shape[2] == self.length

    def reordered(self, order: Tensor) -> Buffer:
        """The examples in another order, any number of times each."""
        names = ("keys", "values", "mask", "tokens")
        return replace(
            self,
            **{name: x.index_select(0, order) for name in names if (x := getattr(self, name)) is not None},
        )

    def extended(self, k: Tensor, v: Tensor, mask: Tensor | None, pattern: Pattern) -> Buffer:
        """With new keys [B, H, T, D] and their mask [B, T].

        Raises:
            UnsupportedError: a new token is global, and what it must see is dropped.
        """
        found = replace(
            self,
            keys=torch.cat([self.keys, k], dim=2),
            values=torch.cat([self.values, v], dim=2),
            length=self.length + k.shape[2],
        )
        if mask is None and self.mask is None:
            return found
        check_movable(pattern)
        before, tokens = self._mask(pattern)
        if mask is None:
            mask = torch.zeros(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
        padded, marked = mask_bits.padded(mask), mask_bits.marked(mask)
        placed = global_positions.at_ranks(pattern.global_positions, padded, tokens)
        code = mask_bits.encode(padded, placed if marked is None else marked | placed)
        assert code is not None, "there are marks"
        if not self.is_whole and bool((code & mask_bits.GLOBAL).any()):
            raise UnsupportedError(
                f"incremental_state: no global token after {self.length} positions wanted, got one: it sees "
                "all before it, and some of that is dropped"
            )
        return replace(found, mask=torch.cat([before, code], dim=1), tokens=tokens + (~padded).sum(1))

    def laid(self, queries: int, pattern: Pattern) -> OrderedKeys:
        """The keys as the last `queries` positions see them."""
        padded = None if self.mask is None else mask_bits.padded(self.mask)
        marked = None if self.mask is None else mask_bits.marked(self.mask)
        if self.is_whole:
            seen = within(pattern, self.length) if marked is None else unplaced(pattern)
            return OrderedKeys(self.keys, self.values, seen, padded, marked)
        if queries == 1 and {step for band in pattern.lowered.bands for step in band.dilations} == {1}:
            return OrderedKeys(self.keys, self.values, _PAST, padded)  # all that is here, one query sees
        if marked is None and pattern.global_positions:
            found = [place in pattern.global_positions for place in self._places()]
            marked = torch.tensor(found, device=self.keys.device).expand(self.keys.shape[0], -1)
        return OrderedKeys(self.keys, self.values, windows(pattern), padded, marked)

    def trimmed(self, pattern: Pattern) -> Buffer:
        """Without what no later position sees."""
        reach, slots, kept = pattern.lowered.reach, self.keys.shape[2], len(self.kept)
        if reach is None or self._awaits(pattern):
            return self
        stop = slots - reach  # of the slots that may go
        if stop <= kept:
            return self
        stay = self._globals(pattern, kept, stop)
        at = torch.tensor([*range(kept), *stay], dtype=torch.int64, device=self.keys.device)

        def without(x: Tensor, dim: int) -> Tensor:
            rest = x.narrow(dim, stop, slots - stop)
            return torch.cat([x.index_select(dim, at), rest], dim) if len(at) else rest

        mask = self.mask
        if mask is not None:
            mask = without(mask, 1)
            front = mask[:, : len(at)]
            hidden = torch.where((front & mask_bits.GLOBAL) != 0, front, front | mask_bits.PADDED)
            mask = torch.cat([hidden, mask[:, len(at) :]], dim=1)
        left = (*self.kept, *(self.first + slot - kept for slot in stay))
        return replace(self, keys=without(self.keys, 2), values=without(self.values, 2), mask=mask, kept=left)

    def spread(self, weights: Tensor) -> Tensor:
        """Weights [..., S] of the slots as weights [..., length] of all positions."""
        if self.is_whole:
            return weights
        at = torch.tensor(self._places(), device=weights.device)
        return weights.new_zeros(*weights.shape[:-1], self.length).index_copy(-1, at, weights)

    def _places(self) -> list[int]:
        """Positions of all slots."""
        return [*self.kept, *range(self.first, self.length)]

    def _awaits(self, pattern: Pattern) -> bool:
        """Whether a global position that the pattern names is still to come in some example."""
        if not pattern.global_positions:
            return False
        seen = self.length if self.tokens is None else int(self.tokens.min())
        return seen <= pattern.global_positions[-1]

    def _globals(self, pattern: Pattern, start: int, stop: int) -> list[int]:
        """Slots of [start, stop), all of the window, that hold a global token of any example."""
        if self.mask is None:
            at = (place - self.first + start for place in pattern.global_positions)
            return [slot for slot in at if start <= slot < stop]
        found = ((self.mask[:, start:stop] & mask_bits.GLOBAL) != 0).any(0)
        return [start + slot for slot in found.nonzero()[:, 0].tolist()]

    def _mask(self, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """Mask and number of tokens so far, made up where there was no padding."""
        if self.mask is not None and self.tokens is not None:
            return self.mask, self.tokens
        batch, device = self.keys.shape[0], self.keys.device
        code = [mask_bits.GLOBAL * (place in pattern.global_positions) for place in self._places()]
        mask = torch.tensor(code, dtype=torch.uint8, device=device).expand(batch, -1)
        return mask, torch.full((batch,), self.length, device=device)


def windows(pattern: Pattern) -> Pattern:
    """The causal windows of a pattern of windows and global tokens, for keys that are marked."""
    return _windows(pattern.lowered.bands)


@lru_cache(maxsize=256)
def _windows(bands: tuple[Band, ...]) -> Pattern:
    return union(*map(Window.of, bands), Global()).past
