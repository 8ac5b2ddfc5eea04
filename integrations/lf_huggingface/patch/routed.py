"""Models that attend through transformers' interface: their classes stay, their configs are set.

`lf.patch` does for them what `attn_implementation="lf"` and `config.lf_attention` do, reports it and takes it
back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from lf_backend.errors import PatchError
from lf_backend.patching import Change, Patterns, Swap
from lf_backend.pattern.notation import to_dict
from lf_backend.pattern.terms import Pattern
from lf_huggingface.interface import attending, config_patterns
from lf_huggingface.interface.names import NAME, is_ours, registered
from lf_huggingface.interface.watched import unwatch, watch

_NOTE = "through transformers' interface"


class Configured(Change):
    """Configs that ask for our attention, and hold a pattern if there is one."""

    def __init__(self, model: nn.Module, configs: list[Any], value: Any) -> None:
        self.model, self.configs, self.value = model, configs, value
        self.before: list[dict[str, Any]] = []

    def apply(self) -> None:
        self.before = [dict(vars(config)) for config in self.configs]
        for config in self.configs:
            config._attn_implementation_internal = NAME  # not of its parts, as the setter does
            if self.value is not None:
                config.lf_attention = self.value
        watch(self.model)

    def undo(self) -> None:
        for config, before in zip(self.configs, self.before, strict=True):
            config._attn_implementation_internal = before["_attn_implementation_internal"]
            if config_patterns.NAME in before:
                config.lf_attention = before[config_patterns.NAME]
            elif config_patterns.NAME in vars(config):
                del config.lf_attention
        unwatch(self.model)
        if any(map(is_ours, self.configs)):
            watch(self.model)


def swaps(model: nn.Module, pattern: Patterns) -> Iterator[Swap]:
    """Plan for a model of which some layers attend through the interface.

    Raises:
        PatchError: "lf" is not registered; a pattern for layers of several kinds.
        PatternError: a pattern that does not fit.
    """
    layers = list(attending.routed(model))
    if not layers:
        return
    if NAME not in registered:
        raise PatchError(
            f"model: {NAME!r} registered with transformers wanted, lf_huggingface.register() does so"
        )
    configs = list({id(module.config): module.config for _, module in layers}.values())
    value = None if pattern is None else _plain(pattern)
    if value is not None and len(kinds := sorted({type(config).__name__ for config in configs})) > 1:
        raise PatchError(
            f"model: one whose layers read configs of one kind wanted for a pattern, got {', '.join(kinds)}; "
            "patch the part that is meant"
        )
    change: Configured | None = Configured(model, configs, value)
    own = sorted({type(module).__name__ for _, module in attending.on_their_own(model)})
    for path, module in layers:
        note = _NOTE
        if value is not None and attending.places_of_keys(attending.kind_of(module)):
            note += "; attention to another sequence stays in full"
        if own and change is not None:
            note += f"; {', '.join(own)} attends in code of its own, and stays as it is"
        yield Swap(path, module, type(module), _of_layer(module, value), note, _PADDING, change)
        change = None  # once


_PADDING = "it attends through transformers' interface: `lf_huggingface.unpadded(model)` drops its padding"


def _plain(pattern: Pattern | tuple[Pattern, ...]) -> Any:
    return to_dict(pattern) if isinstance(pattern, Pattern) else [to_dict(item) for item in pattern]


def _of_layer(module: Any, value: Any) -> Pattern | None:
    """The pattern of a layer, None for the model's own."""
    _, *sizes = config_patterns.given(module.config)
    found = config_patterns.read(value, *sizes)
    index = getattr(module, "layer_idx", None) or 0
    return found[min(index, len(found) - 1)] if found else None
