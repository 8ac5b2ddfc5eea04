"""The one list of the operator's arguments, and the problem that they pose to a backend."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from torch import Tensor

from lf_backend.dispatch.select import preference, select
from lf_backend.dispatch.selection import Selection
from lf_backend.ops.pattern_table import resolve
from lf_backend.pattern.disjoint import disjoint
from lf_backend.pattern.kept import kept
from lf_backend.pattern.lowered import Lowered
from lf_backend.problem import Coverage, Feature, Machine, Problem


@dataclass(frozen=True, eq=False)
class Arguments:
    """The operator's arguments, in its order. Shapes as in `lf_backend.attention`.

    The schema of the operator, its autograd and the order of gradients are read off this list.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    global_q: Tensor | None
    global_k: Tensor | None
    global_v: Tensor | None
    key_padding: Tensor | None
    global_mask: Tensor | None
    sinks: Tensor | None
    band_bias: Tensor | None
    seed: Tensor | None
    pattern: str
    scale: float
    softcap: float | None
    dropout_p: float
    differentiable: bool
    backend: str

    def values(self) -> tuple[Any, ...]:
        """Return the arguments in the operator's order."""
        return tuple(getattr(self, name) for name in NAMES)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the tensors of the call, in the order of `TENSORS`."""
        return tuple(getattr(self, name) for name in TENSORS)

    def without_tensors(self) -> Arguments:
        """Return the same call without its tensors, for what must not keep them alive."""
        return self.with_tensors((None,) * len(TENSORS))

    def with_tensors(self, tensors: tuple[Tensor | None, ...]) -> Arguments:
        """Return the call with its tensors, in the order of `TENSORS`."""
        given: dict[str, Any] = dict(zip(TENSORS, tensors, strict=True))
        return replace(self, **given)

    def problem(self) -> Problem:
        """Return what the call needs of a backend."""
        batch, heads, queries, head_dim = self.q.shape
        _, kv_heads, keys, _ = self.k.shape
        lowered = self.lowered
        needs = _pattern_needs(lowered)
        needs |= {feature for feature, needed in self._needs() if needed}
        dtype = str(self.q.dtype).removeprefix("torch.")
        pattern = resolve(self.pattern)
        ahead = pattern.looks_ahead or (self.global_mask is not None and not pattern.is_causal)
        window, coverage = _extent(lowered, ahead, queries, keys)
        return Problem(needs, dtype, batch, heads, kv_heads, queries, keys, head_dim, window, coverage)

    @property
    def lowered(self) -> Lowered:
        """The pattern as this call needs it."""
        pattern = resolve(self.pattern)
        return pattern.lowered if self.global_mask is None else pattern.lowered_with_globals

    def _needs(self) -> tuple[tuple[Feature, bool], ...]:
        return (
            (Feature.GLOBAL_COLUMNS, self.global_mask is not None),
            (Feature.KEY_PADDING, self.key_padding is not None),
            (Feature.GROUPED_HEADS, self.q.shape[1] != self.k.shape[1]),
            (Feature.LONGER_KEYS, self.q.shape[2] != self.k.shape[2]),
            (Feature.BAND_BIAS, self.band_bias is not None),
            (Feature.SOFTCAP, self.softcap is not None),
            (Feature.DROPOUT, self.dropout_p > 0),
            (Feature.BACKWARD, self.differentiable),
            (Feature.VALUE_WIDTH, self.v.shape[3] != self.k.shape[3]),
        )

    def selection(self, machine: Machine | None = None) -> Selection:
        """Return who runs the call, here or on another machine."""
        machine = machine or Machine.of(self.q.device)
        return select(self.problem(), machine, self.backend or preference())


NAMES = tuple(field.name for field in fields(Arguments))
_HINTS = get_type_hints(Arguments)
TENSORS = tuple(name for name in NAMES if _HINTS[name] in (Tensor, Tensor | None))
DIFFERENTIABLE = ("q", "k", "v", "global_q", "global_k", "global_v", "sinks", "band_bias")
_SCHEMA_WORDS = {
    Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", bool: "bool", float: "float",
    float | None: "float?",
}  # fmt: skip


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
