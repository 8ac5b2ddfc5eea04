"""Rows of different lengths to tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Int64 [rows, longest, at least 1], filled up with a value at the end."""
    longest = max(1, *(len(row) for row in rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.int64)


def inputs(
    rows: Sequence[Sequence[int]], is_global: Sequence[Sequence[int]], pad_token: int
) -> dict[str, Tensor]:
    """Ids, padding and global tokens of rows, each int64 [rows, longest].

    Args:
        rows: token ids.
        is_global: for each row the positions that are global.
        pad_token: the id of padding.
    """
    ids = padded(rows, pad_token)
    mask = padded([[1] * len(row) for row in rows], 0)
    marked = torch.zeros_like(ids)
    for row, positions in enumerate(is_global):
        marked[row, list(positions)] = 1
    return {"input_ids": ids, "attention_mask": mask, "global_attention_mask": marked}
