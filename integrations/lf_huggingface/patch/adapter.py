"""The adapter: which modules of a model are replaced, by which class, with which pattern."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

from lf_backend.errors import PatchError
from lf_backend.patching import Adapter, Patterns, Swap
from lf_backend.pattern.terms import Pattern
from lf_huggingface.interface import attending
from lf_huggingface.patch import config_patterns, routed, upstream_checks
from lf_huggingface.patch.replacements import Replacements

_ALONE = "alone: mask and padding stay upstream's"
_ATTENTION = ("config", "layer_id", "num_heads", "head_dim", "dropout", "query", "key", "value")
_GLOBAL = ("query_global", "key_global", "value_global")
_BIG_BIRD = (
    "query",
    "key",
    "value",
    "num_attention_heads",
    "num_random_blocks",
    "block_size",
    "seed",
    "max_seqlen",
)
_BIG_BIRD_NOTE = (
    "builds no N x N weights; without a pattern of yours, blocks see themselves, their neighbours, the "
    "first, the last and random blocks as upstream has them; a short input runs in full, and only that"
)


_BIG_BIRD_PADDING = "which blocks are global and which are drawn depends on the length of the padded batch"


class Family(NamedTuple):
    """One upstream modeling module and what of it is replaced, by classes of the same names.

    Attributes:
        upstream: name of the modeling module.
        ours: name of the module with our `REPLACEMENTS`, imported when a model holds upstream's classes.
        attention: name of the class that attends, one per layer.
        needs: attributes that ours uses of it.
        root: name of the class whose config rules, and that must be around a layer, unless `layers_alone`.
        others: names of the classes around the layers that are replaced, and the attributes that ours use.
        between: names of the classes that hand the arguments of one to the other.
        note: what the report says about the root, or where that is not replaced, about every layer.
        layers_alone: a layer outside of a model knows its own config.
        padding: why the layers need their padding; "" if they can do without.
        encoder: name of the class that drops padding before its layers run, or whose layers need it.
    """

    upstream: str
    ours: str
    attention: str
    needs: tuple[str, ...]
    root: str
    others: dict[str, tuple[str, ...]]
    between: tuple[str, ...]
    note: str
    layers_alone: bool = False
    padding: str = ""
    encoder: str = ""


FAMILIES = (
    Family(
        "transformers.models.longformer.modeling_longformer",
        "lf_huggingface.patch.longformer",
        "LongformerSelfAttention",
        (*_ATTENTION, *_GLOBAL),
        "LongformerModel",
        {"LongformerModel": ("embeddings", "encoder", "pooler", "config"), "LongformerEncoder": ("layer",)},
        ("LongformerLayer", "LongformerAttention"),
        "builds no N x N mask, pads to no multiple of the window",
        layers_alone=True,
        encoder="LongformerEncoder",
    ),
    Family(
        "transformers.models.led.modeling_led",
        "lf_huggingface.patch.led",
        "LEDEncoderSelfAttention",
        (*_ATTENTION, *_GLOBAL),
        "LEDEncoder",
        {"LEDEncoder": ("embed_tokens", "embed_positions", "layernorm_embedding", "layers", "layerdrop")},
        ("LEDEncoderLayer", "LEDEncoderAttention"),
        "builds no N x N mask, pads to no multiple of the window; no token is global unless "
        "global_attention_mask says so, in generate() as well; a decoder stays dense and untouched",
        layers_alone=True,
        encoder="LEDEncoder",
    ),
    Family(
        "transformers.models.big_bird.modeling_big_bird",
        "lf_huggingface.patch.big_bird",
        "BigBirdBlockSparseAttention",
        _BIG_BIRD,
        "BigBirdModel",
        {"BigBirdModel": ("config",)},
        (),
        _BIG_BIRD_NOTE,
        padding=_BIG_BIRD_PADDING,
        encoder="BigBirdModel",
    ),
    Family(
        "transformers.models.bigbird_pegasus.modeling_bigbird_pegasus",
        "lf_huggingface.patch.bigbird_pegasus",
        "BigBirdPegasusBlockSparseAttention",
        _BIG_BIRD,
        "BigBirdPegasusEncoder",
        {"BigBirdPegasusEncoder": ("config",)},
        (),
        f"{_BIG_BIRD_NOTE}; a decoder stays dense and untouched",
        padding=_BIG_BIRD_PADDING,
        encoder="BigBirdPegasusEncoder",
    ),
    Family(
        "transformers.models.longt5.modeling_longt5",
        "lf_huggingface.patch.longt5",
        "LongT5LocalAttention",
        (
            "q",
            "k",
            "v",
            "o",
            "n_heads",
            "block_len",
            "dropout",
            "is_decoder",
            "has_relative_attention_bias",
            "relative_attention_num_buckets",
            "relative_attention_max_distance",
        ),
        "LongT5Stack",
        {},
        (),
        "with T5's position bias; a decoder stays dense and untouched",
        padding="its layers make masks and biases of their own from the length of the padded batch",
        encoder="LongT5LocalAttention",
    ),
    Family(
        "transformers.models.pegasus_x.modeling_pegasus_x",
        "lf_huggingface.patch.pegasus_x",
        "PegasusXGlobalLocalAttention",
        ("q_proj", "k_proj", "v_proj", "out_proj", "num_heads", "scaling", "dropout"),
        "PegasusXEncoder",
        {"PegasusXEncoder": ("config",)},
        (),
        "global tokens are the model's own; every other layer staggers by half a block; a decoder stays "
        "dense and untouched",
        padding="its layers stagger blocks of the padded batch, and run on copies of its global tokens",
        encoder="PegasusXEncoder",
    ),
)


class HuggingFace(Adapter):
    """Models of transformers: those that attend in code of their own, wherever in a model they are, and
    otherwise those that attend through the interface."""

    name = "huggingface"

    def plan(self, model: nn.Module, pattern: Patterns) -> Sequence[Swap]:
        """See `Adapter`. A list of patterns is one per layer of each encoder found."""
        found = [
            swap for family in FAMILIES if _holds(model, family) for swap in _swaps(family, model, pattern)
        ]
        return found if found or _unfit(model) else list(routed.swaps(model, pattern))

    def refusal(self, model: nn.Module) -> str:
        names = [name for family in FAMILIES for name in (*family.others, family.attention)]
        text = (
            f"looks for {', '.join(names)} of transformers, and for layers that take an attn_implementation; "
            "none of them is here"
        )
        text += "".join(f"; {name} attends in code of its own" for name in sorted(_on_their_own(model)))
        text += "".join(f"; {name}: {_UNFIT[name]}" for name in _unfit(model))
        close = sorted({name for module in model.modules() for name in _subclass_of_known(module)})
        return f"{text}; a subclass, which may differ, is not taken: {', '.join(close)}" if close else text


_DENSE = "attention_type='original_full' is dense by choice; set_attention_type('block_sparse') first"
_UNFIT = {
    "BigBirdSelfAttention": _DENSE,
    "BigBirdPegasusSelfAttention": _DENSE,
    "LongT5TransientGlobalAttention": "its side tokens have a bias of their own, which the operator has not; "
    "encoder_attention_type='local' fits",
}


def _unfit(model: nn.Module) -> list[str]:
    return sorted({type(module).__name__ for module in model.modules()} & _UNFIT.keys())


def is_known(model: nn.Module) -> bool:
    """Whether there is something to patch in a model; without importing transformers."""
    return any(_holds(model, family) for family in FAMILIES)


def _holds(model: nn.Module, family: Family) -> bool:
    return any(_is(module, family.upstream, family.attention) for module in model.modules())


def _swaps(family: Family, model: nn.Module, pattern: Patterns) -> Iterator[Swap]:
    upstream = import_module(family.upstream)
    ours: Replacements = import_module(family.ours).REPLACEMENTS
    modules = dict(model.named_modules())
    roots = {path: x for path, x in modules.items() if type(x) is getattr(upstream, family.root)}
    # A class around the layers is replaced with the model that reads the masks for it, or not at all.
    for path, module in modules.items():
        name = type(module).__name__
        if name in family.others and _is(module, family.upstream, name) and _root(path, roots):
            _check(getattr(upstream, name), ours.of(name), module, family.others[name])
            note = family.note if name == family.root else ""
            padding = family.padding if name == family.encoder else None
            yield Swap(path, module, ours.of(name), note=note, padding=padding)
    known, new = getattr(upstream, family.attention), ours.of(family.attention)
    for between in family.between:
        upstream_checks.check_forward(getattr(upstream, between), new)
    seen: Counter[str] = Counter()
    for path, module in modules.items():
        if type(module) is known and (family.layers_alone or _root(path, roots)):
            _check(known, new, module, family.needs)
            layer = _Layer(path, module, next(iter(_root(path, roots)), None), seen)
            padding = family.padding if family.encoder == family.attention else None
            asked = layer.pattern(ours, roots, pattern)
            yield Swap(path, module, new, asked, layer.note(family, pattern), padding)


@dataclass
class _Layer:
    """One attention layer; its number is its own word, or its place under its root."""

    path: str
    module: Any
    root: str | None
    seen: Counter[str]

    def pattern(self, ours: Replacements, roots: dict[str, nn.Module], asked: Patterns) -> Pattern | None:
        """Return the pattern that the module shall run, None if it runs none."""
        config: Any = self.module.config if self.root is None else roots[self.root].config
        found = ours.native(config) if asked is None else _asked(ours, config, asked)
        index: int = getattr(self.module, "layer_id", self.seen[self.root or ""])
        self.seen[self.root or ""] += 1
        if index >= len(found):
            raise PatchError(f"{self.path}: layer_id < {len(found)} (num_hidden_layers) wanted, got {index}")
        return found[index]

    def note(self, family: Family, asked: Patterns) -> str:
        """Return the report's words about a module."""
        notes = [_ALONE] if self.root is None else []
        notes += [family.note] if family.root not in family.others else []
        if asked is None and family.layers_alone:
            notes += config_patterns.unknown_upstream(self.module.config)
        return "; ".join(notes)


