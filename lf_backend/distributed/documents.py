"""Packed documents that cross slices, known by where they begin and end in the whole row."""

from __future__ import annotations

import torch
from torch import Tensor

from lf_backend.distributed.group import Group
from lf_backend.distributed.slices import Slices
from lf_backend.ops.documents import boundaries


def starts_of(group: Group, slices: Slices, documents: Tensor) -> Tensor:
    """Return int64 [B, n], where in the whole row the document of each position of this rank begins.

    The last document of a slice and the first of the next are one if their ids are equal.

    Args:
        documents: int [B, n], ids of this rank's slice.
    """
    batch, count = documents.shape
    start = boundaries(documents).start + slices.starts[group.rank] if count else documents.long()
    own = (
        torch.stack([documents[:, 0], documents[:, -1], start[:, -1]])
        if count
        else documents.new_zeros(3, batch)
    )
    ends = group.gather(own.flatten().long()).view(group.size, 3, batch).to(documents.device)
    open_id = open_start = None  # of the document that the slices before this one end with
    for rank in range(group.rank):
        if not slices.sizes[rank]:
            continue
        first, last, begins = ends[rank]
        if open_id is not None and open_start is not None:
            goes_on = (begins == slices.starts[rank]) & (first == open_id)
            begins = torch.where(goes_on, open_start, begins)
        open_id, open_start = last, begins
    if not count or open_id is None or open_start is None:
        return start
    continued = (start == slices.starts[group.rank]) & (documents[:, :1] == open_id[:, None])
    return torch.where(continued, open_start[:, None], start)


def ends_of(group: Group, slices: Slices, start: Tensor) -> Tensor:
    """Return int64 [B, n], where in the whole row the document of each position of this rank ends.

    Args:
        start: int64 [B, n], where it begins, which tells documents apart.
    """
    batch, count = start.shape
    own = slices.range_of(group.rank)
    end = boundaries(start).end + own.start if count else start
    words = torch.stack([start[:, 0], end[:, 0]]) if count else start.new_zeros(2, batch)
    firsts = group.gather(words.flatten()).view(group.size, 2, batch).to(start.device)
    for rank in range(group.rank + 1, group.size if count else 0):
        if slices.sizes[rank]:
            goes_on = (end == slices.starts[rank]) & (start == firsts[rank, 0][:, None])
            end = torch.where(goes_on, firsts[rank, 1][:, None], end)
    return end
