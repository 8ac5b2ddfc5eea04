"""The pattern of every layer, read from a config: what it says, upstream's ignored words included.

- `attention_window`: keys of a window without self, half on each side; even, an int or one per layer.
- `attention_dilation`: an int for all layers, or one entry per layer, which is an int or a list of one
  int per head. So reads allenai's original; transformers accepts the word and ignores it.
- `autoregressive`: True cuts the future, global tokens included. allenai's original knows the word;
  transformers ignores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lf_backend.errors import PatternError
from lf_backend.pattern.terms import Causal, Pattern, Window


def of_config(config: Any) -> tuple[Pattern, ...]:
    """One pattern per layer, as the config says.

    Raises:
        PatternError: a value that means nothing, or a wrong number of values, wanted and got.
    """
    layers = config.num_hidden_layers
    windows = _per_layer("attention_window", config.attention_window, layers)
    dilations = _per_layer("attention_dilation", getattr(config, "attention_dilation", 1), layers)
    autoregressive = getattr(config, "autoregressive", False)
    if not isinstance(autoregressive, bool):
        raise PatternError(f"autoregressive: True or False wanted, got {autoregressive!r}")
    return tuple(_window(config, index, windows, dilations, autoregressive) for index in range(layers))


def override(pattern: Pattern | tuple[Pattern, ...], config: Any) -> tuple[Pattern, ...]:
    """One pattern per layer, from one for all or from a list.

    Raises:
        PatternError: the number of patterns is not that of the layers, or a pattern is written for
            another number of heads.
    """
    layers = config.num_hidden_layers
    chosen = (pattern,) * layers if isinstance(pattern, Pattern) else pattern
    if len(chosen) != layers:
        raise PatternError(f"pattern: one per layer wanted, {layers} layers, got {len(chosen)} patterns")
    for item in chosen:
        item.check_heads(config.num_attention_heads)
    return chosen


def left_to_the_layer(config: Any) -> tuple[None, ...]:
    """No pattern, where a layer's own depends on the length."""
    return tuple(None for _ in range(config.num_hidden_layers))


def unknown_upstream(config: Any) -> list[str]:
    """Name what the config asks for and transformers would not do, for the report."""
    asked = {"attention_dilation": 1, "autoregressive": False}
    return [
        f"runs {name}={value!r}, which transformers ignores"
        for name, default in asked.items()
        if not _all(value := getattr(config, name, default), default)
    ]


def _window(
    config: Any, index: int, windows: Sequence[Any], dilations: Sequence[Any], autoregressive: bool
) -> Pattern:
    width, dilation = windows[index], dilations[index]
    if isinstance(width, bool) or not isinstance(width, int) or width <= 0 or width % 2:
        raise PatternError(
            f"attention_window: an even number > 0 (half on each side) wanted, layer {index} has {width!r}"
        )
    try:
        window = Window(width // 2, width // 2, dilation)
        window.check_heads(config.num_attention_heads)
    except PatternError as error:
        raise PatternError(f"attention_dilation: layer {index}: {error}") from None
    return window & Causal() if autoregressive else window


def _per_layer(name: str, value: Any, layers: int) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        return [value] * layers
    if len(value) != layers:
        raise PatternError(f"{name}: one entry per layer wanted, {layers} layers, got {len(value)}")
    return value


def _all(value: Any, default: Any) -> bool:
    """Whether a nested list holds nothing but the default."""
    if isinstance(value, list | tuple):
        return all(_all(item, default) for item in value)
    return bool(value == default)
