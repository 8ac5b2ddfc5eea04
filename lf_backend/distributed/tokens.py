"""Global tokens of a whole row, each with the rank that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lf_backend.distributed.group import Group
from lf_backend.distributed.slices import Slices
from lf_backend.ops.arguments import Arguments
from lf_backend.ops.global_tokens import marked, positions_of


@dataclass(frozen=True, eq=False)
class Tokens:
    """Global tokens: those of this rank, and how many the others have.

    Attributes:
        marks: bool [B, n], True at global tokens of this rank's slice; a padded one is padding.
        at: int64 [B, G], their positions in the slice in ascending order, then -1.
        counts: the G of every rank.
        causal: they show and see the past alone.
        sources: of what goes to all ranks of them, by name, the tensor that it is a part of.
    """

    marks: Tensor
    at: Tensor
    counts: tuple[int, ...]
    causal: bool
    sources: Mapping[str, str]

    @cached_property
    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Int64 [X], of each: its example, its slot, and its position in the slice."""
        batch, slot = self.valid.nonzero(as_tuple=True)
        return batch, slot, self.at[batch, slot]

    @property
    def valid(self) -> Tensor:
        """Bool [B, G], True where a slot is used."""
        return self.at >= 0

    @property
    def index(self) -> Tensor:
        """`at`, with a position that exists in slots that are not used."""
        return self.at.clamp(min=0)


def tokens_of(group: Group, slices: Slices, a: Arguments, start: Tensor | None) -> Tokens | None:
    """Return the global tokens of a call; None if no rank has one.

    Args:
        a: the call of this rank, all its tensors slices.
        start: int64 [B, n], where the document of each position begins in the row; None without documents.
    """
    static = a.lowered.positions
    if not static and not a.brings_globals:
        return None
    marks = _marks(slices.range_of(group.rank), a, start)
    if a.brings_globals or start is not None:
        most = int(marks.sum(1).max()) if marks.numel() else 0
        counts = tuple(group.gather(torch.tensor([most]))[:, 0].tolist())
    else:
        counts = tuple(sum(p in slices.range_of(rank) for p in static) for rank in range(group.size))
    if not any(counts):
        return None
    causal = a.resolved.is_causal if a.brings_globals else a.lowered.causal_globals
    count = counts[group.rank]
    at = positions_of(marks, count) if count else marks.new_empty(len(marks), 0, dtype=torch.int64)
    sources = {"column_k": "k", "column_v": "v", "row_q": "q" if a.global_q is None else "global_q"}
    return Tokens(marks, at, counts, causal, sources)


def _marks(own: range, a: Arguments, start: Tensor | None) -> Tensor:
    static = a.lowered.positions
    inside = None
    if start is None:
        static = tuple(position - own.start for position in static if position in own)
    else:
        inside = start - own.start
    if not own or not (static or a.brings_globals):
        return torch.zeros(a.k.shape[0], len(own), dtype=torch.bool, device=a.k.device)
    size = a.k.shape[0], a.k.shape[2]
    return marked(static, size, a.k.device, a.key_padding, a.global_mask, a.global_positions, inside)
