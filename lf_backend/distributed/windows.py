"""Windows and rules over a slice and what neighbours lend, as one function with a derivative.

The interior is computed while the halo is on its way, and in the backward while its gradients are. A part's
gradients are those of a call in which all other rows are without effect, so that every part takes the
log-sum-exp of the whole call and adds to one gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lf_backend import api
from lf_backend.dispatch.select import chosen, preference
from lf_backend.distributed.columns import Columns
from lf_backend.distributed.exchange import Parcel, add_returned, depart, depart_back, like_of, sum_returned
from lf_backend.distributed.group import Group
from lf_backend.distributed.parts import Part, Pieces, add, cut, parts_of
from lf_backend.distributed.pieces import Listed, Rectangle
from lf_backend.distributed.plan import Plan
from lf_backend.distributed.slices import Route, common, gathering
from lf_backend.errors import LFError
from lf_backend.ops import around_backend
from lf_backend.ops.arguments import Arguments
from lf_backend.pattern.interned import intern
from lf_backend.pattern.terms import Pattern
from lf_backend.problem import Machine

_FLOATS = ("q", "k", "v", "sinks", "band_bias")
_OWN = (*_FLOATS, "global_q", "hidden", "start", "end", "seed")
_LENT = ("k", "v", "hidden", "start", "end")  # by neighbours
_KEYS = ("k", "v")


def windows(
    plan: Plan, known: tuple[Tensor, Tensor] | None = None
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Return out [B, H, n, Dv] and lse [B, H, n] of this rank's queries, and what came from all ranks.

    Columns are joined, and rows of global tokens left empty: out 0 and lse -inf.

    Args:
        known: out and lse, if they were computed before, whatever is in these rows.
    """
    a, everywhere = plan.a, plan.everywhere()
    own = a.q, a.k, a.v, a.sinks, a.band_bias, a.global_q, plan.hidden, plan.begins, plan.ends, a.seed
    apply: Any = _Windows.apply
    out, lse, *arrived = apply(_Work.of(plan, everywhere), known, *own, *(x for x, _ in everywhere.values()))
    return (out, lse), dict(zip(everywhere, arrived, strict=True))


def own_of(plan: Plan) -> Listed:
    """Return the positions of this rank, and where their documents begin."""
    at = torch.arange(plan.own.start, plan.own.stop, device=plan.a.q.device)
    return Listed(at.expand(plan.a.q.shape[0], -1), plan.start)


def gathered(arrived: Mapping[str, Tensor]) -> Listed:
    """Return where the global tokens of all ranks are."""
    at, start = arrived["at"][:, 0, :, 0], arrived.get("token_start")
    return Listed(at, None if start is None else start[:, 0, :, 0], at >= 0)


def agree_on_backend(plan: Plan) -> None:
    """Ask all ranks whether the backend that was named can run their parts. A collective if one was.

    Raises:
        LFError: it cannot, on all ranks.
    """
    a = plan.a
    if not (a.backend or preference()):
        return
    given = a.q, a.k, a.v, a.sinks, a.band_bias, None, plan.hidden, plan.begins, plan.ends, a.seed
    own = dict(zip(_OWN, (None if x is None else x.to("meta") for x in given), strict=True))
    work = _Work.of(plan)
    try:
        for part in work.parts:
            chosen(work.arguments(part, own, {}).selection(Machine.of(a.q.device)))
    except LFError as error:
        plan.group.agree(error, [])
    else:
        plan.group.agree({}, [])


