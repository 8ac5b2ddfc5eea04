"""Configs that hold a pattern, where transformers makes, saves and changes models.

`lf_attention` means nothing to another attention, and transformers picks one when none is asked for. So

- a config that holds a pattern and asks for no attention gets ours,
- it is saved with "attn_implementation": "lf", which a process without this package refuses to load,
- a model that gets ours is `watched`.

An attention that is asked for by name is what runs.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

from lf_backend.errors import UnsupportedError
from lf_huggingface.interface import config_patterns
from lf_huggingface.interface.attending import names_used
from lf_huggingface.interface.names import NAME, is_ours, registered
from lf_huggingface.interface.watched import unwatch, watch


def follow_models() -> None:
    """Be asked when transformers chooses an attention, has made a model, and sets another; once."""
    from transformers import PreTrainedModel

    _wrap(PreTrainedModel, "get_correct_attn_implementation", _chosen)
    _wrap(PreTrainedModel, "post_init", _then_watched)
    _wrap(PreTrainedModel, "set_attn_implementation", _then_watched)


def follow_configs() -> None:
    """Be asked when transformers writes a config; once."""
    from transformers.configuration_utils import PreTrainedConfig

    _wrap(PreTrainedConfig, "to_dict", _with_our_name)


def _wrap(kind: Any, name: str, around: Callable[..., Any]) -> None:
    stock = getattr(kind, name)
    if hasattr(stock, "lf_follows"):
        return

    @functools.wraps(stock)
    def ours(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(self, stock, *args, **kwargs)

    ours.lf_follows = True  # type: ignore[attr-defined]
    setattr(kind, name, ours)


def _chosen(model: Any, stock: Any, requested_attention: str | None, *args: Any, **kwargs: Any) -> Any:
    if requested_attention is None and config_patterns.is_given(model.config) and NAME in registered:
        requested_attention = NAME
    if requested_attention in registered:
        _check_takes_names(type(model), requested_attention)
    return stock(model, requested_attention, *args, **kwargs)


def _then_watched(model: Any, stock: Any, *args: Any, **kwargs: Any) -> Any:
    found = stock(model, *args, **kwargs)
    if any(is_ours(getattr(module, "config", None)) for module in model.modules()):
        watch(model)
    elif registered:
        unwatch(model)
    return found


def _with_our_name(config: Any, stock: Any) -> Any:
    found = stock(config)
    if (name := _name_for(config)) is not None:
        found["attn_implementation"] = name
    return found


def _name_for(config: Any) -> Any:
    """Our name where a config holds a pattern; as a dict for the parts of one that has parts."""
    own = None
    if config_patterns.is_given(config):
        own = config._attn_implementation if is_ours(config) else NAME
    found = {name: getattr(config, name, None) for name in config.sub_configs}
    parts = {name: _name_for(part) for name, part in found.items() if hasattr(part, "sub_configs")}
    if not parts:
        return own
    asked = {name: value for name, value in {"": own, **parts}.items() if value is not None}
    return asked or None


def _check_takes_names(kind: Any, name: str) -> None:
    """Raise UnsupportedError for a model that has a class of its own for each name of an attention."""
    for table in _tables(kind):
        if name not in table:
            raise UnsupportedError(
                f"attn_implementation: one of {sorted(table)} wanted for {kind.__name__}, which attends in "
                f"code of its own, got {name!r}"
            )


@lru_cache(maxsize=512)
def _tables(kind: Any) -> tuple[tuple[str, ...], ...]:
    """The names in tables of attention classes that the modules of a model are made from."""
    known = vars(sys.modules[kind.__module__])
    found: dict[str, tuple[str, ...]] = {}
    seen, left = {kind}, [kind]
    while left:
        for name in names_used(left.pop()):
            value = known.get(name)
            if isinstance(value, type) and issubclass(value, nn.Module) and value not in seen:
                seen.add(value)
                left.append(value)
            elif isinstance(value, dict) and "eager" in value:
                found[name] = tuple(map(str, value))
    return tuple(found.values())
