"""Packed sequences: several documents in one row, none of which sees another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

import lf_backend as lf
from lf_backend._callers import may_look
from lf_backend._looked import once
from lf_backend.errors import ShapeError, UnsupportedError
from lf_huggingface.interface.carried_mask import Mask


def given(
    mask: Mask, position_ids: Tensor | None, cu_seq_lens_q: Tensor | None, cu_seq_lens_k: Tensor | None
) -> Mask:
    """The mask with the documents that a collator has counted, int [documents + 1], or else those whose
    positions restart.

    Raises:
        ShapeError: counts that do not cover one row from end to end, the same for queries and keys.
        UnsupportedError: positions that restart beside an attention_mask.
    """
    ends = cu_seq_lens_k if cu_seq_lens_q is None else cu_seq_lens_q
    if ends is None:
        return _restarting(mask, position_ids)
    batch, length = mask.queries.shape
    one_row = batch == 1 and mask.keys.shape[1] == length
    same = ends is cu_seq_lens_k or cu_seq_lens_k is None or _alike(ends, cu_seq_lens_k)
    last = int(ends[-1]) if may_look(ends) else length
    if not one_row or not same or last != length:
        raise ShapeError(
            f"cu_seq_lens_q, cu_seq_lens_k: the same, from 0 to {length}, for a batch of 1 and as many keys "
            f"as queries wanted, got up to {last}, batch {batch}, {mask.keys.shape[1]} keys"
        )
    return mask.within_documents(lf.document_ids(ends, length))


@contextmanager
def dropped_padding(documents: Tensor) -> Iterator[None]:
    """Within the block, a model runs over a row of examples [1, N] whose padding has been dropped."""
    token = _dropped.set(documents)
    try:
        yield
    finally:
        _dropped.reset(token)


_dropped: ContextVar[Tensor | None] = ContextVar("lf_huggingface.dropped_padding", default=None)


def of_dropped_padding(mask: Mask) -> Mask:
    """The mask with the examples of a row whose padding has been dropped."""
    found = None if torch.compiler.is_compiling() else _dropped.get()
    return mask if found is None else mask.within_documents(found)


def check_told(mask: Mask) -> None:
    """Raise UnsupportedError if examples would see each other, padding having been dropped between them."""
    if not torch.compiler.is_compiling() and not mask.kind.packed and _dropped.get() is not None:
        raise UnsupportedError(
            "unpadded: a model whose masks come from transformers' mask functions wanted, this one attends "
            "without one, and would let examples see each other"
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two counts are the same, as far as one may look."""
    return one.shape == other.shape and (not may_look(one) or torch.equal(one, other))


def _restarting(mask: Mask, position_ids: Tensor | None) -> Mask:
    """The mask with documents where positions go back; those that jump ahead or repeat are one document.

    transformers looks for documents in position_ids only where no cache and no attention_mask is given.
    Beside an attention_mask it lets them see each other. A graph cannot depend on it.
    """
    kind, length = mask.kind, mask.queries.shape[1]
    fresh = kind.aligned and not kind.packed and mask.keys.shape[1] == length > 1
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] != length or not fresh:
        return mask
    if not may_look(position_ids):
        return mask
    found: Any = once(_documents, position_ids)
    if found is None:
        return mask
    if not kind.padded:
        return mask.within_documents(found.expand(mask.queries.shape[0], -1))
    inner = found.diff(dim=1).bool() & ~mask.hidden[:, 1:] & ~mask.hidden[:, :-1]
    if bool(inner.any()):
        raise UnsupportedError(
            "position_ids: positions that restart mean packed documents, which transformers lets see each "
            "other beside an attention_mask; leave it out, or give cu_seq_lens_q and cu_seq_lens_k"
        )
    return mask


def _documents(position_ids: Tensor) -> Tensor | None:
    """Documents int32 [B, N] of positions, None if none of them restarts."""
    restarts = position_ids.diff(dim=1) < 0
    if not bool(restarts.any()):
        return None
    return torch.nn.functional.pad(restarts.cumsum(1, dtype=torch.int32), (1, 0))