@dataclass(frozen=True, eq=False)
class _Work:
    """The windows of a rank, without any tensor.

    Attributes:
        group: the ranks.
        a: the call, its pattern without global tokens.
        pattern: that pattern, held for the operator to find it.
        own, reach: the positions of the slice, and of the keys that its queries see.
        parts: what is computed together, the interior first.
        halo: the way of keys to the ranks that see them.
        gathered: the way of global tokens.
        tokens: names of what they are sent as; none without.
        places, sources: as `Tokens` has them; none without.
        own_listed: the slice's positions and documents.
        causal: global tokens show the past alone.
    """

    group: Group
    a: Arguments
    pattern: Pattern
    own: range
    reach: range
    parts: list[Part]
    halo: Route
    gathered: Route
    tokens: tuple[str, ...]
    places: tuple[Tensor, ...]
    sources: Mapping[str, str]
    own_listed: Listed
    causal: bool

    @classmethod
    def of(cls, plan: Plan, tokens: Iterable[str] = ()) -> _Work:
        rank, a = plan.group.rank, plan.a
        pattern, reach = plan.near_pattern, plan.reaches[rank]
        counts = plan.tokens.counts if plan.tokens else (0,) * plan.group.size
        return cls(
            plan.group,
            replace(a.without_tensors(a.backend or preference()), pattern=intern(pattern)),
            pattern,
            plan.own,
            reach,
            parts_of(plan.own, reach, None if a.lowered.others else plan.window),
            plan.slices.halo(rank, plan.reaches),
            gathering(counts, rank),
            tuple(tokens),
            plan.tokens.places if plan.tokens else (),
            plan.tokens.sources if plan.tokens else {},
            own_of(plan),
            plan.tokens is not None and plan.tokens.causal,
        )

    @property
    def interior(self) -> list[Part]:
        """The part that needs no halo, if there is one."""
        return [part for part in self.parts if part.keys == self.own]

    @property
    def edges(self) -> list[Part]:
        """The parts that need it."""
        return [part for part in self.parts if part.keys != self.own]

    def sides(self, halo: Tensor) -> Pieces:
        """Return what comes before the slice and what comes after it, with their places."""
        before, own = len(range(self.reach.start, self.own.start)), self.own
        ranges = range(self.reach.start, own.start), range(own.stop, self.reach.stop)
        return list(zip(ranges, halo.split([before, halo.shape[2] - before], 2), strict=True))

    def keys(self, name: str, part: Part, own: Tensors, lent: Tensors) -> Tensor | None:
        """Return one of the tensors of a part's keys."""
        if (x := own[name]) is None:
            return None
        if (halo := lent.get(name)) is None:
            return cut([(self.own, x)], part.keys)
        before, after = self.sides(halo)
        return cut([before, (self.own, x), after], part.keys)

    def framed(self, part: Part, own: Tensors, lent: Tensors) -> Part:
        """Return a part with room for the whole of its documents, in which the positions of rules count.

        Room, and no keys: rules show none there.
        """
        start, end = (self.keys(name, part, own, lent) for name in ("start", "end"))
        if start is None or end is None or not part.keys:
            return part
        low, high = int(start[:, :, 0].min()), int(end[:, :, -1].max())
        return Part(part.used, range(part.rows.start, high), range(low, high))

    def arguments(self, part: Part, own: Tensors, lent: Tensors) -> Arguments:
        """Return the call of a part, given what lies in the slice and what neighbours have lent."""

        def rows(name: str) -> Tensor | None:
            return None if (x := own[name]) is None else cut([(self.own, x)], part.rows)

        k, v, hidden, start, end = (self.keys(name, part, own, lent) for name in _LENT)
        if start is not None and end is not None and (real := common(self.reach, part.keys)) != part.keys:
            at = torch.arange(part.keys.start, part.keys.stop, device=start.device)[:, None]
            start = _in_frame(at, real, start.narrow(2, real.start - part.keys.start, len(real)), end)
            outside = (at < real.start) | (at >= real.stop)
            hidden = outside.expand(start.shape) if hidden is None else hidden | outside
        seed = own["seed"]
        tensors: dict[str, Any] = {
            "q": rows("q"),
            "k": k,
            "v": v,
            "sinks": own["sinks"],
            "band_bias": rows("band_bias"),
            "key_padding": None if hidden is None else hidden[:, 0, :, 0],
            "documents": None if start is None else start[:, 0, :, 0],
            "seed": None if seed is None else torch.cat([seed, seed.new_tensor([part.keys.start])]),
        }
        return replace(self.a, **tensors)

    def columns(self, own: Tensors, arrived: Mapping[str, Tensor]) -> Columns:
        """Return the columns that this rank's queries see."""
        q, hidden = own["q"], own["hidden"]
        assert q is not None and hidden is not None, "where there are global tokens"
        call = replace(self.a, seed=own["seed"])  # positions are those of the row, which nothing moves
        rectangle = Rectangle(call, self.own_listed, gathered(arrived), self.causal)
        return Columns(rectangle, q, arrived["column_k"], arrived["column_v"], own["band_bias"], hidden)

    def computed(
        self, parts: Sequence[Part], own: Tensors, lent: Tensors
    ) -> list[tuple[Part, tuple[Tensor, Tensor]]]:
        """Return out and lse of the rows of parts."""
        framed = [self.framed(part, own, lent) for part in parts]
        return [(part, api.computed(self.arguments(part, own, lent))) for part in framed]

    def gradients(
        self,
        parts: Sequence[Part],
        own: Tensors,
        lent: Tensors,
        upstream: Sequence[Tensor | None],
        lse: Tensor,
    ) -> _Found:
        """Return the gradients of the tensors of parts by name.

        Args:
            upstream: gradients of out and lse, and out, of the slice.
            lse: [B, H, n], of the slice.
        """
        names = [name for name in _FLOATS if own[name] is not None]
        found = []
        for part in (self.framed(part, own, lent) for part in parts):
            grads = [None if x is None else cut([(self.own, x)], part.rows) for x in upstream]
            call, effective = self.arguments(part, own, lent), _used(lse, self.own, part)
            grad_out, grad_lse, out = grads
            assert grad_out is not None and out is not None, "of every slice"
            new = around_backend.backward(call, grad_out, grad_lse, out, effective)
            found.append((part, dict(zip(names, new, strict=True))))
        return found


