"""`config.lf_attention`: the pattern that the user wants, as plain data in a model's config.

    config.lf_attention = "window(256, 256) | global(0)"
    config.lf_attention = lf.to_dict(lf.Window(256, 256) | lf.Global(0))
    config.lf_attention = lf.schedules.to_list(lf.schedules.growing(12, 32, 512))  # one per layer

It is saved and loaded with the config, and takes the place of the model's own window. A causal model
stays causal.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from lf_backend.errors import PatternError
from lf_backend.pattern.notation import from_dict, parse
from lf_backend.pattern.terms import Pattern
from lf_backend.schedules import from_list

NAME = "lf_attention"


def is_given(config: Any) -> bool:
    """Return whether a config holds a pattern."""
    return getattr(config, NAME, None) is not None


Given = tuple[Any, int | None, int | None, int | None]


def layers(config: Any) -> tuple[Pattern, ...]:
    """The patterns of `config.lf_attention`: none if it is not set, one for all layers, or one each.

    Raises:
        PatternError: what cannot be read, a wrong number of layers or heads, or a window or global token
            that the model has no positions for.
    """
    return read(*given(config))


def given(config: Any) -> Given:
    """Return the arguments of `read` for a config: plain data, which torch.compile takes for constant."""
    sizes = [getattr(config, name, None) for name in _SIZES]
    count, heads, positions = [size if isinstance(size, int) else None for size in sizes]
    return getattr(config, NAME, None), count, heads, positions


def read(value: Any, layers: int | None, heads: int | None, positions: int | None) -> tuple[Pattern, ...]:
    """`layers` of what is `given`."""
    if value is None:
        return ()
    try:
        text = json.dumps(value)
    except TypeError:
        raise PatternError(
            f"{NAME}: plain data (a dict, a string, or a list) wanted, got {value!r}"
        ) from None
    return _read(text, layers, heads, positions)


_SIZES = ("num_hidden_layers", "num_attention_heads", "max_position_embeddings")


@lru_cache(maxsize=256)
def _read(text: str, layers: int | None, heads: int | None, positions: int | None) -> tuple[Pattern, ...]:
    found = _patterns(json.loads(text))
    if isinstance(json.loads(text), list) and layers is not None and len(found) != layers:
        raise PatternError(f"{NAME}: one pattern, or one per layer wanted, {layers} layers, got {len(found)}")
    for pattern in found:
        if heads is not None:
            pattern.check_heads(heads)
        if positions is not None:
            _check_reach(pattern, positions)
    return found


def _patterns(value: Any) -> tuple[Pattern, ...]:
    if isinstance(value, list):
        return from_list(value)
    return (parse(value) if isinstance(value, str) else from_dict(value, NAME),)


def _check_reach(pattern: Pattern, positions: int) -> None:
    spans = [span for band in pattern.lowered.bands for span in band.span() if span is not None]
    reach = max([*spans, *pattern.global_positions], default=0)
    if reach >= positions:
        raise PatternError(
            f"{NAME}: reach < {positions} (max_position_embeddings) wanted, {pattern} reaches {reach}"
        )
