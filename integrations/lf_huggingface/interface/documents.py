"""Packed sequences: several documents in one row, none of which sees another."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lf_backend._callers import may_look
from lf_backend.errors import ShapeError, UnsupportedError
from lf_backend.pattern.terms import Pattern
from lf_huggingface.interface.call import Call, sparse
from lf_huggingface.interface.encoded_mask import Mask, within


def given(mask: Mask, cu_seq_lens_q: Tensor | None, cu_seq_lens_k: Tensor | None) -> Mask:
    """The mask with the documents that a collator has counted, int [documents + 1].

    Raises:
        ShapeError: counts that do not cover one row from end to end, the same for queries and keys.
    """
    if cu_seq_lens_q is None and cu_seq_lens_k is None:
        return mask
    batch, length = mask.queries.shape
    ends = cu_seq_lens_k if cu_seq_lens_q is None else cu_seq_lens_q
    assert ends is not None, "one of them is given"
    same = cu_seq_lens_q is None or cu_seq_lens_k is None or torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    if not same or batch != 1 or mask.keys.shape[1] != length or int(ends[-1]) != length:
        raise ShapeError(
            f"cu_seq_lens_q, cu_seq_lens_k: the same, from 0 to {length}, for a batch of 1 and as many keys "
            f"as queries wanted, got up to {int(ends[-1])}, batch {batch}, {mask.keys.shape[1]} keys"
        )
    at = torch.arange(length, device=ends.device)
    found = torch.bucketize(at, ends[1:-1].to(at.dtype), right=True).expand(1, -1)
    return replace(mask, plan=replace(mask.plan, packed=True), documents=torch.cat([found, found], dim=1))


def check_known(mask: Mask, module: nn.Module, position_ids: Tensor | None) -> None:
    """Raise UnsupportedError if positions restart among tokens and the mask knows of no documents.

    transformers looks for documents in position_ids only where no cache and no attention_mask is given, and
    otherwise lets them see each other. Looked at in the first layer, and not in a compiled graph.
    """
    plan, length = mask.plan, mask.queries.shape[1]
    fresh = plan.aligned and not plan.packed and mask.keys.shape[1] == length > 1
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] != length or not fresh:
        return
    if not may_look(position_ids) or getattr(module, "layer_idx", None):
        return
    restarts = position_ids.diff(dim=1) < 0  # ones that jump ahead or repeat are scaled, or leave some out
    if bool((restarts & ~mask.hidden[:, 1:] & ~mask.hidden[:, :-1]).any()):
        raise UnsupportedError(
            "position_ids: positions that restart mean packed documents, which transformers tells the mask "
            "of this model nothing about; call it with use_cache=False and without attention_mask, or with "
            "cu_seq_lens_q and cu_seq_lens_k"
        )


def attend(call: Call, pattern: Pattern, mask: Mask) -> Tensor:
    """Out [B, H, Q, D], one call per document; positions count from its start."""
    assert mask.documents is not None, "the plan says so"
    rows = []
    for index, row in enumerate(mask.documents[:, : mask.queries.shape[1]]):
        lengths = torch.unique_consecutive(row, return_counts=True)[1].tolist()
        parts, start = [], 0
        for length in lengths:
            q, k, v = (x[index : index + 1, :, start : start + length] for x in (call.q, call.k, call.v))
            hidden = mask.hidden[index : index + 1, start : start + length] if mask.plan.padded else None
            parts.append(sparse(replace(call, q=q, k=k, v=v), within(pattern, length), hidden, None))
            start += length
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows)