Tensors = Mapping[str, Tensor | None]
_Found = list[tuple[Part, dict[str, Tensor]]]  # gradients of parts


class _Windows(torch.autograd.Function):
    """Takes the work, out and lse if they are known, the tensors of `_OWN`, and what goes to all ranks."""

    @staticmethod
    def forward(
        ctx: Any, work: _Work, known: tuple[Tensor, Tensor] | None, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        own: Tensors = dict(zip(_OWN, tensors, strict=False))
        tokens: Any = tensors[len(_OWN) :]
        near = {name: x for name in _LENT if (x := own[name]) is not None}
        parcels = [Parcel(x, work.halo) for x in near.values()] + [Parcel(x, work.gathered) for x in tokens]
        flight = depart(work.group, parcels)
        interior, edges = ([], []) if known else (work.interior, work.edges)
        found = work.computed(interior, own, {})
        landed = [torch.cat(pieces, 2) for pieces in flight.land()]
        lent = dict(zip(near, landed, strict=False))
        arrived = dict(zip(work.tokens, landed[len(near) :], strict=True))
        found += work.computed(edges, own, lent)
        out, lse = known or (_placed([(part, x[i]) for part, x in found], work.own) for i in (0, 1))
        kept_out, kept_lse = out, lse
        if arrived:  # rows of global tokens will be written into what is returned: there lse is -inf here
            if known is None:
                work.columns(own, arrived).join(out, lse)
            hidden: Any = own["hidden"]
            kept_out, kept_lse = out.data, lse.masked_fill(hidden[..., 0], -torch.inf)

        ctx.work, ctx.names = work, list(near)
        ctx.save_for_backward(kept_out, kept_lse, *own.values(), *lent.values(), *arrived.values())
        ctx.tokens = [(like_of(x), x.shape[2]) for x in tokens]
        ctx.set_materialize_grads(False)  # a gradient of the log-sum-exp that is none costs nothing
        ctx.mark_non_differentiable(*(x for x in arrived.values() if not x.is_floating_point()))
        return out, lse, *arrived.values()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, *grads: Tensor | None) -> Any:
        work: _Work = ctx.work
        out, lse, *saved = ctx.saved_tensors
        own: Tensors = dict(zip(_OWN, saved, strict=False))
        more = saved[len(_OWN) :]
        lent: dict[str, Tensor] = dict(zip(ctx.names, more, strict=False))
        arrived = dict(zip(work.tokens, more[len(ctx.names) :], strict=True))
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        upstream = grad_out, grad_lse, out
        columns = work.columns(own, arrived).gradients(grad_out, grad_lse, out, lse) if arrived else {}
        of_tokens = dict(zip(work.tokens, grads, strict=True))
        of_tokens |= {f"column_{name}": columns[name] for name in _KEYS if arrived}
        edges = work.gradients(work.edges, own, lent, upstream, lse)
        back = [Parcel(_of_halo(work, lent[name], name, edges), work.halo) for name in _KEYS]
        floats = [index for index, (like, _) in enumerate(ctx.tokens) if like.is_floating_point()]
        for index in floats:
            grad = of_tokens[work.tokens[index]]
            back.append(Parcel(_or_zeros(grad, ctx.tokens[index][0], work), work.gathered))
        flight = depart_back(work.group, back, [like_of(x) for x, _ in back])
        found = work.gradients(work.interior, own, {}, upstream, lse) + edges
        totals = {name: _total(work, found, name) for name in found[0][1]}
        for name in set(columns) - set(_KEYS):
            totals[name] += columns[name]
        landed = flight.land()
        rank = work.group.rank
        for name, pieces in zip(_KEYS, landed, strict=False):
            add_returned(totals[name], work.halo, pieces, rank)
        if (global_q := own["global_q"]) is not None:
            totals["global_q"] = torch.zeros_like(global_q)
        returned: list[Tensor | None] = [None] * len(grads)
        for index, pieces in zip(floats, landed[len(_KEYS) :], strict=True):
            like, length = ctx.tokens[index]
            grad = sum_returned(like, length, work.gathered, pieces, rank)
            source = work.sources.get(work.tokens[index])
            if source is None:
                returned[index] = grad
            else:
                batch, slot, at = work.places
                totals[source][batch, :, at] += grad[batch, :, slot]
        return None, None, *map(totals.get, _OWN), *returned


