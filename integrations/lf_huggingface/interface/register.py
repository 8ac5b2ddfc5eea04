"""`attn_implementation="lf"`: the attention function and the mask function under one name, or none of both.

With the first alone transformers builds no mask at all, and says nothing: padding, packing and the room of
a static cache would be lost.
"""

from __future__ import annotations

from functools import partial

from lf_backend.errors import LFError
from lf_backend.patching import when_imported
from lf_huggingface.interface.names import NAME, registered

# transformers looks for these in a name, and means something else by it.
_MISREAD = ("flash", "sdpa", "flex_attention", "/", "|", "eager")
_CONFIGS, _MODELS = "transformers.configuration_utils", "transformers.modeling_utils"


def register(name: str = NAME, *, strict: bool = False) -> None:
    """Make `attn_implementation=name` known to transformers; again is no harm.

    Args:
        name: what users write.
        strict: a mask function that is not known is an error, instead of running densely with a warning.

    Raises:
        LFError: a name that transformers misreads, or that is somebody else's.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    from lf_huggingface.interface.attention import attention
    from lf_huggingface.interface.loading import follow_models
    from lf_huggingface.interface.mask_function import mask

    if not name or any(word in name for word in _MISREAD):
        raise LFError(f"name: one without any of {list(_MISREAD)} wanted, got {name!r}")
    taken = AttentionInterface._global_mapping.get(name)
    if taken not in (None, attention):
        raise LFError(f"name: a free one wanted, {name!r} is {taken!r}")
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, partial(mask, strict=strict))
    registered.add(name)
    follow_models()


def unregister(name: str = NAME) -> None:
    """Take the name back. Models that use it refuse to run until they are given another.

    Raises:
        LFError: the name is not registered, or somebody else's.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    from lf_huggingface.interface.attention import attention

    if AttentionInterface._global_mapping.get(name) is not attention:
        raise LFError(f"name: one that lf_huggingface has registered wanted, got {name!r}")
    del AttentionInterface._global_mapping[name]
    del AttentionMaskInterface._global_mapping[name]
    registered.discard(name)


def when_transformers_is_imported() -> None:
    """Register now if transformers' models are loaded, else as soon as they are.

    So `import lf_huggingface` costs nothing where no model of transformers is used.
    """
    when_imported(_CONFIGS, _follow_configs)
    when_imported(_MODELS, register)


def _follow_configs() -> None:
    from lf_huggingface.interface.loading import follow_configs

    follow_configs()
