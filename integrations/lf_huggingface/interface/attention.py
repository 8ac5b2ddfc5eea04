"""The attention function: what a layer of transformers calls when its attn_implementation is "lf".

Which keys a query may see comes from the mask (`carried_mask`) and from nowhere else: `sliding_window` and
`is_causal` are not passed by every model that has them. What a layer passes and is not carried here is an
error that names it, but for words that have no say in attention (`keywords`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lf_backend import _callers
from lf_backend.errors import ShapeError, UnsupportedError
from lf_backend.pattern.global_positions import within
from lf_backend.pattern.terms import Pattern
from lf_huggingface.interface import cached_keys, documents, receipt
from lf_huggingface.interface.carried_mask import Mask
from lf_huggingface.interface.dense import attend
from lf_huggingface.interface.keywords import refused
from lf_huggingface.interface.layer_call import LayerCall, sparse
from lf_huggingface.interface.mask_kind import MaskKind, kind_for
from lf_huggingface.interface.mask_meaning import EVERYTHING, PAST
from lf_huggingface.interface.ranks import Ranks, ranks_of, refuse_over_ranks


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    position_ids: Tensor | None = None,
    global_attention_mask: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    lf_keys_of_another_sequence: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer.

    Args:
        module: the layer.
        query: [B, H, Q, D].
        key, value: [B, Hkv, K, D].
        attention_mask: what `mask_function.mask` made; or a dense mask of the user's, bool or float, that
            broadcasts to [B, H, Q, K]; or None where the model builds none.
        dropout: probability of dropping a weight, 0 in evaluation.
        scaling: factor of the scores, D ** -0.5 by default.
        softcap, s_aux: `softcap` and `sinks` of `lf_backend.attention`.
        position_bias: [1 or B, H, Q, K], added to the scores; dense.
        position_ids: those that restart are packed documents; looked at once per forward.
        global_attention_mask: [B, K], not 0 at tokens that are global in this call.
        cu_seq_lens_q, cu_seq_lens_k: int [documents + 1], where the documents of one row begin and end.
        lf_keys_of_another_sequence: what `watched` has seen of the layer's arguments, None if it sees none.

    Returns:
        [B, Q, H, D], and None for the weights.

    Raises:
        UnsupportedError: what is not carried, by name, with the reason.
    """
    _check(module, others)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    call = LayerCall(query, key, value, scale, dropout, softcap, s_aux, _backend(module))
    is_global, is_hidden = _globals(global_attention_mask, query, key)
    is_cross = lf_keys_of_another_sequence
    if isinstance(attention_mask, Tensor):
        refuse_over_ranks(module, "attention_mask", "[B, N], 0 at padding, instead of a dense mask,")
        given = {"global_attention_mask": is_global, "cu_seq_lens_q": cu_seq_lens_q, "backend": call.backend}
        _refuse("under a dense mask", **given)
        out = _under(call, module, attention_mask, position_bias, bool(is_cross))
    else:
        mask = _read(module, call, attention_mask, others)
        if is_cross is None:
            is_cross = _must_be_cross(module, mask.kind)
        if (ranks := ranks_of(module)) is not None:
            out = _over(ranks, call, module, mask, position_bias, is_global, is_hidden, is_cross)
            return out.transpose(1, 2).contiguous(), None
        documents.check_told(mask)
        mask = documents.given(mask, position_ids, cu_seq_lens_q, cu_seq_lens_k)
        if is_hidden is not None:
            mask = mask.without(is_hidden)
        out = _attend(call, module, mask, position_bias, is_global, is_cross)
    return out.transpose(1, 2).contiguous(), None


