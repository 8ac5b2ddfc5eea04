"""The one list of the operator's arguments, and the problem that they pose to a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, cast, get_type_hints

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend.dispatch.select import decisive, preference, select
from lf_backend.dispatch.selection import Selection
from lf_backend.pattern.disjoint import disjoint
from lf_backend.pattern.interned import resolve
from lf_backend.pattern.kept import kept
from lf_backend.pattern.lowered import Lowered
from lf_backend.pattern.terms import Pattern
from lf_backend.problem import Coverage, Feature, Machine, Problem


@dataclass(eq=False)
class Arguments:
    """The operator's arguments, in its order. Shapes as in `lf_backend.attention`.

    The schema of the operator, its autograd and the order of gradients are read off this list. Nobody writes
    to one; it is not frozen, which would cost every call of `attention` microseconds.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    global_q: Tensor | None
    global_k: Tensor | None
    global_v: Tensor | None
    key_padding: Tensor | None
    global_mask: Tensor | None
    global_positions: Tensor | None
    documents: Tensor | None
    sinks: Tensor | None
    band_bias: Tensor | None
    seed: Tensor | None
    pattern: str
    scale: float
    softcap: float | None
    dropout_p: float
    differentiable: bool
    backend: str

    # No arguments of the operator, and so no fields: the pattern as it was given, what is known of the kind.
    held = cast("Pattern | None", None)
    _known = cast("Known | None", None)

    def values(self) -> tuple[Any, ...]:
        """Return the arguments in the operator's order."""
        return tuple(getattr(self, name) for name in NAMES)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the tensors of the call, in the order of `TENSORS`."""
        if torch.compiler.is_compiling():  # which does not know an attrgetter
            return tuple(getattr(self, name) for name in TENSORS)
        found: tuple[Tensor | None, ...] = _tensors_of(self)
        return found

    def floats(self) -> tuple[Tensor | None, ...]:
        """Return the tensors that may have a gradient, in the order of `DIFFERENTIABLE`."""
        if torch.compiler.is_compiling():
            return tuple(getattr(self, name) for name in DIFFERENTIABLE)
        found: tuple[Tensor | None, ...] = _floats_of(self)
        return found

    def without_tensors(self, backend: str) -> Arguments:
        """Return the call without its tensors, for what must not keep them alive, asking for a backend."""
        return self.replaced(backend=backend, **dict.fromkeys(TENSORS))

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> Arguments:
        """Return the call with its tensors, in the order of `TENSORS`."""
        return self.replaced(**dict(zip(TENSORS, tensors, strict=True)))

    def replaced(self, **given: Any) -> Arguments:
        """Return the call with other values for some arguments: `dataclasses.replace`, without its cost."""
        made = object.__new__(Arguments)
        made.__dict__.update(self.__dict__, **given)
        made.__dict__.pop("_known", None)
        if "pattern" in given:
            made.__dict__.pop("held", None)
        return made

    def known(self) -> Known:
        """Return what was found out about calls of this kind.

        Nothing is kept of calls with symbols of sizes, or with rules, of which every batch may have new ones.
        """
        found = self._known
        if found is None:
            found = self._known = Known() if _callers.is_recorded() else self._looked_up()
        return found

    def _looked_up(self) -> Known:
        kind = self._kind()
        found = _kinds.get(kind)
        if found is None:
            if self.resolved.lowered.others:
                return Known()
            if len(_kinds) >= MOST_KINDS:
                _kinds.clear()
            found = _kinds.setdefault(kind, Known())
        return found

    def _kind(self) -> tuple[Any, ...]:
        """Return all about the call but data and strides: calls of one kind fit, and run, in the same way."""
        found: list[Any] = [self.pattern, self.softcap is None, self.dropout_p > 0, self.differentiable]
        for x in self.tensors():
            if x is None:
                found.append(None)
            elif isinstance(x, Tensor):
                found += x.shape, x.dtype, x.device
            else:
                found.append(type(x))
        return tuple(found)

    def problem(self) -> Problem:
        """Return what the call needs of a backend."""
        known = self.known()
        if known.problem is None:
            known.problem = self._problem()
        return known.problem

    def _problem(self) -> Problem:
        batch, heads, queries, head_dim = self.q.shape
        _, kv_heads, keys, _ = self.k.shape
        lowered = self.lowered
        needs = _pattern_needs(lowered)
        needs |= {feature for feature, needed in self._needs() if needed}
        dtype = str(self.q.dtype).removeprefix("torch.")
        pattern = self.resolved
        ahead = pattern.looks_ahead or (self.brings_globals and not pattern.is_causal)
        window, coverage = _extent(lowered, ahead, queries, keys)
        coverage = coverage if self.documents is None else Coverage.PART
        return Problem(needs, dtype, batch, heads, kv_heads, queries, keys, head_dim, window, coverage)

    @property
    def resolved(self) -> Pattern:
        """The pattern itself."""
        held = self.held
        return resolve(self.pattern) if held is None else held

    @property
    def lowered(self) -> Lowered:
        """The pattern as this call needs it."""
        pattern = self.resolved
        return pattern.lowered_with_globals if self.brings_globals else pattern.lowered

    @property
    def brings_globals(self) -> bool:
        """Whether the call has global tokens besides those of the pattern, though there may be none."""
        return self.global_mask is not None or self.global_positions is not None

    @property
    def waits(self) -> bool:
        """Whether the host has to count the call's global tokens: those of a mask, and those that a pattern
        has in each of packed documents."""
        counted = self.documents is not None and bool(self.lowered.positions)
        return self.global_mask is not None or counted

    def _needs(self) -> tuple[tuple[Feature, bool], ...]:
        return (
            (Feature.GLOBAL_COLUMNS, self.brings_globals),
            (Feature.KEY_PADDING, self.key_padding is not None),
            (Feature.GROUPED_HEADS, self.q.shape[1] != self.k.shape[1]),
            (Feature.LONGER_KEYS, self.q.shape[2] != self.k.shape[2]),
            (Feature.BAND_BIAS, self.band_bias is not None),
            (Feature.SOFTCAP, self.softcap is not None),
            (Feature.DROPOUT, self.dropout_p > 0),
            (Feature.BACKWARD, self.differentiable),
            (Feature.VALUE_WIDTH, self.v.shape[3] != self.k.shape[3]),
            (Feature.DOCUMENTS, self.documents is not None),
        )

    def selection(self, machine: Machine | None = None) -> Selection:
        """Return who runs the call, here or on another machine."""
        asked = self.backend or preference()
        if machine is not None:
            return select(self.problem(), machine, asked)
        known, state = self.known(), (asked, *decisive())
        if known.selected is None or known.selected[0] != state:
            known.selected = state, select(self.problem(), Machine.of(self.q.device), asked)
        return known.selected[1]


class Known:
    """The results of work that is done once for all calls of a kind.

    Attributes:
        is_right: its calls were checked, and fit.
        problem: their needs.
        selected: who ran the last of them, with all that the decision depended on.
    """

    def __init__(self) -> None:
        self.is_right = False
        self.problem: Problem | None = None
        self.selected: tuple[tuple[Any, ...], Selection] | None = None


MOST_KINDS = 4096
_kinds: dict[tuple[Any, ...], Known] = {}
NAMES = tuple(field.name for field in fields(Arguments))
_HINTS = get_type_hints(Arguments)
TENSORS = tuple(name for name in NAMES if _HINTS[name] in (Tensor, Tensor | None))
DIFFERENTIABLE = ("q", "k", "v", "global_q", "global_k", "global_v", "sinks", "band_bias")
_SCHEMA_WORDS = {
    Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", bool: "bool", float: "float",
    float | None: "float?",
}  # fmt: skip


_tensors_of: Any = attrgetter(*TENSORS)
_floats_of: Any = attrgetter(*DIFFERENTIABLE)


def schema() -> str:
    """Return the arguments as a schema of PyTorch's operators writes them."""
    return ", ".join(f"{_SCHEMA_WORDS[_HINTS[name]]} {name}" for name in NAMES)


@kept(1024)
def _pattern_needs(lowered: Lowered) -> frozenset[Feature]:
    dilations = [set(band.dilations) for band in lowered.bands]
    needs = (
        (Feature.DILATION, any(max(steps) > 1 for steps in dilations)),
        (Feature.DILATION_PER_HEAD, any(len(steps) > 1 for steps in dilations)),
        (Feature.UNLIMITED_REACH, any(band.taps() is None for band in lowered.bands)),
        (Feature.SEVERAL_WINDOWS, len(lowered.bands) > 1),
        (Feature.CROSSING_WINDOWS, disjoint(lowered.bands) is None),
        (Feature.GLOBAL_COLUMNS, bool(lowered.positions)),
        (Feature.PREDICATE, bool(lowered.others)),
    )
    return frozenset(feature for feature, needed in needs if needed)


@kept(4096)
def _extent(lowered: Lowered, looks_ahead: bool, queries: int, keys: int) -> tuple[int, Coverage]:
    past, every = lowered.covers(queries, keys)
    covered = Coverage.PAST if past and not looks_ahead else Coverage.PART
    return lowered.window(keys), Coverage.ALL if every else covered
