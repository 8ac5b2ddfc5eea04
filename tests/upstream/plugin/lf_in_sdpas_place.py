"""A plugin of pytest: what asks transformers for "sdpa" gets our attention.

Alone in its folder, because a checkout of transformers has a package `tests` of its own.
"""

from functools import partial

from transformers import AttentionInterface, AttentionMaskInterface

from lf_huggingface.interface.attention import attention
from lf_huggingface.interface.loading import follow_models
from lf_huggingface.interface.mask_function import mask
from lf_huggingface.interface.names import registered

AttentionInterface._global_mapping["sdpa"] = attention
AttentionMaskInterface._global_mapping["sdpa"] = partial(mask, strict=False)
registered.add("sdpa")
follow_models()
