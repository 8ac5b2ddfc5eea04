"""One block of the blocked backend: scores, softmax, gradients.

What it owes to the machine (x86 with AVX-512, where it was measured):
- Masks and -lse enter through the addend of the score product, which costs nothing.
- Exponentials are exp2, two and a half times as fast as exp. The factor log2(e) comes last, on
  differences from the row's maximum or lse: there it costs no precision, on raw scores it would.
- Products accumulate into the gradients of keys and values directly.
- Scores are products in float32, as a half-precision product on a CPU rounds its result, which is an
  error of several hundredths at logits of ten. All other products of half-precision inputs stay so.
- Results live in memory that the next block takes again: fresh memory costs page faults.
- What a batched product writes is contiguous: into a slice it would go matrix by matrix.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend.backends.blocked.strips import Block, Keys, Part

LOG2E = math.log2(math.e)


class Weighed(NamedTuple):
    """Of one part: dropped weights, gradients of biased scores and of raw scores, [H, R, K]."""

    part: Part
    weights: Tensor
    scores: Tensor
    raw: Tensor


class Arithmetic:
    """The formulas of a call. A result is valid until the same method is called for another block."""

    def __init__(self, scale: float, softcap: float | None) -> None:
        self.scale = scale
        self.softcap = softcap
        self._memory: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def attend(self, block: Block, never_empty: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of weights times v [H, R, D], sums of weights [H, R, 1], and log of their unit [H, R, 1].

        Out is the first over the second; lse is log(second) + third. A row that sees nothing has sums
        0, and unit 0.
        """
        scores = [self._scores(block.exact_q, part, None)[0] for part in block.parts]
        unit = scores[0].amax(-1, keepdim=True)
        for more in scores[1:]:
            torch.maximum(unit, more.amax(-1, keepdim=True), out=unit)
        if not never_empty:
            unit.masked_fill_(unit == -math.inf, 0)
        weights = [x.sub_(unit).mul_(LOG2E).exp2_() for x in scores]
        total = weights[0].sum(-1, keepdim=True)
        for more in weights[1:]:
            total += more.sum(-1, keepdim=True)
        for part, own in zip(block.parts, weights, strict=True):
            if part.keep is not None:
                own *= part.keep
        weights = [
            self._as(f"half {part.source}", x, block.q) for part, x in zip(block.parts, weights, strict=True)
        ]
        return self._over_parts(weights, block, [part.keys.v for part in block.parts]), total, unit

    def weigh(self, block: Block, grad_out: Tensor, delta: Tensor, lse: Tensor) -> list[Weighed]:
        """Weights and gradients of scores by part; grad_out [H, R, D], delta, lse [H, R, 1]."""
        found = []
        for part in block.parts:
            weights, capped = self._scores(block.exact_q, part, lse)
            weights.mul_(LOG2E).exp2_()
            scores = self._grad_scores(weights, part, grad_out, delta)
            if part.keep is not None:
                weights *= part.keep
            raw = scores if capped is None else scores * capped.square_().neg_().add_(1)
            weights = self._as(f"half {part.source}", weights, block.q)
            found.append(Weighed(part, weights, scores, self._as(f"raw {part.source}", raw, block.q)))
        return found

    def add_values(self, target: Tensor, weighed: Weighed, grad_out: Tensor) -> None:
        """Add a part's gradient of v to `target` [Hkv, K, D]."""
        self._add_transposed(target, weighed.weights, grad_out, weighed.part.keys, 1.0)

    def add_keys(self, target: Tensor, weighed: Weighed, q: Tensor) -> None:
        """Add a part's gradient of k to `target` [Hkv, K, D]."""
        self._add_transposed(target, weighed.raw, q, weighed.part.keys, self.scale)

    def grad_q(self, block: Block, weighed: list[Weighed]) -> Tensor:
        """Gradient of q over the scale, [H, R, D]."""
        raw, keys = [x.raw for x in weighed], [part.keys.k for part in block.parts]
        return self._over_parts(raw, block, keys)

    def _scores(self, q: Tensor, part: Part, minus: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Masked scores [H, R, K], less `minus`; and tanh(score / cap) if capped."""
        shape = (*q.shape[:2], part.keys.k.shape[1])
        scores = self._take(f"scores {part.source}", shape, q)
        rows, folded = _fold(q, part.keys), _fold(scores, part.keys)
        if self.softcap is None:
            scores.copy_(part.mask) if minus is None else torch.sub(part.mask, minus, out=scores)
            folded.baddbmm_(rows, part.keys.k_t, alpha=self.scale)
            return scores, None
        torch.bmm(rows, part.keys.k_t, out=folded)
        capped = scores.mul_(self.scale / self.softcap).tanh_().clone()
        torch.add(part.mask, capped, alpha=self.softcap, out=scores)
        return scores if minus is None else scores.sub_(minus), capped

    def _grad_scores(self, weights: Tensor, part: Part, grad_out: Tensor, delta: Tensor) -> Tensor:
        """weights * (keep * (grad_out @ v) - delta), [H, R, K]."""
        grad, upstream = self._take(f"grad {part.source}", weights.shape, weights), _fold(grad_out, part.keys)
        if part.keep is None and weights.dtype == grad_out.dtype:
            torch.neg(delta.expand(grad.shape), out=grad)
            _fold(grad, part.keys).baddbmm_(upstream, part.keys.v_t)
            return grad.mul_(weights)
        grad.copy_(self._product(upstream, part.keys.v_t).view(grad.shape))
        if part.keep is not None:
            grad *= part.keep
        return grad.sub_(delta).mul_(weights)

    def _over_parts(self, rows: list[Tensor], block: Block, keys: list[Tensor]) -> Tensor:
        """The sum over parts of rows [H, R, K] @ keys [Hkv, K, D], as [H, R, D]."""
        total = self._take("out", block.q.shape, block.q)
        for index, part in enumerate(block.parts):
            own, target = _fold(rows[index], part.keys), _fold(total, part.keys)
            if index:
                target.baddbmm_(own, keys[index])
            else:
                torch.bmm(own, keys[index], out=target)
        return total

    def _add_transposed(self, target: Tensor, rows: Tensor, more: Tensor, keys: Keys, alpha: float) -> None:
        a, b = _fold(rows, keys).mT, _fold(more, keys)
        if target.dtype == a.dtype:
            target.baddbmm_(a, b, alpha=alpha)
        else:
            target.add_(self._product(a, b), alpha=alpha)

    def _as(self, slot: str, x: Tensor, like: Tensor) -> Tensor:
        """x in the dtype of `like`."""
        return x if x.dtype == like.dtype else self._take(slot, x.shape, like).copy_(x)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a, b, out=self._take("product", (*a.shape[:2], b.shape[2]), a))

    def _take(self, slot: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory of a shape in the dtype of `like`; what it held before is lost."""
        view = self._views.get((slot, shape))
        if view is None or view.dtype != like.dtype:
            size, memory = math.prod(shape), self._memory.get(slot)
            if memory is None or memory.numel() < size or memory.dtype != like.dtype:
                self._views = {key: old for key, old in self._views.items() if key[0] != slot}
                memory = self._memory[slot] = like.new_empty(size)
            view = self._views[slot, tuple(shape)] = memory[:size].view(shape)
        return view


def _fold(x: Tensor, keys: Keys) -> Tensor:
    """[H, R, *] to [Hkv, H / Hkv * R, *]: heads that share keys become rows of one product."""
    heads = keys.k.shape[0]
    return x if x.shape[0] == heads else x.reshape(heads, -1, x.shape[-1])
