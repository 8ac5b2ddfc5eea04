"""A batch of whole sequences, cut into this rank's slices, with what all ranks must know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

import lf_backend as lf
from lf_backend.distributed.group import Group
from lf_backend.errors import ArgumentError, ShapeError
from lf_huggingface.interface.ranks import Batch

IGNORED = -100  # the label of a token that no loss counts
TOKENS = (
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "global_attention_mask",
    "labels",
    "shift_labels",
)
EXAMPLES = ("labels", "start_positions", "end_positions", "num_items_in_batch", "return_loss")
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


@dataclass(frozen=True)
class ModelKind:
    """The ways of a model that matter to a batch.

    Attributes:
        causal: labels are shifted by one token.
        labels_of_tokens: there is a label for each token, and not for each example.
        padding_id: the position of padding, of a model whose positions skip it; None where they do not.
        fills: `fills(input_ids) -> [B, N]`, the global tokens of a model that finds them itself; or None.
        has_positions: the model takes position_ids.
        has_cache: the model keeps keys unless it is told not to.
    """

    causal: bool
    labels_of_tokens: bool
    padding_id: int | None
    fills: Any
    has_positions: bool
    has_cache: bool


def cut(batch: Mapping[str, Any], kind: ModelKind, group: Group) -> tuple[dict[str, Any], Batch]:
    """Return this rank's slices of a batch that all ranks have, and what all know of it.

    Raises:
        ShapeError: tensors that are not [B, N], or fewer tokens than ranks.
        ArgumentError: a name that is not known.
        DistributedError: ranks that have other batches.
    """
    given = {name: x for name, x in batch.items() if x is not None}
    error: Exception | None = None
    said: Any = None
    try:
        batch_size, length = _checked(given, kind, group)
        said = {name: _said(x) for name, x in sorted(given.items())}
    except (ShapeError, ArgumentError) as wrong:
        error = wrong
    group.agree(said if error is None else error, [])
    documents = _documents(given, batch_size, length)
    whole = _completed(given, kind, documents, batch_size, length)
    first, end = bounds(length, group)
    own = None if documents is None else documents[:, first:end]
    tokens = TOKENS if kind.labels_of_tokens else [name for name in TOKENS if name != "labels"]
    slices = {name: x[:, first:end] if name in tokens else x for name, x in whole.items()}
    return slices, Batch(length, *_marks(whole), own)


def bounds(length: int, group: Group) -> tuple[int, int]:
    """Return the first position of this rank and its end; sizes differ by at most one."""
    sizes = sizes_of(length, group)
    return sum(sizes[: group.rank]), sum(sizes[: group.rank + 1])


def sizes_of(length: int, group: Group) -> tuple[int, ...]:
    """Return how many positions each rank has."""
    return tuple(length // group.size + (rank < length % group.size) for rank in range(group.size))


def _checked(given: Mapping[str, Any], kind: ModelKind, group: Group) -> tuple[int, int]:
    if ("input_ids" in given) == ("inputs_embeds" in given):
        raise ArgumentError("batch: either input_ids or inputs_embeds wanted")
    batch, length = given.get("input_ids", given.get("inputs_embeds")).shape[:2]
    if length < group.size:
        raise ShapeError(f"batch: a token for each of {group.size} ranks wanted, got {length}")
    for name, x in given.items():
        if name in PACKED or (name in EXAMPLES and not (name == "labels" and kind.labels_of_tokens)):
            continue
        if name in TOKENS:
            if not _fits(name, x, batch, length):
                got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ShapeError(f"{name}: [{batch}, {length}] of the whole sequence wanted, got {got}")
        elif isinstance(x, Tensor):
            known = ", ".join((*TOKENS, *EXAMPLES[1:3], *PACKED))
            raise ArgumentError(f"{name}: not known how to cut it; known are {known}")
    if given.get("use_cache") or "past_key_values" in given:
        raise ArgumentError("use_cache, past_key_values: none wanted over ranks, where nothing is generated")
    return batch, length


def _fits(name: str, x: Any, batch: int, length: int) -> bool:
    """Whether a tensor has whole rows."""
    rows = (1, batch) if name == "position_ids" else (batch,)
    dims = 3 if name == "inputs_embeds" else 2
    return isinstance(x, Tensor) and x.ndim == dims and x.shape[0] in rows and x.shape[1] == length


def _said(x: Any) -> str:
    """Return what must be the same on all ranks, in short."""
    if not isinstance(x, Tensor):
        return str(x)
    weights = torch.arange(1, x.numel() + 1, device=x.device).view(x.shape) % 65_521
    return f"{list(x.shape)} of sum {float((x.detach().double() * weights).sum())}"


def _documents(given: dict[str, Any], batch: int, length: int) -> Tensor | None:
    """Return int [1 or B, N], the packed documents; takes the counts out of what is given."""
    q, k = given.get("cu_seq_lens_q"), given.get("cu_seq_lens_k")
    for name in PACKED:
        given.pop(name, None)
    ends = q if q is not None else k
    if ends is not None:
        if batch != 1 or int(ends[-1]) != length or not (k is None or torch.equal(ends, k)):
            raise ShapeError(
                f"cu_seq_lens_q, cu_seq_lens_k: the same, from 0 to {length}, for a batch of 1 wanted, "
                f"got up to {int(ends[-1])}, batch {batch}"
            )
        return lf.document_ids(ends, length)
    at = given.get("position_ids")
    if at is None or not bool((restarts := at.diff(dim=1) < 0).any()):
        return None
    mask = given.get("attention_mask")
    if mask is not None:
        if bool((restarts & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)).any()):
            raise ShapeError(
                "position_ids: positions that restart mean packed documents, which transformers lets see "
                "each other beside an attention_mask; leave it out, or give cu_seq_lens_q and cu_seq_lens_k"
            )
        return None
    return pad(restarts.cumsum(1, dtype=torch.int32), (1, 0))


def _completed(
    given: dict[str, Any], kind: ModelKind, documents: Tensor | None, batch: int, length: int
) -> dict[str, Any]:
    """Return a batch with everything that a model would make of whole rows itself."""
    whole = dict(given)
    ids = whole.get("input_ids")
    if kind.has_positions and "position_ids" not in whole:
        whole["position_ids"] = _positions(whole, kind, documents, batch, length)
    if kind.fills is not None and "global_attention_mask" not in whole and ids is not None:
        whole["global_attention_mask"] = kind.fills(ids)
    if kind.causal and "labels" in whole:
        labels = whole.pop("labels")
        whole.setdefault("shift_labels", pad(labels[:, 1:], (0, 1), value=IGNORED))
    if kind.has_cache:
        whole["use_cache"] = False
    return whole


def _positions(
    whole: Mapping[str, Any], kind: ModelKind, documents: Tensor | None, batch: int, length: int
) -> Tensor:
    """Return position_ids as transformers makes them of a whole row."""
    ids = whole.get("input_ids")
    device = (ids if ids is not None else whole["inputs_embeds"]).device
    at = torch.arange(length, device=device)
    if kind.padding_id is None:
        if documents is not None:
            starts = torch.where(pad(documents.diff(dim=1) != 0, (1, 0), value=True), at, 0)
            at = at - starts.cummax(1).values
        return at.expand(batch, -1)
    if ids is None:
        return (at + kind.padding_id + 1).expand(batch, -1)
    real = ids.ne(kind.padding_id).int()
    found: Tensor = (real.cumsum(1).type_as(real) * real).long() + kind.padding_id
    return found


def _marks(whole: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether some token is padding, and whether one is global."""
    mask, marked = whole.get("attention_mask"), whole.get("global_attention_mask")
    code = mask if marked is None else (marked + 1) * (1 if mask is None else mask)
    if code is None:
        return False, False
    return bool((code <= 0).any()), code.dtype != torch.bool and bool((code > 1).any())
