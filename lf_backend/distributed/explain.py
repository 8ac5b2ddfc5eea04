"""`explain` over ranks: what a call sends and receives, or every reason against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lf_backend.distributed.exchange import bytes_each
from lf_backend.distributed.plan import Plan, planned, refusals
from lf_backend.distributed.slices import Route, gathering, returning
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.ops.options import Options, takes_options
from lf_backend.pattern.terms import Pattern

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Explanation:
    """The bytes that one call of `attention` moves, rank by rank. `str()` is the table that users read.

    Attributes:
        sizes: positions of each rank.
        rank: this one.
        reasons: every reason why the call is refused; the figures are empty then.
        forward_sent, forward_received: bytes of each rank in the forward, what it keeps apart.
        backward_sent, backward_received: bytes of each rank in the backward.
        hops: of each rank, how many others its windows and rules reach back and ahead.
        tokens: global tokens of each rank, as many as the example that has the most.
        all_gather: bytes that each rank would receive in a forward that gathered all keys and values.
        balance: mean number of positions of a rank over the largest, 1 when all wait for none.
    """

    sizes: tuple[int, ...]
    rank: int
    reasons: tuple[str, ...]
    forward_sent: tuple[int, ...] = ()
    forward_received: tuple[int, ...] = ()
    backward_sent: tuple[int, ...] = ()
    backward_received: tuple[int, ...] = ()
    hops: tuple[tuple[int, int], ...] = ()
    tokens: tuple[int, ...] = ()
    all_gather: tuple[int, ...] = ()
    balance: float = 1.0

    @property
    def share(self) -> float:
        """Bytes that all ranks receive in a forward, as a share of those of gathering all keys."""
        return sum(self.forward_received) / max(1, sum(self.all_gather))

    def __str__(self) -> str:
        head = f"{sum(self.sizes)} positions on {len(self.sizes)} ranks, this is rank {self.rank}"
        if self.reasons:
            return "\n".join([head, *(f"  cannot: {reason}" for reason in self.reasons)])
        lines = [head, "  rank  positions  forward sent, received  backward sent, received  hops back, ahead"]
        for rank, size in enumerate(self.sizes):
            forward = f"{self.forward_sent[rank]:,}, {self.forward_received[rank]:,}"
            backward = f"{self.backward_sent[rank]:,}, {self.backward_received[rank]:,}"
            back, ahead = self.hops[rank]
            lines.append(f"  {rank:4}  {size:9,}  {forward:>22}  {backward:>23}  {back:>9}, {ahead}")
        lines.append(
            f"  bytes a layer; {self.share:.2%} of an all-gather of keys; balance {self.balance:.2f}"
        )
        return "\n".join(lines)


@takes_options
def explain(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, *, mesh: Any, **options: Unpack[Options]
) -> Explanation:
    """Say what a call of `attention` moves between ranks, or every reason why it is refused.

    A collective that takes `attention`'s arguments and moves none of its tensors. Backward figures are those
    of a call whose tensors require gradients. The words by which ranks agree, one to five times a call, are
    not counted: 24 bytes a rank, 24 for each example with documents and 8 with global tokens besides, 16 and
    16 for each example with rules in documents.
    """
    plan = planned(q, k, v, pattern, mesh, options)
    sizes, rank = plan.slices.sizes, plan.group.rank
    if reasons := refusals(plan):
        return Explanation(sizes, rank, tuple(reasons))
    ranks = range(len(sizes))
    halos = [plan.slices.halo(other, plan.reaches) for other in ranks]
    forward, backward = _traffic(plan, halos)
    everything = bytes_each(plan.a.k) + bytes_each(plan.a.v)
    return Explanation(
        sizes,
        rank,
        reasons=(),
        forward_sent=_sent(forward),
        forward_received=_received(forward),
        backward_sent=_received(backward),
        backward_received=_sent(backward),
        hops=tuple(_hops(halo.counts, other) for other, halo in enumerate(halos)),
        tokens=(0,) * len(sizes) if plan.tokens is None else plan.tokens.counts,
        all_gather=tuple((plan.slices.length - size) * everything for size in sizes),
        balance=plan.slices.length / max(1, len(sizes) * max(sizes)),
    )


Matrix = list[list[int]]  # bytes from one rank to another in the forward's direction


def _traffic(plan: Plan, halos: list[Route]) -> tuple[Matrix, Matrix]:
    """Return what travels in the forward, and what of it has a gradient that travels back."""
    near, everywhere = list(plan.near().values()), [x for x, _ in plan.everywhere().values()]
    legs = [(near, halos)]
    if plan.tokens is not None:
        counts, a = plan.tokens.counts, plan.a
        ranks = range(len(counts))
        partial = a.q.new_empty(*a.q.shape[:2], 0, a.v.shape[3] + 1, dtype=accumulation_dtype(a.q.dtype))
        legs.append((everywhere, [gathering(counts, rank) for rank in ranks]))
        legs.append(([partial], [returning(counts, rank) for rank in ranks]))
    floats = [([x for x in some if x.is_floating_point()], routes) for some, routes in legs]
    return _matrix(legs), _matrix(floats)


def _matrix(legs: list[tuple[list[Tensor], list[Route]]]) -> Matrix:
    size = len(legs[0][1])
    total = [[0] * size for _ in range(size)]
    for tensors, routes in legs:
        each = sum(bytes_each(x) for x in tensors)
        for source, route in enumerate(routes):
            for target, (first, end) in enumerate(route.sends):
                total[source][target] += each * (end - first) if source != target else 0
    return total


def _sent(matrix: Matrix) -> tuple[int, ...]:
    return tuple(map(sum, matrix))


def _received(matrix: Matrix) -> tuple[int, ...]:
    return tuple(map(sum, zip(*matrix, strict=True)))


def _hops(counts: tuple[int, ...], rank: int) -> tuple[int, int]:
    return sum(count > 0 for count in counts[:rank]), sum(count > 0 for count in counts[rank + 1 :])