def _asked(ours: Replacements, config: Any, asked: Pattern | tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """Return the user's patterns, one per layer, which fit."""
    found = config_patterns.override(asked, config)
    for pattern in found:
        ours.check(pattern)
    return found


def _root(path: str, roots: Iterable[str]) -> list[str]:
    """The root that a module is in, at most one: the innermost."""
    return sorted((root for root in roots if _inside(path, root)), key=len)[-1:]


def _check(
    upstream: type[nn.Module], ours: type[nn.Module], module: nn.Module, attributes: Sequence[str]
) -> None:
    upstream_checks.check_forward(upstream, ours)
    upstream_checks.TRANSFORMERS.check_attributes(module, attributes)


def _inside(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")


def _is(module: nn.Module, home: str, name: str) -> bool:
    return type(module).__module__ == home and type(module).__name__ == name


def _on_their_own(model: nn.Module) -> set[str]:
    """Names of classes that attend, and not through transformers' interface."""
    return {type(module).__name__ for _, module in attending.on_their_own(model)}


def _subclass_of_known(module: nn.Module) -> Iterator[str]:
    for kind in type(module).__mro__[1:]:
        for family in FAMILIES:
            if kind.__module__ == family.upstream and kind.__name__ in (*family.others, family.attention):
                yield f"{type(module).__name__} of {kind.__name__}"