def _attend(
    call: LayerCall,
    module: nn.Module,
    mask: Mask,
    bias: Tensor | None,
    is_global: Tensor | None,
    is_cross: bool,
) -> Tensor:
    """Out [B, H, Q, D] under a mask that is understood."""
    kind = mask.kind
    pattern = kind.pattern if is_cross else _pattern(kind, module)
    mask.check_kept(pattern)
    receipt.note(module, pattern, is_cross, bool(kind.layers))
    asked = None if is_cross else call.backend
    if bias is None and pattern == EVERYTHING and not kind.packed and asked is None:
        return attend(call, ~mask.hidden[:, None, None] if kind.padded else None, None)
    if bias is not None and kind.sinks is not None:
        raise UnsupportedError(
            f"position_bias: {type(module).__name__} makes it for keys from the first on, in order, which a "
            "WindowCache does not keep; use transformers.DynamicCache()"
        )
    one_sided = kind.aligned or pattern.is_causal
    if bias is not None or not one_sided or (kind.packed and not kind.aligned):
        _refuse("in a call that runs densely", global_attention_mask=is_global, backend=asked)
        return attend(call, mask.visible(pattern, pattern.heads or 1), bias)
    if kind.aligned and kind.sinks is None:
        hidden = mask.hidden if kind.padded else None
        visible = pattern if kind.packed else within(pattern, call.k.shape[2])
        return sparse(call, visible, hidden, is_global, mask.documents)
    _refuse("with a cache whose keys are not all there or not in order", global_attention_mask=is_global)
    if kind.sinks is not None:
        laid = cached_keys.with_sinks(call.k, call.v, pattern, mask)
    else:
        laid = cached_keys.rolled(call.k, call.v, pattern, mask)
    call = replace(call, k=laid.k, v=laid.v)
    return sparse(call, laid.pattern, laid.key_padding, laid.global_mask)


def _over(
    ranks: Ranks,
    call: LayerCall,
    module: nn.Module,
    mask: Mask,
    bias: Tensor | None,
    is_global: Tensor | None,
    is_hidden: Tensor | None,
    is_cross: bool,
) -> Tensor:
    """Out [B, H, n, D] of this rank's slice. Documents are those of the whole batch."""
    if is_cross or not mask.kind.aligned:
        refuse_over_ranks(module, "past_key_values", "none, and keys of the queries' own sequence,")
    if bias is not None:
        refuse_over_ranks(module, "position_bias", "none")
    pattern = _pattern(mask.kind, module)
    receipt.note(module, pattern, is_cross, bool(mask.kind.layers))
    hidden = mask.hidden if is_hidden is None else mask.without(is_hidden).hidden
    visible = pattern if ranks.documents is not None else within(pattern, ranks.length)
    return ranks.attention(
        call.q,
        call.k,
        call.v,
        visible,
        key_padding=hidden,
        global_mask=is_global,
        scale=call.scale,
        softcap=call.softcap,
        sinks=call.sinks,
        dropout_p=call.dropout_p,
        backend=call.backend,
    )


def _backend(module: nn.Module) -> str | None:
    """The backend that a patch has chosen for a layer."""
    mark = getattr(module, "lf_mark", None)
    return None if mark is None else mark.backend


def _pattern(kind: MaskKind, module: nn.Module) -> Pattern:
    return kind.of_layer(getattr(module, "layer_idx", None), type(module).__name__)


def _under(call: LayerCall, module: nn.Module, given: Tensor, bias: Tensor | None, is_cross: bool) -> Tensor:
    """Out [B, H, Q, D] under a dense mask, and the pattern that the config wants."""
    sizes = (call.q.shape[2], call.k.shape[2])
    fits = given.ndim == 4 and given.shape[2] in (1, sizes[0]) and given.shape[3] in (1, sizes[1])
    if not fits or not (given.dtype == torch.bool or given.is_floating_point()):
        raise ShapeError(
            f"attention_mask: bool or float [1 or B, 1 or H, 1 or {sizes[0]}, 1 or {sizes[1]}] wanted, got "
            f"{given.dtype} {list(given.shape)}"
        )
    given = given.expand(-1, -1, *sizes)
    visible = given if given.dtype == torch.bool else None
    if visible is None:
        bias = given if bias is None else bias + given
    mask = _in_order(module, call, EVERYTHING)
    if mask.kind.layers and not is_cross:
        if sizes[0] != sizes[1] or getattr(module, "is_decoder", False):
            raise UnsupportedError(
                "lf_attention: under a dense mask, as many queries as keys and a module that is no decoder's "
                f"wanted, got {list(sizes)} in {type(module).__name__}"
            )
        pattern = _pattern(mask.kind, module)
        own = mask.visible(pattern, pattern.heads or 1)
        visible = own if visible is None else own & visible
        receipt.note(module, pattern, is_cross, True)
    else:
        receipt.note(module, mask.kind.pattern, is_cross, False)
    return attend(call, visible, bias)


