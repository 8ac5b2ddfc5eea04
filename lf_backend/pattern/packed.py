"""Documents whose boundaries are part of a pattern, and the patterns that lie within them."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import torch
from torch import Tensor

from lf_backend.pattern.predicate import Predicate


class SameDocument(Predicate):
    """The rule that two positions are in one document.

    Args:
        edges: where documents begin, 0 first, and the end; what lies beyond it is one more document.
    """

    def __init__(self, edges: tuple[int, ...]) -> None:
        def same(head: Any, query: Any, key: Any, table: Any) -> Any:
            return _number_of(query, table) == _number_of(key, table)

        def bounds(head: int, first: int, last: int, m: int) -> list[tuple[int, int, bool]]:
            low, high = bisect_right(edges, first), bisect_right(edges, last)
            return [(edges[low - 1], edges[high] if high < len(edges) else m, low == high)]

        super().__init__(same, bounds, (edges,))

    def ids(self, m: int, device: torch.device) -> Tensor:
        """Return the documents of `m` positions, int64 [1, M], as `lf_backend.attention` takes them."""
        (edges,) = self.on(device)
        return torch.searchsorted(edges, torch.arange(m, device=device), right=True)[None]


def _number_of(position: Any, edges: Any) -> Any:
    """How many of the sorted edges are at or before a position: torch.bucketize, for compilers as well."""
    found = position * 0
    for bit in reversed(range(len(edges).bit_length())):
        probe = found + (1 << bit)
        passed = (probe <= len(edges)) & (edges[(probe - 1).clamp(max=len(edges) - 1)] <= position)
        found = torch.where(passed, probe, found)
    return found