def _placed(found: list[tuple[Part, Tensor]], own: range) -> Tensor:
    """Return [B, H, n, ...] of the slice from what parts have found, the first of which has it all."""
    (first, x), *others = found
    total = (
        x if first.rows == own else cut([(first.rows, x)], own).clone(memory_format=torch.contiguous_format)
    )
    for part, new in others:
        at = part.used.start - own.start
        total[:, :, at : at + len(part.used)] = cut([(part.rows, new)], part.used)
    return total


def _in_frame(at: Tensor, real: range, start: Tensor, end: Tensor) -> Tensor:
    """Return where the document of each position begins, [B, 1, M, 1], also before and after those that are
    there; -1 and -2 beyond the first and the last document of them.

    Args:
        at: int64 [M, 1], the positions.
        real: those that are there.
        start: [B, 1, len(real), 1], where their documents begin.
        end: [B, 1, M, 1], where they end.
    """
    before, after = at[at < real.start][:, None], at[at >= real.stop][:, None]
    first, last = start[:, :, :1], start[:, :, -1:]
    ends = end[:, :, real.stop - int(at[0]) - 1, None]
    return torch.cat([torch.where(before >= first, first, -1), start, torch.where(after < ends, last, -2)], 2)


def _used(lse: Tensor, own: range, part: Part) -> Tensor:
    """Return lse [B, H, rows] of a part, -inf in rows that it does not answer, which have no effect."""
    if part.rows == part.used:
        return cut([(own, lse)], part.rows)
    found = lse.new_full((*lse.shape[:2], len(part.rows)), -torch.inf)
    at = part.used.start - part.rows.start
    found[:, :, at : at + len(part.used)] = cut([(own, lse)], part.used)
    return found


def _of_halo(work: _Work, lent: Tensor, name: str, edges: _Found) -> Tensor:
    """Return the gradient of what neighbours have lent of one tensor."""
    total = torch.zeros_like(lent)
    for at, side in work.sides(total):
        for part, found in edges:
            add(side, at, found[name], part.keys)
    return total


def _total(work: _Work, found: _Found, name: str) -> Tensor:
    """Return the gradient of one tensor of the slice, the first part's with the others' added to it."""
    if name == "sinks":
        return torch.stack([grads[name] for _, grads in found]).sum(0)
    places = [(part.keys if name in _KEYS else part.rows, grads[name]) for part, grads in found]
    total = cut(places[:1], work.own)
    for at, new in places[1:]:
        add(total, work.own, new, at)
    return total


def _or_zeros(grad: Tensor | None, like: Tensor, work: _Work) -> Tensor:
    if grad is not None:
        return grad
    return like.new_zeros(*like.shape[:2], sum(work.gathered.counts), like.shape[3])
