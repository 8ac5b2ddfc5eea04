"""The facts of a call before its tensors travel: whose slices, which tokens, what is sent to whom."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from lf_backend import _callers
from lf_backend.api import collected
from lf_backend.dispatch.select import preference
from lf_backend.distributed.documents import ends_of, starts_of
from lf_backend.distributed.exchange import Parcel
from lf_backend.distributed.group import Group
from lf_backend.distributed.moved import (
    Moved,
    reason_against,
    reason_against_reach,
    seen_by,
    seen_in_documents,
)
from lf_backend.distributed.sharded import slice_of
from lf_backend.distributed.slices import Slices, covering, gathering
from lf_backend.distributed.tokens import Tokens, tokens_of
from lf_backend.errors import LFError, ShapeError, UnsupportedError
from lf_backend.ops import checks
from lf_backend.ops.arguments import DIFFERENTIABLE, TENSORS, Arguments
from lf_backend.ops.options import DEFAULTS, Options
from lf_backend.pattern.interned import intern
from lf_backend.pattern.terms import Global, Pattern, Window, union


@dataclass(frozen=True, eq=False)
class Plan:
    """A call of this rank among those of the others.

    Attributes:
        group: the ranks.
        slices: whose positions are whose.
        a: the call, all its tensors slices.
        pattern: its pattern, which is held for the operator to find it.
        start: int64 [B, n], where in the row the document of each position begins; None without documents.
        end: int64 [B, n], where it ends; None without rules.
        seen: the positions whose keys rules show to the queries of each rank; none without rules.
        tokens: the global tokens; None if there are none on any rank.
    """

    group: Group
    slices: Slices
    a: Arguments
    pattern: Pattern
    start: Tensor | None
    end: Tensor | None
    seen: tuple[range, ...]
    tokens: Tokens | None

    @property
    def own(self) -> range:
        """The positions of this rank."""
        return self.slices.range_of(self.group.rank)

    @property
    def window(self) -> tuple[int, int]:
        """How many positions windows reach back and ahead, in any head."""
        spans = [band.span() for band in self.a.lowered.bands]
        return max((back or 0 for back, _ in spans), default=0), max((x or 0 for _, x in spans), default=0)

    @cached_property
    def reaches(self) -> tuple[range, ...]:
        """The positions whose keys windows and rules show to the queries of each rank, in any head."""
        back, ahead = self.window
        near = [self.slices.reach_of(rank, back, ahead) for rank in range(self.group.size)]
        return tuple(map(covering, zip(near, self.seen, strict=True) if self.seen else zip(near)))

    @property
    def near_pattern(self) -> Pattern:
        """The pattern without its global tokens, for queries that see the keys of this rank's reach."""
        windows: list[Pattern] = [Window.of(band) for band in self.a.lowered.bands]
        first, length = self.reaches[self.group.rank].start, self.slices.length
        where = (first, length) if self.start is None else (0, None)
        terms = windows + [Moved(rule, *where) for rule in self.a.lowered.others]
        return union(*terms) if terms else Global()

    @property
    def hidden(self) -> Tensor | None:
        """Bool [B, 1, n, 1], True where no window shows a key: padding, and global tokens, which are no
        windows' so that no pair counts twice."""
        hidden = self.a.key_padding
        if self.tokens is not None:
            hidden = self.tokens.marks if hidden is None else hidden | self.tokens.marks
        return None if hidden is None else hidden[:, None, :, None]

    @property
    def begins(self) -> Tensor | None:
        """`start` as [B, 1, n, 1]."""
        return None if self.start is None else self.start[:, None, :, None]

    @property
    def ends(self) -> Tensor | None:
        """`end` as [B, 1, n, 1]."""
        return None if self.end is None else self.end[:, None, :, None]

    def near(self) -> dict[str, Tensor]:
        """Return what goes to the ranks whose windows reach it, by name."""
        found = {"k": self.a.k, "v": self.a.v, "hidden": self.hidden, "start": self.begins, "end": self.ends}
        return {name: x for name, x in found.items() if x is not None}

    def everywhere(self) -> dict[str, Parcel]:
        """Return what goes to all ranks, by name: global tokens as keys, and as queries.

        Gradients of q, k and v at global tokens are not recorded: `Tokens.sources` says whose they are.
        """
        tokens, a = self.tokens, self.a
        if tokens is None:
            return {}
        unused, at = ~tokens.valid[:, None, :, None], tokens.at
        found = {
            name: _taken(getattr(a, source).detach(), tokens.index).masked_fill(unused, 0)
            for name, source in tokens.sources.items()
        }
        found["at"] = torch.where(tokens.valid, at + self.own.start, -1)[:, None, :, None]
        if self.start is not None:
            found["token_start"] = _taken(self.start[:, None, :, None], tokens.index)
        if a.band_bias is not None:
            found["row_bias"] = _taken(a.band_bias.expand(len(at), -1, -1, -1), tokens.index)
        route = gathering(tokens.counts, self.group.rank)
        return {name: Parcel(x, route) for name, x in found.items()}


def planned(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, mesh: Any, options: Mapping[str, Any]
) -> Plan:
    """Return the plan of a call that all ranks make, each with its own slices. A collective.

    Raises:
        LFError: what `attention` raises, on all ranks if it is so on one.
    """
    if _callers.is_traced() or _callers.is_transformed((q, k, v)):  # in which no word reaches another rank
        transforms = "torch.jit.trace, transforms of torch.func and forward-mode differentiation"
        raise UnsupportedError(f"attention over ranks: none of {transforms} wanted, got one")
    group = Group.of(mesh)
    try:
        a = collected_slices(q, k, v, pattern, mesh, options)
        checked = _checked(a)
    except LFError as error:
        return _agreed(group, error, ())
    return _agreed(group, checked, gradients_of(a))


