"""The part of a mask that its data have no say in, and the patterns that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from types import SimpleNamespace
from typing import Any

from lf_backend._graphs import constant_in_graphs
from lf_backend.errors import PatternError, UnsupportedError
from lf_backend.pattern.notation import parse
from lf_backend.pattern.terms import Causal, Pattern, intersection
from lf_huggingface.interface import config_patterns


@dataclass(frozen=True)
class MaskKind:
    """The meaning of a mask, whatever its data.

    Attributes:
        pattern: upstream's own window and causality.
        layers: the patterns that run in its place, by `config.lf_attention`: none, one for all layers, or one
            each.
        aligned: the last keys are those of the queries; otherwise keys are slots, some of them unfilled.
        padded: some keys may be padding.
        packed: the mask says which document a token belongs to.
        sinks: leading keys that are global tokens from before the window; None if the cache is not a
            `WindowCache`.
    """

    pattern: Pattern
    layers: tuple[Pattern, ...] = ()
    aligned: bool = True
    padded: bool = False
    packed: bool = False
    sinks: int | None = None

    def of_layer(self, layer: int | None, name: str) -> Pattern:
        """The pattern that a layer of self-attention runs.

        Raises:
            UnsupportedError: one pattern per layer, and a module that does not know its place.
            PatternError: fewer patterns than layers.
        """
        if not self.layers:
            return self.pattern
        if len(self.layers) == 1:
            return self.layers[0]
        if layer is None:
            raise UnsupportedError(
                f"lf_attention: one pattern for all layers wanted, got {len(self.layers)}: {name} of this "
                "model does not know which layer it is"
            )
        if layer >= len(self.layers):
            raise PatternError(
                f"lf_attention: one pattern for all layers, or one for each, wanted, got {len(self.layers)}: "
                f"{name} is layer {layer}, counted from 0"
            )
        return self.layers[layer]


# As attributes `kind_1`, ... of which torch.compile sees those that were made in the same trace.
_kinds = SimpleNamespace()
_lock = Lock()


def kind_for(
    config: Any,
    pattern: Pattern,
    aligned: bool,
    padded: bool = False,
    packed: bool = False,
    sinks: int | None = None,
) -> MaskKind:
    """The kind for a model and its own pattern, one object for equal ones. A causal model stays causal."""
    name = _name(config_patterns.given(config), pattern.text, aligned, padded, packed, sinks)
    found: MaskKind = getattr(_kinds, name)
    return found


@constant_in_graphs
def _name(
    given: config_patterns.Given, text: str, aligned: bool, padded: bool, packed: bool, sinks: int | None
) -> str:
    """Return the place where a kind is kept: a string, which a graph may hold."""
    return _placed(config_patterns.read(*given), text, aligned, padded, packed, sinks)


@lru_cache(maxsize=1024)
def _placed(
    layers: tuple[Pattern, ...], text: str, aligned: bool, padded: bool, packed: bool, sinks: int | None
) -> str:
    pattern = parse(text)
    if pattern.is_causal:
        layers = tuple(intersection(layer, Causal()) for layer in layers)
    kind = MaskKind(pattern, layers, aligned, padded, packed, sinks)
    with _lock:
        known = list(vars(_kinds).values())
        if kind not in known:
            known.append(kind)
            setattr(_kinds, f"kind_{len(known)}", kind)
        return f"kind_{known.index(kind) + 1}"
