"""The mask function: what transformers' mask builders call in place of building a mask.

It builds no Q x K tensor. It reads what the mask would mean and hands it on as a `Mask`. What it does not
know becomes upstream's own dense mask, said aloud once, or is an error in strict mode. No mask is ever
dropped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lf_backend.errors import UnsupportedError
from lf_huggingface.interface.cached_keys import Kept, Rolled, positions
from lf_huggingface.interface.carried_mask import Mask
from lf_huggingface.interface.documents import of_dropped_padding
from lf_huggingface.interface.mask_kind import kind_for
from lf_huggingface.interface.mask_meaning import Unknown, meaning, traced_meaning

# These build masks, and then attend in code of their own.
NOT_ROUTED = frozenset({"longformer", "led", "big_bird"})

_said: set[str] = set()


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int | Tensor,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Mask | Tensor | None = None,
    local_size: int | None = None,
    config: Any = None,
    device: torch.device | str = "cpu",
    allow_is_causal_skip: bool = False,
    allow_is_bidirectional_skip: bool = False,
    strict: bool = False,
    **only_for_others: Any,
) -> Mask | Tensor:
    """The mask of one kind of layer; or a dense one, bool [B, 1, Q, K]. One that is made already stays.

    Args:
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, local_size,
            config, device: as transformers.masking_utils has them; q_offset is a tensor for static caches,
            and so are kv_length or kv_offset after a cache of 5.17 was cropped.
        allow_is_causal_skip, allow_is_bidirectional_skip: upstream has laid nothing over the window.
        strict: a mask function that is not known is an error.
        only_for_others: for upstream's own dense masks.

    Raises:
        UnsupportedError: what is not known, in strict mode; a model that does not attend through the
            interface.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask  # torch 2.10 traces no lazy module

    _check_routed(config)
    if isinstance(attention_mask, Mask):
        return attention_mask
    if isinstance(kv_length, Tensor) or isinstance(kv_offset, Tensor):
        q_offset, kv_length, kv_offset = int(q_offset), int(kv_length), int(kv_offset)
    function = causal_mask_function if mask_function is None else mask_function
    try:
        if torch.compiler.is_dynamo_compiling():
            skips = allow_is_causal_skip, allow_is_bidirectional_skip
            found = traced_meaning(function, config, local_size, *skips)
        else:
            found = meaning(function)
    except Unknown as unknown:
        _say_dense(unknown.args[0], strict or isinstance(kv_offset, Kept))
        dense: Any = sdpa_mask
        return dense(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=function,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            device=device,
            **only_for_others,
        )
    sinks = len(kv_offset.sinks) if isinstance(kv_offset, Kept) else None
    aligned = sinks is not None or (
        not isinstance(q_offset, Tensor) and _equal(q_offset + q_length, kv_offset + kv_length)
    )
    packed = found.documents is not None
    kind = kind_for(config, found.pattern, aligned, attention_mask is not None, packed, sinks)
    kept = int(q_offset) - kv_offset if kv_offset and sinks is None else None
    queries = torch.arange(q_length, device=device) + q_offset
    keys = positions(kv_length, kv_offset, device)
    empty, keys = (keys < 0)[None], keys.clamp(min=0)
    hidden = None if attention_mask is None else _padding(attention_mask, keys)
    if isinstance(kv_offset, Rolled):
        hidden = empty if hidden is None else hidden | empty
    if found.pattern.is_causal and not aligned:
        unwritten = (keys > queries[-1])[None]
        hidden = unwritten if hidden is None else hidden | unwritten
    coded = keys[None] if hidden is None else torch.where(hidden, ~keys, keys)
    batch = (queries.expand(batch_size, -1), coded.expand(batch_size, -1))
    made = Mask(kind, *batch, found.documents, kept, getattr(config, "model_type", ""))
    return of_dropped_padding(made)


def _equal(one: Any, other: Any) -> bool:
    """Whether two lengths are the same, as a bool for ever: of symbols it would be a symbol."""
    return True if one == other else False  # noqa: SIM210  # a branch is what asks a symbol


def _padding(attention_mask: Tensor, keys: Tensor) -> Tensor:
    """Bool [B, K], True for a key that the mask [B, any length] hides or does not reach."""
    length = attention_mask.shape[1]
    return ~attention_mask.bool()[:, keys.clamp(max=length - 1)] | (keys >= length)


def _check_routed(config: Any) -> None:
    if getattr(config, "model_type", None) in NOT_ROUTED:
        raise UnsupportedError(
            f"attn_implementation: {config.model_type} attends in code of its own, which no name reaches; "
            "use lf.patch(model), with attn_implementation='eager'"
        )


def _say_dense(name: str, forbidden: bool) -> None:
    text = f"mask function {name} is not known to lf_huggingface and runs densely"
    if forbidden:
        raise UnsupportedError(f"{text}, which strict=True and WindowCache forbid")
    if name not in _said and not torch.compiler.is_dynamo_compiling():
        _said.add(name)
        warnings.warn(f"{text}, exactly, in memory N x N", stacklevel=4)
