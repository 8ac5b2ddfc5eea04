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

from lf_backend.backends.blocked.strips import Block

LOG2E = math.log2(math.e)


class Weighed(NamedTuple):
    """One block's dropped weights, gradients of biased scores and of raw scores, each [H, R, K]."""

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
        scores, _ = self._scores(block, None)
        unit = scores.amax(-1, keepdim=True)
        if not never_empty:
            unit.masked_fill_(unit == -math.inf, 0)
        weights = scores.sub_(unit).mul_(LOG2E).exp2_()
        total = weights.sum(-1, keepdim=True)
        if block.keep is not None:
            weights *= block.keep
        return self._of_queries(self._as("weights", weights, block.q), block, block.keys.v), total, unit

    def weigh(self, block: Block, grad_out: Tensor, delta: Tensor, lse: Tensor) -> Weighed:
        """Weights and gradients of scores; grad_out [H, R, D], delta, lse [H, R, 1]."""
        weights, capped = self._scores(block, lse)
        weights.mul_(LOG2E).exp2_()
        scores = self._grad_scores(weights, block, grad_out, delta)
        if block.keep is not None:
            weights *= block.keep
        raw = scores if capped is None else scores * capped.square_().neg_().add_(1)
        return Weighed(self._as("weights", weights, block.q), scores, self._as("raw", raw, block.q))

    def add_values(self, target: Tensor, block: Block, weighed: Weighed, grad_out: Tensor) -> None:
        """Add the block's gradient of v to `target` [Hkv, K, D]."""
        self._add_transposed(target, weighed.weights, grad_out, block, 1.0)

    def add_keys(self, target: Tensor, block: Block, weighed: Weighed) -> None:
        """Add the block's gradient of k to `target` [Hkv, K, D]."""
        self._add_transposed(target, weighed.raw, block.q, block, self.scale)

    def grad_q(self, block: Block, weighed: Weighed) -> Tensor:
        """Gradient of q over the scale, [H, R, D]."""
        return self._of_queries(weighed.raw, block, block.keys.k)

    def _scores(self, block: Block, minus: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Masked scores [H, R, K], less `minus`; and tanh(score / cap) if capped."""
        shape = (*block.q.shape[:2], block.keys.k.shape[1])
        scores = self._take("scores", shape, block.exact_q)
        rows, folded = _fold(block.exact_q, block), _fold(scores, block)
        if self.softcap is None:
            scores.copy_(block.mask) if minus is None else torch.sub(block.mask, minus, out=scores)
            folded.baddbmm_(rows, block.keys.k_t, alpha=self.scale)
            return scores, None
        torch.bmm(rows, block.keys.k_t, out=folded)
        capped = scores.mul_(self.scale / self.softcap).tanh_().clone()
        torch.add(block.mask, capped, alpha=self.softcap, out=scores)
        return scores if minus is None else scores.sub_(minus), capped

    def _grad_scores(self, weights: Tensor, block: Block, grad_out: Tensor, delta: Tensor) -> Tensor:
        """weights * (keep * (grad_out @ v) - delta), [H, R, K]."""
        grad, upstream = self._take("grad", weights.shape, weights), _fold(grad_out, block)
        if block.keep is None and weights.dtype == grad_out.dtype:
            torch.neg(delta.expand(grad.shape), out=grad)
            _fold(grad, block).baddbmm_(upstream, block.keys.v_t)
            return grad.mul_(weights)
        grad.copy_(self._product(upstream, block.keys.v_t).view(grad.shape))
        if block.keep is not None:
            grad *= block.keep
        return grad.sub_(delta).mul_(weights)

    def _of_queries(self, rows: Tensor, block: Block, keys: Tensor) -> Tensor:
        """rows [H, R, K] @ keys [Hkv, K, D], as [H, R, D]."""
        found = self._take("out", (*block.q.shape[:2], keys.shape[2]), block.q)
        torch.bmm(_fold(rows, block), keys, out=_fold(found, block))
        return found

    def _add_transposed(self, target: Tensor, rows: Tensor, more: Tensor, block: Block, alpha: float) -> None:
        a, b = _fold(rows, block).mT, _fold(more, block)
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


def _fold(x: Tensor, block: Block) -> Tensor:
    """[H, R, *] to [Hkv, H / Hkv * R, *]: heads that share keys become rows of one product."""
    heads = block.keys.k.shape[0]
    return x if x.shape[0] == heads else x.reshape(heads, -1, x.shape[-1])
