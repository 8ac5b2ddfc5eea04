"""The one list of what `lf_backend.attention` takes besides q, k, v and the pattern.

The signatures that users see, and the checks of names that nobody knows, are read off it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypedDict, TypeVar, cast

from torch import Tensor

from lf_backend.errors import ArgumentError

F = TypeVar("F", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """Keyword arguments of `attention`, `explain` and `probabilities`; `attention` says what they mean."""

    key_padding: Tensor | None
    global_mask: Tensor | None
    global_positions: Tensor | None
    documents: Tensor | None
    global_q: Tensor | None
    global_k: Tensor | None
    global_v: Tensor | None
    scale: float | None
    softcap: float | None
    sinks: Tensor | None
    band_bias: Tensor | None
    dropout_p: float
    backend: str | None


DEFAULTS: Mapping[str, Any] = {name: None for name in Options.__annotations__} | {"dropout_p": 0.0}

# What other libraries call what this one says otherwise.
_ELSEWHERE = {
    "causal": "write the pattern as `pattern & lf.Causal()`",
    "is_causal": "write the pattern as `pattern & lf.Causal()`",
    "attention_mask": "pass key_padding=(attention_mask == 0), where True means padded",
    "attn_mask": "say what is visible as a pattern, and padding as key_padding, where True means padded",
    "key_padding_mask": "pass it as key_padding, bool, where True means padded",
    "global_attention_mask": "pass it as global_mask, bool, where True means global",
    "dropout": "pass it as dropout_p",
    "softmax_scale": "pass it as scale",
    "cu_seqlens": "pass documents=lf.document_ids(cu_seqlens, m)",
    "cu_seqlens_q": "pass documents=lf.document_ids(cu_seqlens, m)",
    "cu_seqlens_k": "pass documents=lf.document_ids(cu_seqlens, m)",
    "window_size": "write the pattern as lf.conventions.flash_attn(window_size)",
    "attention_window": "write the pattern as lf.conventions.huggingface(attention_window)",
    "sliding_window": "write the pattern as lf.conventions.mistral(sliding_window)",
    "enable_gqa": "leave it out: heads of q share keys whenever k has fewer heads",
    "block_mask": "write the pattern as lf.Predicate(mask_mod)",
    "score_mod": "pass softcap, band_bias or sinks; other changes of scores are not supported",
}


def takes_options(function: F) -> F:
    """Decorate a function that ends in `**options: Unpack[Options]` and serves users.

    Its signature shows every option with its default, and a name that is none of them is an error that
    says what to write instead.
    """
    shown = _shown(inspect.signature(function))
    own = {name for name, p in shown.parameters.items() if name not in DEFAULTS}

    @wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        for name in given:
            if name not in DEFAULTS and name not in own:
                raise ArgumentError(_unknown(function.__name__, name, [*own, *DEFAULTS]))
        return function(*args, **given)

    checked.__signature__ = shown  # type: ignore[attr-defined]
    return cast(F, checked)


def _shown(signature: inspect.Signature) -> inspect.Signature:
    """Return a signature with the options in the place of `**options`."""
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS[name], annotation=annotation)
        for name, annotation in Options.__annotations__.items()
    ]
    return signature.replace(parameters=[*kept, *options])


def _unknown(function: str, name: str, known: list[str]) -> str:
    advice = _ELSEWHERE.get(name)
    if advice is None:
        near = get_close_matches(name, known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"{function}: there is no argument {name!r}; {advice}"