def planned_again(group: Group, a: Arguments, gradients: Sequence[str]) -> Plan:
    """Return the plan of a call whose arguments are collected already. A collective.

    Args:
        gradients: the tensors that have one.

    Raises:
        LFError: as `planned`.
    """
    try:
        checked = _checked(a)
    except LFError as error:
        return _agreed(group, error, ())
    return _agreed(group, checked, gradients)


def collected_slices(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern | str, mesh: Any, options: Mapping[str, Any]
) -> Arguments:
    """Return the arguments of this rank, not checked; who needs a pattern later must hold it."""
    text = pattern if isinstance(pattern, str) else intern(checks.check_pattern(pattern))
    own = {name: slice_of(name, x, mesh) for name, x in options.items()}
    q, k, v = (slice_of(name, x, mesh) for name, x in (("q", q), ("k", k), ("v", v)))
    return collected(q, k, v, text, cast(Options, own))


def gradients_of(a: Arguments) -> list[str]:
    """Return the names of the tensors that have a gradient."""
    floats = zip(DIFFERENTIABLE, a.floats(), strict=True)
    return [name for name, x in floats if x is not None and x.requires_grad] if a.differentiable else []


def _agreed(group: Group, a: Arguments | LFError, gradients: Sequence[str]) -> Plan:
    """Return the plan of a call, if all ranks can make it."""
    if isinstance(a, LFError):
        group.agree(a, [0, 0])
        raise a
    seed = 0 if a.seed is None else int(a.seed)
    words = group.agree(_description(a, gradients), [a.q.shape[2], seed])
    pattern, slices = a.resolved, Slices(tuple(size for size, _ in words))
    if a.seed is not None:  # that of the first rank, as if the others had its generator
        a = replace(a, seed=torch.tensor(words[0][1:], device=a.q.device))
    if a.documents is None:
        pattern.check_positions(slices.length)
    start = None if a.documents is None else starts_of(group, slices, a.documents)
    end = None if start is None or not a.lowered.others else ends_of(group, slices, start)
    seen = _seen_by_rules(group, slices, a, start, end) if a.lowered.others else ()
    return Plan(group, slices, a, pattern, start, end, seen, tokens_of(group, slices, a, start))


def _seen_by_rules(
    group: Group, slices: Slices, a: Arguments, start: Tensor | None, end: Tensor | None
) -> tuple[range, ...]:
    """Return the keys that rules may show to the queries of each rank, the rank's own among them."""
    rules, heads, length = a.lowered.others, a.q.shape[1], slices.length
    if start is None or end is None:
        every = ((own, *(seen_by(rule, heads, own, length) for rule in rules)) for own in slices.ranges)
        return tuple(map(covering, every))
    own = slices.range_of(group.rank)  # other ranks' documents are not known here
    seen = covering([own, *(seen_in_documents(rule, heads, own, start, end) for rule in rules)])
    return tuple(range(*ends) for ends in group.gather(torch.tensor([seen.start, seen.stop])).tolist())


def refusals(plan: Plan) -> list[str]:
    """Return every reason why a call cannot be computed over ranks."""
    found = [
        f"pattern: windows with a limit on both sides wanted, got {Window.of(band)}, for which all keys "
        "would travel; for full attention use `torch.distributed.tensor.experimental.context_parallel`"
        for band in plan.a.lowered.bands
        if None in band.span()
    ]
    reasons = [reason_against(rule) for rule in plan.a.lowered.others]
    if not any(reasons) and plan.seen:
        reasons.append(reason_against_reach(plan.slices, plan.seen))
    found += [f"pattern: {reason}, in {plan.pattern}" for reason in reasons if reason is not None]
    return found


def _checked(a: Arguments) -> Arguments:
    """Return the call of this rank's slices, checked; the pattern's own positions are those of the row."""
    pattern, q, k = a.resolved, a.q, a.k
    if q.ndim == k.ndim == 4 and q.shape[2] != k.shape[2]:
        raise ShapeError(f"k: the slice of q, {q.shape[2]} positions, wanted, got {k.shape[2]}")
    # The pattern's own positions, which a slice may not have, are left out, and the rest is as it is.
    some: list[Pattern] = [Window.of(band) for band in pattern.lowered.bands]
    rules: list[Pattern] = [Moved(rule, 0, q.shape[2]) for rule in pattern.lowered.others]
    here = union(*some, *rules) if some or rules else Global()
    positions = a.global_positions
    if pattern.lowered.positions and not a.brings_globals:
        positions = torch.empty(q.shape[0], 0, dtype=torch.int64, device=q.device)
    checks.check(replace(a, pattern=intern(here), global_positions=positions), here)
    return a


def _description(a: Arguments, gradients: Sequence[str]) -> dict[str, object]:
    """Return what must be the same on all ranks."""
    given = {name for name in DEFAULTS if name in TENSORS and getattr(a, name) is not None}
    if a.brings_globals:  # as a mask on one rank, as positions on another
        given = given - {"global_mask", "global_positions"} | {"global tokens"}
    return {
        "pattern": re.sub(
            " at 0x[0-9a-f]+", "", a.resolved.text
        ),  # where a process holds a predicate is its own
        "device": a.q.device.type,
        "dtype": str(a.q.dtype),
        "batch": a.q.shape[0],
        "heads of q": a.q.shape[1],
        "heads of k": a.k.shape[1],
        "head_dim": a.q.shape[3],
        "width of v": a.v.shape[3],
        "options": sorted(given),
        "backend": a.backend or preference(),
        "scale": a.scale,
        "softcap": a.softcap,
        "dropout_p": a.dropout_p,
        "gradients": list(gradients),
    }


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """Return [B, H, G, D] of x [B, H, n, D] at index [B, G]."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
