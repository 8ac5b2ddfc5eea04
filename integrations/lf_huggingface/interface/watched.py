"""Hooks on the layers of a configured model, for what the attention function alone cannot know.

- A layer that may take keys of another sequence says so when it does: `config.lf_attention` is a pattern of
  self-attention, and leaves cross attention alone.
- A layer that attends in code of its own refuses a pattern, or a mask, that it would not heed.
- A model whose config holds a pattern that no layer of it reads says so.

Other layers have none. A model that is given another attention loses them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from lf_backend.errors import PatternError, UnsupportedError
from lf_huggingface.interface import attending, config_patterns
from lf_huggingface.interface.carried_mask import Mask
from lf_huggingface.interface.names import is_ours

CROSS = "lf_keys_of_another_sequence"  # a keyword that reaches the attention function


def watch(model: nn.Module) -> None:
    """Set the hooks that a model needs, in place of those that it has."""
    unwatch(model)
    models = _models(model)
    for _, module in attending.routed(model):
        if places := attending.places_of_keys(attending.kind_of(module)):
            _hook(module, partial(say_if_cross, places=places))
    for path, module in attending.on_their_own(model):
        configs = [x.config for at, x in models.items() if _inside(path, at)]
        places = attending.places_of_keys(attending.kind_of(module))
        _hook(module, partial(refuse_what_is_not_heeded, path=path, configs=configs, places=places))
    for part in models.values():
        readers = {name: x.config for name, x in attending.routed(part)}
        if readers and all(config is not part.config for config in readers.values()):
            homes = [name for name, x in models.items() if any(x.config is y for y in readers.values())]
            _hook(part, partial(refuse_what_is_not_read, readers=readers, homes=homes))


def unwatch(model: nn.Module) -> None:
    """Take the hooks away."""
    for module in model.modules():
        hooks: Any = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if getattr(hook, "func", None) in _OURS]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def say_if_cross(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, places: attending.Places
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Hook of a layer that may take keys of another sequence."""
    if not is_ours(module.config):
        return None
    return args, {**kwargs, CROSS: attending.is_cross(places, args, kwargs)}


def refuse_what_is_not_heeded(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    path: str,
    configs: list[Any],
    places: attending.Places,
) -> None:
    """Hook of a layer that attends in code of its own."""
    which = f"{path or 'the model'} ({type(module).__name__}) attends in code of its own"
    if any(isinstance(x, Mask) for x in (*args, *kwargs.values())):
        raise UnsupportedError(
            f"attn_implementation: one that every layer heeds wanted, got {_name_of(configs)!r}: {which}; "
            "load the model with 'eager'"
        )
    asked = [config for config in configs if is_ours(config) and config_patterns.is_given(config)]
    if asked and not attending.is_cross(places, args, kwargs):
        raise UnsupportedError(
            f"lf_attention: a model whose layers all heed it wanted, got {asked[0].lf_attention!r}: {which}, "
            "which no attn_implementation reaches; lf.patch(model, pattern) runs the models that it knows"
        )


def refuse_what_is_not_read(
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    readers: dict[str, Any],
    homes: list[str],
) -> None:
    """Hook of a model whose layers read other configs than its own."""
    left = {path: x for path, x in readers.items() if not config_patterns.is_given(x)}
    if config_patterns.is_given(module.config) and left and any(map(is_ours, left.values())):
        read = ", ".join(f"{home}.config" for home in homes)
        raise PatternError(
            f"lf_attention: on the config that layers read ({read}), or set before the model is made, "
            f"wanted, got it on a {type(module.config).__name__} that none of them reads: {', '.join(left)}"
        )


_OURS = (say_if_cross, refuse_what_is_not_heeded, refuse_what_is_not_read)


def _hook(module: nn.Module, hook: Any) -> None:
    module.register_forward_pre_hook(hook, with_kwargs=True)


def _models(model: nn.Module) -> dict[str, Any]:
    """The models of transformers in a model, itself among them, by path."""
    from transformers import PreTrainedModel

    return {path: x for path, x in model.named_modules() if isinstance(x, PreTrainedModel)}


def _inside(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")


def _name_of(configs: list[Any]) -> str:
    return str(next((config._attn_implementation for config in configs if is_ours(config)), None))
