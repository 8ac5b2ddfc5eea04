"""The adapter: which modules of a model are replaced, by which class, with which pattern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

from lf_backend.errors import PatchError
from lf_backend.patching import Adapter, Patterns, Swap
from lf_backend.pattern import Pattern
from lf_huggingface import patterns, seams

_PROJECTIONS = ("query", "key", "value", "query_global", "key_global", "value_global")
_ATTENTION = ("config", "layer_id", "num_heads", "head_dim", "dropout", *_PROJECTIONS)
_ALONE = "alone: mask and padding stay upstream's"


class Family(NamedTuple):
    """One upstream modeling module and what of it is replaced, by classes of the same names.

    Attributes:
        upstream: name of the modeling module.
        ours: name of the module with the replacements.
        attention: name of the class that attends, one per layer.
        others: names of the classes around it, and the attributes that ours use of them.
        between: names of the classes that hand the arguments of one to the other.
        note: what the report says about the first of `others`.
    """

    upstream: str
    ours: str
    attention: str
    others: dict[str, tuple[str, ...]]
    between: tuple[str, ...]
    note: str


FAMILIES = (
    Family(
        "transformers.models.longformer.modeling_longformer",
        "lf_huggingface.longformer",
        "LongformerSelfAttention",
        {"LongformerModel": ("embeddings", "encoder", "pooler", "config"), "LongformerEncoder": ("layer",)},
        ("LongformerLayer", "LongformerAttention"),
        "builds no N x N mask, pads to no multiple of the window",
    ),
    Family(
        "transformers.models.led.modeling_led",
        "lf_huggingface.led",
        "LEDEncoderSelfAttention",
        {"LEDEncoder": ("embed_tokens", "embed_positions", "layernorm_embedding", "layers", "layerdrop")},
        ("LEDEncoderLayer", "LEDEncoderAttention"),
        "builds no N x N mask, pads to no multiple of the window; no token is global unless "
        "global_attention_mask says so, in generate() as well; a decoder stays dense and untouched",
    ),
)


class HuggingFace(Adapter):
    """Longformer and LED's encoder, wherever in a model they are."""

    name = "huggingface"

    def plan(self, model: nn.Module, pattern: Patterns) -> Sequence[Swap]:
        """See `Adapter`. A list of patterns is one per layer of each encoder found."""
        return [
            swap
            for family in FAMILIES
            if any(type(module).__module__ == family.upstream for module in model.modules())
            for swap in _swaps(family, model, pattern)
        ]

    def refusal(self, model: nn.Module) -> str:
        names = [name for family in FAMILIES for name in (*family.others, family.attention)]
        text = f"looks for {', '.join(names)} of transformers; none of them is here"
        if routed := sorted({type(module).__name__ for module in model.modules() if _is_routed(module)}):
            text += (
                f"; {', '.join(routed)} attends through transformers' interface: set config.lf_attention and "
                "attn_implementation='lf' instead"
            )
        close = sorted({name for module in model.modules() for name in _subclass_of_known(module)})
        return f"{text}; a subclass, which may differ, is not taken: {', '.join(close)}" if close else text


def _swaps(family: Family, model: nn.Module, pattern: Patterns) -> Iterator[Swap]:
    upstream, ours = import_module(family.upstream), import_module(family.ours)
    modules = dict(model.named_modules())
    whole = {
        path: module
        for path, module in modules.items()
        if any(type(module) is getattr(upstream, name) for name in family.others)
    }
    # An encoder is patched with the model that reads the masks for it, or not at all.
    outer = next(iter(family.others))
    roots = [path for path, module in whole.items() if type(module).__name__ == outer]
    for path, module in whole.items():
        if any(_inside(path, root) for root in roots):
            name = type(module).__name__
            _check(getattr(upstream, name), getattr(ours, name), module, family.others[name])
            yield Swap(path, module, getattr(ours, name), note=family.note if name == outer else "")
    known, new = getattr(upstream, family.attention), getattr(ours, family.attention)
    for between in family.between:
        seams.check_forward(getattr(upstream, between), new)
    for path, module in modules.items():
        if type(module) is known:
            _check(known, new, module, _ATTENTION)
            notes = [] if any(_inside(path, root) for root in roots) else [_ALONE]
            notes += patterns.unknown_upstream(module.config) if pattern is None else []
            yield Swap(path, module, new, _pattern(path, module, pattern), "; ".join(notes))


def _pattern(path: str, layer: Any, pattern: Patterns) -> Pattern:
    found = patterns.of_config(layer.config) if pattern is None else patterns.override(pattern, layer.config)
    index: int = layer.layer_id
    if index >= len(found):
        raise PatchError(f"{path}: layer_id < {len(found)} (num_hidden_layers) wanted, got {index}")
    return found[index]


def _check(
    upstream: type[nn.Module], ours: type[nn.Module], module: nn.Module, attributes: Sequence[str]
) -> None:
    seams.check_forward(upstream, ours)
    seams.check_attributes(module, attributes)


def _inside(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")


def _is_routed(module: nn.Module) -> bool:
    """Whether a model of transformers takes an attn_implementation; without importing transformers."""
    can_set: Any = getattr(module, "_can_set_attn_implementation", None)
    return can_set is not None and bool(can_set())


def _subclass_of_known(module: nn.Module) -> Iterator[str]:
    for kind in type(module).__mro__[1:]:
        for family in FAMILIES:
            if kind.__module__ == family.upstream and kind.__name__ in (*family.others, family.attention):
                yield f"{type(module).__name__} of {kind.__name__}"
