"""Modules of a model that attend, by what code, and to what: read from their classes.

A class *routes* if a method of it names transformers' table of attentions. One that is called attention, has
projections or a softmax and does not route attends in code of its own. Names of classes decide nothing else.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import CodeType
from typing import Any

from torch import Tensor, nn

_TABLE = "ALL_ATTENTION_FUNCTIONS"
_OWN = frozenset({"softmax", "logsumexp", "scaled_dot_product_attention", "multi_head_attention_forward"})
# What a layer calls the sequence that its keys come from, if that is not its first argument.
_KEYS = ("key_value_states", "encoder_hidden_states", "cross_attention_states", "context", "key", "keys", "k")

_GENERAL = ("torch.nn.modules.module", "transformers.modeling_utils", "transformers.generation", "builtins")

Places = tuple[tuple[str, int], ...]


def kind_of(module: nn.Module) -> Any:
    """Return a module's class, as a value that may be kept."""
    return type(module)


def routed(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Paths and modules that attend through transformers' interface."""
    for path, module in model.named_modules():
        if routes(kind_of(module)):
            yield path, module


def on_their_own(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules that attend in code of their own; of nested ones the innermost."""
    for path, module in model.named_modules():
        inner = [x for x in module.modules() if x is not module]
        if _attends_itself(module) and not any(routes(kind_of(x)) or _attends_itself(x) for x in inner):
            yield path, module


@lru_cache(maxsize=2048)
def routes(kind: Any) -> bool:
    """Return whether modules of a class attend through transformers' interface."""
    return _TABLE in names_used(kind)


@lru_cache(maxsize=2048)
def places_of_keys(kind: Any) -> Places:
    """Name and place of the argument that a layer's queries come from, then of those that its keys may come
    from; nothing, if these are always the same."""
    taken = list(inspect.signature(kind.forward).parameters)[1:]
    found = tuple((name, taken.index(name)) for name in _KEYS if name in taken)
    return ((taken[0], 0), *found) if found else ()


def is_cross(places: Places, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call of a layer brings keys of another sequence than its queries."""
    given = [args[at] if at < len(args) else kwargs.get(name) for name, at in places]
    return any(isinstance(x, Tensor) and x is not given[0] for x in given[1:])


def _attends_itself(module: nn.Module) -> bool:
    kind = kind_of(module)
    if routes(kind) or not re.search("Att(entio)?n", kind.__name__):
        return False
    weights = [getattr(x, "weight", None) for x in module.children()]
    return len([x for x in weights if isinstance(x, Tensor) and x.ndim == 2]) > 1 or bool(
        _OWN & names_used(kind)
    )


@lru_cache(maxsize=2048)
def names_used(kind: Any) -> frozenset[str]:
    """Return all names that the methods of a class use, and those of its bases in modeling files."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith(_GENERAL):
            continue
        for value in vars(base).values():
            code = getattr(inspect.unwrap(value) if callable(value) else value, "__code__", None)
            if code is not None:
                found.update(_of_code(code))
    return frozenset(found)


def _of_code(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _of_code(constant)
