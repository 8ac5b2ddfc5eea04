"""One block of the blocked backend: scores, softmax, gradients.

What it owes to the machine (x86 with AVX-512, where it was measured):
- Masks and -lse enter through the addend of the score product, which costs nothing.
- Exponentials are exp2, twice as fast as exp; scores carry the factor log2(e) for it.
- Products of half-precision inputs stay in that precision; softmax is float32.
- Results live in memory that the next block takes again: fresh memory costs page faults.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend.backends.blocked.strips import LOG2E, Block


class BlockGradients(NamedTuple):
    """Of q [H, R, D], k [Hkv, K, D] and the biased scores [H, R, K]."""

    q: Tensor
    k: Tensor
    scores: Tensor


class Arithmetic:
    """The formulas of a call. A result is valid until the same method is called again."""

    def __init__(self, scale: float, softcap: float | None) -> None:
        self.scale = scale
        self.softcap = softcap
        self._memory: dict[object, Tensor] = {}
        self._views: dict[object, Tensor] = {}

    def attend(self, block: Block, never_empty: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of weights times v [H, R, D], sums of weights [H, R, 1], and log2 of their unit [H, R, 1].

        Out is the first over the second; lse is (log2(second) + third) / log2(e). A row that sees
        nothing has sums 0, and unit 0.
        """
        scores, _ = self._scores(block, None)
        unit = scores.amax(-1, keepdim=True)
        if not never_empty:
            unit.masked_fill_(unit == -math.inf, 0)
        weights = scores.sub_(unit).exp2_()
        total = weights.sum(-1, keepdim=True)
        if block.keep is not None:
            weights *= block.keep
        out = self._product("out", _fold(_as(weights, block.v), block), block.v)
        return out.view(block.q.shape), total, unit

    def weigh(self, block: Block, grad_out: Tensor, delta: Tensor, lse: Tensor) -> Weighed:
        """Weights and gradients of scores; grad_out [H, R, D], delta, lse [H, R, 1] times log2(e)."""
        weights, capped = self._scores(block, lse)
        weights.exp2_()
        upstream = _fold(grad_out, block)
        scores = self._grad_scores(weights, block, upstream, delta)
        if block.keep is not None:
            weights *= block.keep
        return Weighed(_fold(_as(weights, block.v), block), upstream, scores, capped)

    def grad_v(self, weighed: Weighed) -> Tensor:
        """[Hkv, K, D]."""
        return self._product("keys", weighed.weights.mT, weighed.upstream)

    def differentiate(self, block: Block, weighed: Weighed) -> BlockGradients:
        """The other gradients; takes the memory of `grad_v`'s result."""
        raw = weighed.scores
        if weighed.capped is not None:
            raw = raw * weighed.capped.square_().neg_().add_(1)
        raw = _fold(_as(raw, block.k), block)
        grad_q = self._product("out", raw, block.k).view(block.q.shape).mul_(self.scale)
        grad_k = self._product("keys", raw.mT, _fold(block.q, block)).mul_(self.scale)
        return BlockGradients(grad_q, grad_k, weighed.scores)

    def _scores(self, block: Block, minus: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Masked scores [H, R, K] times log2(e), less `minus`; and tanh(score / cap) if capped."""
        q = _fold(block.q, block)
        shape = (*block.q.shape[:2], block.k.shape[1])
        scores = self._take("scores", shape, block.mask)
        if self.softcap is None and scores.dtype == q.dtype:
            addend = scores.copy_(block.mask) if minus is None else torch.sub(block.mask, minus, out=scores)
            _fold(addend, block).baddbmm_(q, block.k_t, alpha=self.scale * LOG2E)
            return scores, None
        raw, capped, factor = self._product("raw", q, block.k_t).view(shape), None, self.scale
        if self.softcap is not None:
            raw = capped = raw.to(scores.dtype, copy=True).mul_(self.scale / self.softcap).tanh_()
            factor = self.softcap
        torch.add(block.mask, raw, alpha=factor * LOG2E, out=scores)
        return scores if minus is None else scores.sub_(minus), capped

    def _grad_scores(self, weights: Tensor, block: Block, upstream: Tensor, delta: Tensor) -> Tensor:
        """weights * (keep * (grad_out @ v) - delta), [H, R, K]."""
        grad = self._take("grad", weights.shape, weights)
        if block.keep is None and weights.dtype == block.v.dtype:
            _fold(torch.neg(delta.expand(grad.shape), out=grad), block).baddbmm_(upstream, block.v_t)
            return grad.mul_(weights)
        grad.copy_(self._product("raw", upstream, block.v_t).view(weights.shape))
        if block.keep is not None:
            grad *= block.keep
        return grad.sub_(delta).mul_(weights)

    def _product(self, slot: str, a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a, b, out=self._take(slot, (*a.shape[:2], b.shape[2]), a))

    def _take(self, slot: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory of a shape in the dtype of `like`; what it held before is lost."""
        view = self._views.get((slot, shape))
        if view is None or view.dtype != like.dtype:
            size, memory = math.prod(shape), self._memory.get(slot)
            if memory is None or memory.numel() < size or memory.dtype != like.dtype:
                self._views = {key: old for key, old in self._views.items() if key[0] != slot}  # type: ignore[index]
                memory = self._memory[slot] = like.new_empty(size)
            view = self._views[slot, shape] = memory[:size].view(shape)
        return view


class Weighed(NamedTuple):
    """Dropped weights [Hkv, rows, K], upstream [Hkv, rows, D], gradient of biased scores [H, R, K]."""

    weights: Tensor
    upstream: Tensor
    scores: Tensor
    capped: Tensor | None


def _fold(x: Tensor, block: Block) -> Tensor:
    """[H, R, *] to [Hkv, H / Hkv * R, *]: heads that share keys become rows of one product."""
    heads = block.k.shape[0]
    return x if x.shape[0] == heads else x.reshape(heads, -1, x.shape[-1])


def _as(x: Tensor, like: Tensor) -> Tensor:
    return x if x.dtype == like.dtype else x.to(like.dtype)
