"""The plan of a patch: modules of a fairseq model, the classes that replace theirs, and patterns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from fairseq.modules import MultiheadAttention, TransformerSentenceEncoderLayer
from fairseq.modules.transformer_layer import (
    TransformerDecoderLayer,
    TransformerDecoderLayerBase,
    TransformerEncoderLayer,
    TransformerEncoderLayerBase,
)
from torch import nn

from lf_backend.errors import PatchError, PatternError
from lf_backend.patching import Patterns, Swap
from lf_backend.pattern.terms import Causal, Pattern, intersection
from lf_fairseq import pattern_option
from lf_fairseq.attention.self_attention import SparseMultiheadAttention
from lf_fairseq.patch.stacks import CONTAINERS, LISTS, STACKS
from lf_fairseq.upstream import FAIRSEQ

_ENCODER_LAYERS = (TransformerEncoderLayerBase, TransformerEncoderLayer, TransformerSentenceEncoderLayer)
_DECODER_LAYERS = (TransformerDecoderLayerBase, TransformerDecoderLayer)
_LAYERS = (*_ENCODER_LAYERS, *_DECODER_LAYERS)
_DENSE = "encoder-decoder attention stays dense"
_UNKNOWN = "in a stack that is not known: masks and global tokens stay as they are"


class Side(NamedTuple):
    """A stack of layers.

    Attributes:
        path: of the encoder or decoder, or of what holds the layers if that is not known.
        stack: the encoder or decoder, or None if it is not known.
        causal: whether the stack hides the future: a known decoder does. Decoder layers in another, such as
            one that is not autoregressive, see what its masks let them see.
        layers: by path, bottom first.
    """

    path: str
    stack: nn.Module | None
    causal: bool
    layers: dict[str, nn.Module]

    @property
    def attends(self) -> bool:
        """Whether its layers look at an encoder as well."""
        return any(getattr(layer, "encoder_attn", None) is not None for layer in self.layers.values())


def swaps(model: nn.Module, pattern: Patterns) -> list[Swap]:
    """Plan the swaps of a model with modules of fairseq, as `Adapter.plan` returns them.

    Raises:
        PatchError: a layer that cannot be patched, and why.
        PatternError: no pattern, or one that does not fit.
    """
    found = sides(model)
    if found and pattern is None:
        raise PatternError("pattern: one wanted, since fairseq's models have none of their own, got None")
    past = any(not side.causal for side in found)
    planned = [swap for side in found for swap in _stack(side)]
    for side in found:
        planned += _attentions(side, pattern, past)  # type: ignore[arg-type]
    return [*_containers(model, found), *planned]


def sides(model: nn.Module) -> list[Side]:
    """All stacks of a model, in its order."""
    modules = dict(model.named_modules())
    found: dict[tuple[str, bool], Side] = {}
    for path, layer in modules.items():
        if type(layer) in _LAYERS:
            home, decodes = _home(path, modules), type(layer) in _DECODER_LAYERS
            stack = modules.get(home)
            known = stack if type(stack) in STACKS else None
            side = Side(home, known, decodes and known is not None, {})
            found.setdefault((home, decodes), side).layers[path] = layer
    return list(found.values())


def refusal(model: nn.Module) -> str:
    """Why there is nothing to replace."""
    names = ", ".join(kind.__name__ for kind in _LAYERS)
    text = f"looks for self_attn of {names} of fairseq; none of them is here"
    close = {
        f"{type(module).__name__} of {base.__name__}"
        for module in model.modules()
        for base in type(module).__mro__[1:]
        if base in (*_LAYERS, MultiheadAttention)
    }
    return (
        f"{text}; a subclass, which may differ, is not taken: {', '.join(sorted(close))}" if close else text
    )


def _home(path: str, modules: dict[str, nn.Module]) -> str:
    """Path of the nearest known stack around a layer, else of the module that holds it."""
    parts = path.split(".") if path else [""]
    for end in range(len(parts) - 1, -1, -1):
        above = ".".join(parts[:end])
        if type(modules[above]) in STACKS:
            return above
    return ".".join(parts[:-1])


def _attentions(side: Side, pattern: Pattern | tuple[Pattern, ...], past: bool) -> Iterator[Swap]:
    """The self-attention of every layer; decoders run the `past` of a pattern, if so."""
    count, where = len(side.layers), side.path or type(side.stack).__name__
    found = (pattern,) * count if isinstance(pattern, Pattern) else pattern
    if len(found) != count:
        raise PatternError(
            f"pattern: one, or one per layer wanted, {count} layers in {where}, got {len(found)}; an encoder "
            "and a decoder may be patched one by one"
        )
    if side.causal and past:
        found = tuple(intersection(one, Causal()) for one in found)
    for index, (path, layer) in enumerate(side.layers.items()):
        attention, at = _checked(path, layer), _join(path, "self_attn")
        (fitted,) = pattern_option.fit(
            [found[index]], causal=side.causal, heads=attention.num_heads, option=f"pattern: {at}"
        )
        yield Swap(at, attention, SparseMultiheadAttention, fitted, "" if side.stack else _UNKNOWN)


def _checked(path: str, layer: Any) -> Any:
    """The self-attention of a layer, one that can be patched."""
    where, attention = _join(path, "self_attn"), layer.self_attn
    if type(attention) is not MultiheadAttention:
        raise PatchError(f"{where}: fairseq's MultiheadAttention wanted, got {type(attention).__name__}")
    stock, ours = MultiheadAttention.forward, SparseMultiheadAttention.forward
    FAIRSEQ.check_call(stock, ours, "MultiheadAttention.forward")
    FAIRSEQ.check_attributes(attention, _ATTRIBUTES)
    given = {
        "bias_k and bias_v (add_bias_kv)": attention.bias_k is not None,
        "add_zero_attn": attention.add_zero_attn,
        "cross_self_attention": not attention.self_attention,
        "xformers_att_config": getattr(attention, "use_xformers", False),
        "onnx_trace": attention.onnx_trace,
    }
    if names := [name for name, is_given in given.items() if is_given]:
        raise PatchError(f"{where}: self-attention without {' and '.join(names)} wanted, got one with it")
    return attention


_ATTRIBUTES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "num_heads",
    "head_dim",
    "scaling",
    "dropout_module",
    "bias_k",
    "bias_v",
    "add_zero_attn",
    "self_attention",
    "onnx_trace",
)


def _stack(side: Side) -> Iterator[Swap]:
    """The stack itself and its list of layers."""
    stack: Any = side.stack
    if stack is None:
        return
    kind, layers = type(stack), type(stack.layers)
    for method, wanted in (_DECODER if side.causal else _ENCODER).items():
        FAIRSEQ.check_takes(getattr(kind, method), wanted, f"{kind.__name__}.{method}")
    mask = "self_attn_padding_mask"
    for layer in side.layers.values():
        name = "encoder_padding_mask" if type(layer) in _ENCODER_LAYERS[:2] else mask
        FAIRSEQ.check_takes(type(layer).forward, [name], f"{type(layer).__name__}.forward")
    if layers not in LISTS:
        raise PatchError(f"{_join(side.path, 'layers')}: a list of layers wanted, got {layers.__name__}")
    notes = ["builds no T x T mask"] * side.causal + [_DENSE] * side.attends
    yield Swap(side.path, stack, STACKS[kind], note="; ".join(notes))
    yield Swap(_join(side.path, "layers"), stack.layers, LISTS[layers])


_ENCODER: dict[str, tuple[str, ...]] = {"forward": ()}
_DECODER = {
    "extract_features": (
        "prev_output_tokens", "encoder_out", "incremental_state", "full_context_alignment", "alignment_layer",
        "alignment_heads",
    ),
    "buffered_future_mask": ("tensor",),
}  # fmt: skip


def _containers(model: nn.Module, found: list[Side]) -> Iterator[Swap]:
    """Yield the modules around an encoder, which pass the batch's global tokens on."""
    stacks = {id(side.stack) for side in found if side.stack is not None}
    for path, module in model.named_modules():
        to: Any = CONTAINERS.get(type(module))
        if to is not None and id(module.get_submodule(to.reads)) in stacks:
            yield Swap(path, module, to)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