def _read(module: nn.Module, call: LayerCall, given: Mask | None, others: dict[str, Any]) -> Mask:
    """The mask of a call; without one, what transformers' own functions make of none."""
    queries, keys = call.q.shape[2], call.k.shape[2]
    if given is not None:
        return given.of_layer(queries, keys)
    causal = others.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if others.get("sliding_window") is not None or (causal and queries not in (1, keys)):
        raise UnsupportedError(
            f"attention_mask: a mask for {type(module).__name__} wanted, with a window or {queries} causal "
            f"queries of {keys} keys, got None"
        )
    return _in_order(module, call, PAST if causal else EVERYTHING)


def _in_order(module: nn.Module, call: LayerCall, pattern: Pattern) -> Mask:
    """A mask that hides nothing: keys from the first on, the queries being the last of them."""
    batch, queries, keys = call.q.shape[0], call.q.shape[2], call.k.shape[2]
    aligned = True if pattern.is_causal or queries == keys else False  # noqa: SIM210  # lengths may be symbols
    kind = kind_for(getattr(module, "config", None), pattern, aligned)
    at = torch.arange(keys, device=call.k.device)
    own = torch.arange(queries, device=call.k.device) + (keys - queries if aligned else 0)
    return Mask(kind, own.expand(batch, -1), at.expand(batch, -1))


def _must_be_cross(module: nn.Module, kind: MaskKind) -> bool:
    """Whether keys cannot be the queries' own: a decoder attends to itself causally, an encoder in full."""
    if kind.pattern.is_causal:
        return False
    return not kind.aligned or bool(getattr(module, "is_decoder", False))


def _globals(marked: Tensor | None, q: Tensor, k: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Bool [B, K], which tokens are global and which are hidden, as Longformer's arithmetic has it.

    That is attention_mask * (global_attention_mask + 1): -1, with which LED's tokenizer pads, hides a token.
    """
    if marked is None:
        return None, None
    if marked.shape != (k.shape[0], k.shape[2]) or q.shape[2] != k.shape[2]:
        raise ShapeError(
            f"global_attention_mask: [{k.shape[0]}, {k.shape[2]}], and as many queries as keys, wanted, got "
            f"{list(marked.shape)} and {q.shape[2]} queries; in generation name the positions in lf_attention"
        )
    hidden = marked < 0
    return marked > 0, hidden if not _callers.may_look(hidden) or bool(hidden.any()) else None


def _refuse(where: str, **given: object) -> None:
    names = [name for name, x in given.items() if x is not None]
    if names:
        raise UnsupportedError(f"{', '.join(names)}: not carried {where}")


def _check(module: nn.Module, others: dict[str, Any]) -> None:
    if others.get("output_attentions") or _weights_are_collected():
        raise UnsupportedError(
            "output_attentions: weights are Q x K and are never made here; load the model with "
            "attn_implementation='eager', or ask lf_backend.probabilities for those of one call"
        )
    given = tuple(name for name, x in others.items() if x is not None and x is not False)
    if given and (unknown := refused(given, type(module).__module__)):
        raise UnsupportedError(
            f"{', '.join(unknown)}: passed by {type(module).__name__} to its attention, and not carried by "
            "lf_huggingface; words of losses and of models' inputs are let through"
        )


def _weights_are_collected() -> bool:
    """Whether transformers' hooks wait for weights, and would report none of them as an empty tuple."""
    if torch.compiler.is_compiling():
        return False
    from transformers.utils import output_capturing

    collected: Any = output_capturing._active_collector
    return any("attentions" in name for name in collected.get() or ())
