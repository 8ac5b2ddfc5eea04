"""Packed documents: several sequences in one row, as a tensor that says which position is whose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend.backend import Documents
from lf_backend.errors import ShapeError


def document_ids(cu_seqlens: Tensor | Sequence[int], m: int | None = None) -> Tensor:
    """Return `documents` for `attention` from the ends of packed documents.

        lf.document_ids(torch.tensor([0, 3, 5]), 5)  # [[0, 0, 0, 1, 1]]

    Args:
        cu_seqlens: int [documents + 1], or [B, documents + 1]: where documents begin, 0 first, and the end of
            the last one, as in flash-attn. A document may be empty.
        m: number of positions of a row; the last of `cu_seqlens` if it is left out, which the host reads.

    Returns:
        int32 [B, M], with B = 1 for a `cu_seqlens` of one dimension.

    Raises:
        ShapeError: another dtype or shape; and, where looking is free, boundaries that descend, or do not
            cover the row from 0 to m.
    """
    edges = torch.as_tensor(cu_seqlens)
    if edges.dtype not in INTS:
        raise ShapeError(f"cu_seqlens: a dtype of ints wanted, got {edges.dtype}")
    if edges.ndim not in (1, 2) or edges.shape[-1] == 0:
        raise ShapeError(f"cu_seqlens: [documents + 1] or [B, documents + 1] wanted, got {list(edges.shape)}")
    edges = edges if edges.ndim == 2 else edges[None]
    if m is None:
        m = int(edges[0, -1])
    if edges.device.type == "cpu" and _callers.may_look(edges):
        ascending = bool((edges[:, 1:] >= edges[:, :-1]).all())
        if not ascending or bool((edges[:, 0] != 0).any()) or bool((edges[:, -1] != m).any()):
            raise ShapeError(f"cu_seqlens: ascending ints from 0 to {m} wanted, got {edges.tolist()}")
    at = torch.arange(m, device=edges.device, dtype=edges.dtype).expand(len(edges), -1)
    return torch.searchsorted(edges[:, 1:].contiguous(), at.contiguous(), right=True, out_int32=True)


def check_documents(documents: Tensor) -> None:
    """Look at document ids [B, M] for one that comes back after another document has begun.

    `attention` does so itself on a CPU, where looking is free; elsewhere it takes neighbours with equal ids
    for one document, and others for two.

    Raises:
        ShapeError: no int tensor of two dimensions, or an id that returns: which, in which row, and where.
    """
    check_layout(documents)
    if documents.shape[1] < 2:
        return
    order = documents.argsort(dim=1, stable=True)
    ids = documents.gather(1, order)
    apart = (ids.diff(dim=1) == 0) & (order.diff(dim=1) != 1)
    if not bool(apart.any()):
        return
    row, index = apart.nonzero()[0].tolist()
    raise ShapeError(
        f"documents: neighbours with one id for each document wanted, got id {int(ids[row, index])} of row "
        f"{row} at position {int(order[row, index])} and again at {int(order[row, index + 1])}"
    )


def check_layout(documents: object) -> None:
    """Raise ShapeError unless these are ints [B, M]."""
    if not isinstance(documents, Tensor):
        raise ShapeError(f"documents: an int tensor [B, M] wanted, got {type(documents).__name__}")
    if documents.dtype not in INTS:
        raise ShapeError(f"documents: a dtype of ints wanted, got {documents.dtype}")
    if documents.ndim != 2:
        raise ShapeError(f"documents: [batch, keys] wanted, got {list(documents.shape)}")


def boundaries(documents: Tensor) -> Documents:
    """Return where each position's document begins and ends, by operators that nobody waits for."""
    keys = documents.shape[1]
    at = torch.arange(keys, device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    start = torch.where(begins, at, 0).cummax(1).values
    ends = torch.where(begins, at, keys).roll(-1, 1)
    ends[:, -1:] = keys
    return Documents(start, ends.flip(1).cummin(1).values.flip(1))


INTS = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)
