"""Keywords that reach an attention function: which of them have no say in attention.

transformers hands whatever a model was called with down to its attention: what its loss takes, other inputs,
switches of the whole model. A word is decided on by where it is declared. One that the model's own attention
takes as an argument changes attention; one that a loss, transformers' typed keywords or the `forward` of a
model declare is theirs; one that nobody declares is a mistake.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from lf_backend._graphs import constant_in_graphs

# What an attention layer itself passes and the mask says as well, or what caches once passed.
SAID_BY_THE_MASK = frozenset(
    {"cache_position", "deterministic", "is_causal", "past_key_value", "seq_idx", "sliding_window"}
)
# What changes attention and is not carried here, wherever else it is declared.
_ATTENTION = frozenset({"head_mask", "layer_head_mask", "cross_attn_head_mask", "decoder_head_mask"})


@constant_in_graphs
def refused(names: tuple[str, ...], home: str) -> tuple[str, ...]:
    """Return the words, given to a layer of the modeling module `home`, that must not be passed over."""
    return _refused(names, home)


@lru_cache(maxsize=256)
def _refused(names: tuple[str, ...], home: str) -> tuple[str, ...]:
    taken = _ATTENTION | _parameters(getattr(sys.modules.get(home), "eager_attention_forward", None))
    unknown = set(names) - SAID_BY_THE_MASK
    return tuple(sorted((unknown & taken) | {name for name in unknown if name not in _declared()}))


def _declared() -> frozenset[str]:
    """All words of losses, of typed keywords, and of the models that are loaded."""
    from transformers import PreTrainedModel
    from transformers.loss import loss_utils
    from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
    from transformers.utils.generic import TransformersKwargs

    words = {*TransformersKwargs.__annotations__, *FlashAttentionKwargs.__annotations__}
    for loss in loss_utils.LOSS_MAPPING.values():
        words |= _parameters(loss)
    for model in _subclasses(PreTrainedModel):
        words |= _parameters(model.forward)
    return frozenset(words)


def _subclasses(kind: Any) -> Iterator[Any]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


def _parameters(function: Any) -> frozenset[str]:
    if function is None:
        return frozenset()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    found = inspect.signature(function).parameters.values()
    return frozenset(parameter.name for parameter in found if parameter.kind not in kinds)
