"""Layers that attend, and whether each of them can do so over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from lf_backend.errors import PatchError
from lf_backend.patching.handle import mark_of
from lf_backend.pattern.terms import Causal, Pattern
from lf_huggingface.interface import attending, config_patterns
from lf_huggingface.interface.names import NAME, UNPADDED, is_ours
from lf_huggingface.patch.self_attention import SparseSelfAttention

# Attention of a decoder to itself and to an encoder, of which every rank has all.
_WHOLE = ("LEDDecoderAttention",)


def sharing(model: nn.Module) -> list[nn.Module]:
    """Return the layers whose sequences ranks can share.

    Raises:
        PatchError: a layer that cannot, each with the reason; or none at all.
    """
    against = list(_reasons(model))
    found: list[nn.Module] = [x for x in model.modules() if isinstance(x, SparseSelfAttention)]
    found += [module for _, module in attending.routed(model)]
    if against:
        raise PatchError("model: layers whose windows have limits wanted, got " + "; ".join(against))
    if not found:
        raise PatchError(
            f"model: one that lf.patch has patched, or of attn_implementation={NAME!r}, wanted, "
            f"got {type(model).__name__}, in which nothing attends"
        )
    return found


def _reasons(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        mark = mark_of(module)
        if mark is not None and mark.unpad:
            yield f"{path or 'the model'}, which drops padding; patch the model without unpad"
        if mark is None or mark.pattern is None:
            continue
        if not isinstance(module, SparseSelfAttention):
            yield f"{path} ({type(module).__name__}), of a family that does not run over ranks"
        elif not _is_limited(mark.pattern):
            yield f"{path}, which runs {mark.pattern}"
    for path, module in model.named_modules():
        if vars(module).get(UNPADDED):
            yield f"{path or 'the model'}, which drops padding; undo unpadded(model)"
    for path, module in attending.routed(model):
        if reason := _reason(module):
            yield f"{path}, {reason}"
    for path, module in attending.on_their_own(model):
        ours = isinstance(module, SparseSelfAttention) or type(module).__name__ in _WHOLE
        if not ours and mark_of(module) is None:
            yield f"{path} ({type(module).__name__}), which attends in code of its own; see lf.patch"


def _reason(module: Any) -> str:
    """Return why a layer that attends through transformers' interface cannot, "" if it can."""
    config, index = module.config, getattr(module, "layer_idx", None)
    if not is_ours(config):
        return f"which attends by {config._attn_implementation!r}; load the model with {NAME!r}"
    own = config_patterns.layers(config)
    if own:
        pattern = own[0] if len(own) == 1 else own[min(index or 0, len(own) - 1)]
        if getattr(module, "is_causal", False):
            pattern = pattern & Causal()
        return "" if _is_limited(pattern) else f"which runs {pattern}"
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and index is not None:
        windowed = kinds[index] == "sliding_attention"
    else:
        windowed = getattr(config, "sliding_window", None) is not None
    advice = "give config.lf_attention a window, or for full attention use accelerate's context parallel"
    return "" if windowed else f"which attends in full; {advice}"


def _is_limited(pattern: Pattern) -> bool:
    """Whether no window is without a limit; what rules reach, the operator says itself."""
    return all(None not in band.span() for band in pattern.lowered.bands)


def refuse_hooks_of_accelerate(model: nn.Module) -> None:
    """Raise PatchError if accelerate makes layers drop their masks."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            code = getattr(hook, "__qualname__", "")
            if "_attach_context_parallel_hooks" in code:
                raise PatchError(
                    f"model: layers without accelerate's hooks wanted, got one on {path} that drops its mask "
                    "and makes it causal; give Accelerator no cp_size, or use lf_huggingface's Trainer"
                )
