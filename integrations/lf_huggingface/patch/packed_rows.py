"""Examples without their padding, one behind the other in one row, and back.

The padding before and behind an example is dropped; padding between its tokens stays where it is, as it
is part of their distances. So every token sees what it saw before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lf_backend.ops.global_tokens import positions_of
from lf_backend.pattern.terms import Pattern
from lf_huggingface.patch.token_masks import TokenMasks


@dataclass(frozen=True, eq=False)
class PackedRow:
    """The tokens of a batch [B, N, ...] in one row.

    Attributes:
        batch, length: B and N.
        index: int64 [T], where in B x N the tokens of the row are.
        documents: int32 [1, T], the example of each.
        tokens: the masks of the row.
    """

    batch: int
    length: int
    index: Tensor
    documents: Tensor
    tokens: TokenMasks

    @classmethod
    def of(cls, tokens: TokenMasks, hidden: Tensor, patterns: Iterable[Pattern]) -> PackedRow | None:
        """The row of a batch hidden [B, N, ...]; None if nothing would be dropped, or nothing left, or Python
        may not look."""
        batch, length = hidden.shape[:2]
        if tokens.ends is None:
            return None
        # What counts from the start of a row has to find it where it was.
        counts = any(p.global_positions or p.lowered.others for p in patterns)
        ends = [(0 if counts else first, end) for first, end in tokens.ends]
        sizes = [end - first for first, end in ends]
        if sum(sizes) in (0, batch * length):
            return None
        parts = [torch.arange(at * length + first, at * length + end) for at, (first, end) in enumerate(ends)]
        index = torch.cat(parts).to(hidden.device)
        numbers = torch.arange(batch, dtype=torch.int32).repeat_interleave(torch.tensor(sizes))
        documents = numbers.to(hidden.device)[None]
        return cls(batch, length, index, documents, _packed(tokens, index, documents, length))

    def pack(self, x: Tensor) -> Tensor:
        """Return [1, T, ...] of x [B, N, ...]."""
        return x.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """Return [B, N, ...] of x [1, T, ...], 0 where there was padding."""
        wide = x.new_zeros(self.batch * self.length, *x.shape[2:]).index_copy(0, self.index, x[0])
        return wide.view(self.batch, self.length, *x.shape[2:])


def _packed(tokens: TokenMasks, index: Tensor, documents: Tensor, length: int) -> TokenMasks:
    """The masks in the row: what is left of padding are holes; no look, as all counts are known."""
    holes = positions = None
    if tokens.padded is not None and len(index) > tokens.real:
        holes = tokens.padded.flatten()[index][None]
    if tokens.positions is not None:
        batch, width = tokens.positions.shape
        used = tokens.positions >= 0
        marks = torch.zeros(batch * length + 1, dtype=torch.bool, device=index.device)
        starts = torch.arange(batch, device=index.device)[:, None] * length
        at = torch.where(used, tokens.positions + starts, batch * length)
        marks[at.flatten()] = True
        positions = positions_of(marks[index][None], batch * width)
    return TokenMasks(holes, None, positions, documents)
