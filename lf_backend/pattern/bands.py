"""Windows as kernels run them. Window arithmetic lives here and only here.

A band counts in *steps*: in the residue class of positions r, r + d, r + 2d, ... a window dilated by d
is a plain sliding window, so `key_range` and its transpose `query_range` know nothing of dilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lf_backend._device_constants import on_device
from lf_backend.pattern.spans import Span, Spans, united

Sees = Callable[[Any, Any, Any], Any]  # (head, query, key) -> bool


@dataclass(frozen=True)
class Band:
    """Position i sees i + d * m for -left <= m <= right; d is `dilations[head]`, or the only one.

    `left` and `right` are None where there is no limit.
    """

    left: int | None
    right: int | None
    dilations: tuple[int, ...]

    def dilation(self, head: int) -> int:
        return self.dilations[head] if len(self.dilations) > 1 else self.dilations[0]

    def alike(self, one: int, other: int) -> bool:
        """Whether two heads have the same dilation."""
        return self.dilation(one) == self.dilation(other)

    def at(self, head: int) -> Band:
        """The band of one head."""
        return Band(self.left, self.right, (self.dilation(head),))

    def of_heads(self, heads: slice) -> Band:
        """The band of some heads."""
        return self if len(self.dilations) == 1 else Band(self.left, self.right, self.dilations[heads])

    def taps(self) -> int | None:
        """left + right + 1, or None without a limit."""
        if self.left is None or self.right is None:
            return None
        return self.left + self.right + 1

    def span(self) -> tuple[int | None, int | None]:
        """Reach in positions, back and ahead, of the head that reaches farthest."""
        widest = max(self.dilations)
        left = None if self.left is None else self.left * widest
        return left, None if self.right is None else self.right * widest

    def clipped(self, length: int) -> tuple[int, int]:
        """Left and right reach in steps, no larger than a class of `length` steps can use."""
        most = max(length - 1, 0)
        left = most if self.left is None else min(self.left, most)
        return left, most if self.right is None else min(self.right, most)

    def key_range(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """Steps [low, high), of `length`, that queries at steps [start, stop) see between them."""
        left, right = self.clipped(length)
        return max(start - left, 0), min(stop + right, length)

    def query_range(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """Steps [low, high), of `length`, whose queries see keys at steps [start, stop)."""
        left, right = self.clipped(length)
        return max(start - right, 0), min(stop + left, length)

    def keys_of(self, query: int, m: int) -> range:
        """Positions, of `m`, that `query` sees through a band of one dilation."""
        return self._positions(self.key_range, query, m)

    def queries_of(self, key: int, m: int) -> range:
        """Positions, of `m`, that see `key` through a band of one dilation."""
        return self._positions(self.query_range, key, m)

    def _positions(self, steps: Callable[[int, int, int], tuple[int, int]], at: int, m: int) -> range:
        step, residue = divmod(at, self.dilations[0])
        low, high = steps(step, step + 1, class_length(m, residue, self.dilations[0]))
        return range(residue + low * self.dilations[0], residue + high * self.dilations[0], self.dilations[0])

    def sees(self, head: Any, query: Any, key: Any) -> Any:
        """Whether the pair is in the band; ints or tensors of ints that broadcast."""
        return self.shows(key - query, self._dilation_of(head)) | (head != head)

    def shows(self, distance: Any, dilation: Any) -> Any:
        """Whether a key at that distance is in the band of a head with that dilation."""
        seen = distance % dilation == 0
        if self.left is not None:
            seen = seen & (distance >= -self.left * dilation)
        if self.right is not None:
            seen = seen & (distance <= self.right * dilation)
        return seen

    def touches(self, head: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Whether any distance key - query of low .. high is in the band; int tensors of one shape."""
        dilation = self.dilation(head)
        if self.left is not None:
            low = low.clamp(min=-self.left * dilation)
        if self.right is not None:
            high = high.clamp(max=self.right * dilation)
        return high // dilation * dilation >= low

    def spans(self, head: int, first: int, last: int, m: int) -> Spans:
        """Keys, of `m`, that queries first .. last may see; all see what the ends of a block agree on."""
        step = self.dilation(head)
        back, ahead = (m if reach is None else reach * step for reach in (self.left, self.right))
        near = Span(last - back, first + ahead + 1, full=True) if step == 1 else Span(0, 0)
        return united((Span(first - back, last + ahead + 1), near), m)

    @property
    def bounded(self) -> bool:
        return True

    @property
    def per_head(self) -> bool:
        return len(set(self.dilations)) > 1

    def traced(self, device: torch.device) -> Sees:
        if not self.per_head:
            return lambda head, query, key: self.shows(key - query, self.dilations[0])
        dilations = on_device(self.dilations, torch.int64, device)
        return lambda head, query, key: self.shows(key - query, dilations[head])

    def _dilation_of(self, head: Any) -> Any:
        if len(self.dilations) > 1 and isinstance(head, torch.Tensor):
            return torch.tensor(self.dilations, device=head.device)[head]
        return self.dilation(head)

    def intersect(self, other: Band) -> Band | None:
        """Exactly the common pairs, or None where the heads would differ in reach.

        Common distances are multiples of the least common multiple of the two dilations.
        """
        heads = range(max(len(self.dilations), len(other.dilations)))
        steps = tuple(math.lcm(self.dilation(head), other.dilation(head)) for head in heads)
        left = {_common_reach(self, other, "left", head, steps[head]) for head in heads}
        right = {_common_reach(self, other, "right", head, steps[head]) for head in heads}
        if len(left) > 1 or len(right) > 1:
            return None
        return Band(left.pop(), right.pop(), steps)

    def offsets(self, head: int, m: int) -> set[int]:
        """Every key - query of the band that fits into `m` positions."""
        dilation = self.dilation(head)
        left, right = self.clipped(-(-m // dilation))
        return {step * dilation for step in range(-left, right + 1)}


def _common_reach(one: Band, two: Band, side: str, head: int, step: int) -> int | None:
    reaches = [(getattr(band, side), band.dilation(head)) for band in (one, two)]
    spans = [reach * dilation for reach, dilation in reaches if reach is not None]
    return min(spans) // step if spans else None


def class_length(m: int, residue: int, dilation: int) -> int:
    """How many of the positions 0 .. m - 1 are congruent to `residue` modulo `dilation`."""
    return max(0, -(-(m - residue) // dilation))


EVERYTHING = Band(None, None, (1,))
PAST = Band(None, 0, (1,))  # and self
