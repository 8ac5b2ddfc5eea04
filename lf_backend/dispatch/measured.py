"""Measured calls, which decide among the backends that can run a call: `measured.json`.

`python -m benchmarks.select` times every backend that can on calls of many shapes and writes the file. A
call is decided by the nearest of its kind: same device, dtype, coverage, with or without a backward, then by
the lengths' ratios. Where nothing of the kind was measured, and for backends that no row has, the
priorities stand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import log2
from typing import Any

from lf_backend.problem import Coverage, Feature, Machine, Problem

# What no measured call has, and may turn the order of backends round.
_UNMEASURED = frozenset({Feature.PREDICATE, Feature.SEVERAL_WINDOWS, Feature.BAND_BIAS, Feature.DROPOUT})


@dataclass(frozen=True)
class MeasuredCall:
    """One call, and how long it took.

    Attributes:
        device: device type.
        dtype, queries, keys, window, coverage: as in `Problem`.
        backward: the time is of forward and backward.
        times: (backend, milliseconds), fastest first.
    """

    device: str
    dtype: str
    backward: bool
    queries: int
    keys: int
    window: int
    coverage: Coverage
    times: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {time:.3g} ms" for name, time in self.times)
        work = "forward + backward" if self.backward else "forward"
        shape = f"{self.queries} queries, {self.keys} keys, window of {self.window}, {self.coverage.value}"
        return f"{shape}, {self.dtype}, {work}: {times}"

    def to_dict(self) -> dict[str, Any]:
        """Return the row as the file has it."""
        return {**vars(self), "coverage": self.coverage.name, "times": dict(self.times)}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> MeasuredCall:
        """From the file."""
        times = tuple(sorted(given["times"].items(), key=lambda item: item[1]))
        return cls(**{**given, "coverage": Coverage[given["coverage"]], "times": times})


@cache
def rows() -> tuple[MeasuredCall, ...]:
    """All measured rows."""
    text = resources.files(__package__).joinpath("measured.json").read_text("utf8")
    return tuple(MeasuredCall.from_dict(row) for row in json.loads(text)["rows"])


def nearest(
    problem: Problem, machine: Machine, among: Iterable[MeasuredCall] | None = None
) -> MeasuredCall | None:
    """The measured call that is most like this one, None if there is none of its kind."""
    if problem.features & _UNMEASURED:
        return None
    kind = (machine.device, problem.dtype, Feature.BACKWARD in problem.features, problem.coverage)
    alike = [
        row
        for row in (rows() if among is None else among)
        if (row.device, row.dtype, row.backward, row.coverage) == kind
    ]
    return min(alike, key=lambda row: _distance(row, problem), default=None)


def ordered(names: Sequence[str], row: MeasuredCall | None) -> list[str]:
    """The names with those that the row has in its order; all others keep their places."""
    found = list(names)
    if row is not None:
        fastest = [name for name, _ in row.times if name in found]
        for place, name in zip(sorted(map(found.index, fastest)), fastest, strict=True):
            found[place] = name
    return found


def _distance(row: MeasuredCall, problem: Problem) -> float:
    pairs = ((row.queries, problem.queries), (row.keys, problem.keys), (row.window, problem.window))
    return sum(abs(log2(max(one, 1) / max(other, 1))) for one, other in pairs)
