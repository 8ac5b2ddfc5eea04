"""xformers' memory-efficient attention: a window by its local bias, dilated by strided views.

    band            one call per run of heads of one dilation and residue class, which is a plain window
    padded keys     one more dimension of q and k, whose product buries the score of a padded key
    global columns  few keys: plain products, joined by the log-sum-exp
    any delta       three more dimensions of output and its gradient, whose product is delta, as xformers'
                    backward computes delta from the output that it is given

Extra dimensions come in eights, which is what the kernels align to; a window without padding has none
forward. Heads that share keys get copies of them. What xformers cannot run here it says itself, which
becomes a reason, and the next backend runs.

No GPU has run this file so far: the kit runs it with a reference in place of xformers' two calls, under the
masks that the bias objects draw of themselves. Its speed is unmeasured, and xformers calls its backward for
local biases, FlashAttention-2's, not deterministic: hence a priority at which it runs only by name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Gradients
from lf_backend.errors import BuildError
from lf_backend.numerics import dense
from lf_backend.numerics.head_runs import head_runs
from lf_backend.numerics.join import join
from lf_backend.pattern.bands import Band
from lf_backend.pattern.interchange import xformers_bias
from lf_backend.problem import Feature, Machine, Problem

EXTRA = 8  # dimensions
BURIED = {torch.float16: 2.0**15, torch.bfloat16: 2.0**60}  # its square hides any other product
NOBODY = 1e30  # log-sum-exp of a row without effect, finite for the kernels' sake
COLUMN_ROWS = 4096


class Xformers(Backend):
    """See the module."""

    name = "xformers"
    priority = 10
    capabilities = Capabilities(
        features=frozenset(Feature)
        - {
            Feature.SEVERAL_WINDOWS,
            Feature.CROSSING_WINDOWS,
            Feature.PREDICATE,
            Feature.BAND_BIAS,
            Feature.SOFTCAP,
            Feature.DROPOUT,
            Feature.VALUE_WIDTH,
        },
        dtypes=frozenset({"float16", "bfloat16"}),
        devices=frozenset({"cuda"}),
        max_head_dim=256 - EXTRA,
        packages=("xformers",),
    )

    def reasons(self, problem: Problem, machine: Machine) -> list[str]:
        found = super().reasons(problem, machine)
        if problem.head_dim % EXTRA:
            found.append(f"head_dim % {EXTRA} == 0 wanted, call has {problem.head_dim}")
        if machine.capability is not None and machine.capability < (8, 0):
            found.append(f"capability >= 8.0 wanted, machine has {'.'.join(map(str, machine.capability))}")
        return found

    def details(self) -> str:
        """xformers' own list of operators, as `python -m xformers.info` has it."""
        if importlib.util.find_spec("xformers") is None:
            return ""
        operators = (*_fmha().ALL_FW_OPS, *_fmha().ALL_BW_OPS)
        return ", ".join(f"{op.NAME} {'yes' if op.is_available() else 'no'}" for op in operators)

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        out = torch.zeros(call.q.shape, dtype=torch.float32, device=call.q.device)
        lse = out.new_full(call.q.shape[:3], -torch.inf)
        for strip in _strips(call):
            values, own = self.attend(*strip.inputs(call.key_padding is not None), strip.bias, strip.scale)
            strip.of_queries(out).copy_(strip.without_extra(values))
            strip.of_queries(lse).copy_(own.masked_fill(own < strip.buried / 2, -torch.inf))
        for area in _columns(call):
            more, more_lse = dense.forward(area.rectangle)
            join(area.of_queries(out), area.of_queries(lse), more, more_lse)
        return out.masked_fill_(lse[..., None] == -torch.inf, 0).to(call.q.dtype), lse

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        grad_q, grad_k, grad_v = (
            torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (call.q, call.k, call.v)
        )
        for strip in _strips(call):
            upstream, out = strip.with_delta(grad_out, delta)
            own = strip.of_queries(lse).clamp(max=NOBODY).contiguous()
            found = self.differentiate(
                upstream, out, own, *strip.inputs(extra=True), strip.bias, strip.scale
            )  # fmt: skip
            dq, dk, dv = map(strip.without_extra, found)
            strip.of_queries(grad_q).copy_(dq if call.scale else torch.zeros_like(dq))
            for grad, more in ((grad_k, dk), (grad_v, dv)):
                strip.of_keys(grad).add_(strip.grouped(more))
        for area in _columns(call):
            rows = (area.of_queries(x) for x in (grad_out, delta, lse))
            part = dense.backward(area.rectangle, *rows)
            area.of_queries(grad_q).add_(part.q)
            grad_k[area.batch].index_add_(1, area.positions, part.k)
            grad_v[area.batch].index_add_(1, area.positions, part.v)
        dtype = call.q.dtype
        return Gradients(grad_q.to(dtype), grad_k.to(dtype), grad_v.to(dtype), None)

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Any, scale: float) -> tuple[Tensor, Tensor]:
        """xformers' forward: out [B, n, H, D] and lse [B, H, n] of q [B, n, H, D], k and v [B, m, H, D]."""
        try:
            out, lse = _fmha().memory_efficient_attention_forward_requires_grad(
                q, k, v, bias, scale=scale
            )  # fmt: skip
        except NotImplementedError as error:
            raise BuildError(f"xformers: {error}") from error
        return out, lse[..., : q.shape[1]]

    @staticmethod
    def differentiate(
        grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Any, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """xformers' backward: gradients of q, k, v."""
        try:
            found: tuple[Tensor, Tensor, Tensor] = _fmha().memory_efficient_attention_backward(
                grad, out, lse, q, k, v, bias, scale=scale
            )
        except NotImplementedError as error:
            raise BuildError(f"xformers: {error}") from error
        return found


def _fmha() -> ModuleType:
    return importlib.import_module("xformers.ops.fmha")


@dataclass(frozen=True, eq=False)
class _Strip:
    """One residue class of some heads of one dilation, all examples."""

    call: Call
    band: Band
    heads: slice
    residue: int

    @property
    def bias(self) -> Any:
        return xformers_bias(self.band.left, self.band.right)

    @property
    def scale(self) -> float:
        """Never 0, as a padded key is hidden by a score; queries are 0 instead."""
        return self.call.scale or 1.0

    @property
    def buried(self) -> float:
        """The score of a padded key."""
        return -(BURIED[self.call.q.dtype] ** 2) * abs(self.scale)

    @property
    def start(self) -> int:
        """Index of the first query."""
        return (self.residue - self.call.offset) % self.band.dilations[0]

    def of_queries(self, x: Tensor) -> Tensor:
        """The strip's view [B, h, n, ...] of x [B, H, N, ...]."""
        return x[:, self.heads, self.start :: self.band.dilations[0]]

    def of_keys(self, x: Tensor) -> Tensor:
        """The strip's view [B, hkv, m, ...] of x [B, Hkv, M, ...]."""
        group = self._group
        kv_heads = slice(self.heads.start // group, (self.heads.stop - 1) // group + 1)
        return x[:, kv_heads, self.residue :: self.band.dilations[0]]

    def inputs(self, extra: bool) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, n, h, D] as xformers takes them, with or without extra dimensions."""
        q, k, v = self.of_queries(self.call.q), *(self.of_keys(x) for x in (self.call.k, self.call.v))
        if not self.call.scale:
            q = torch.zeros_like(q)
        if extra:
            q, k, v = (torch.nn.functional.pad(x, (0, EXTRA)) for x in (q, k, v))
            if self.call.key_padding is not None:
                height = BURIED[q.dtype]
                padded = self.call.key_padding[:, None, self.residue :: self.band.dilations[0]]
                q[..., -1] = height
                k[..., -1] = padded * (-height if self.scale > 0 else height)
        return self._laid_out(q), self._laid_out(self._copied(k)), self._laid_out(self._copied(v))

    def with_delta(self, grad_out: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """A gradient [B, n, h, D + EXTRA] and an output whose product, summed, is delta, and whose first D
        dimensions are those of grad_out and zeros: delta in three pieces of the dtype's precision."""
        grad = torch.nn.functional.pad(self.of_queries(grad_out), (0, EXTRA))
        out, rest, dim = torch.zeros_like(grad), self.of_queries(delta), grad_out.shape[-1]
        for at in range(dim, dim + 3):
            grad[..., at] = 1
            out[..., at] = rest
            rest = rest - out[..., at]
        return self._laid_out(grad), self._laid_out(out)

    def without_extra(self, x: Tensor) -> Tensor:
        """[B, h, n, D] of what xformers gives."""
        return x[..., : self.call.q.shape[-1]].transpose(1, 2)

    def grouped(self, grad: Tensor) -> Tensor:
        """Gradients [B, h, m, D] of copies, summed over heads that share keys."""
        shared = min(self._group, grad.shape[1])
        return grad.float().reshape(len(grad), -1, shared, *grad.shape[2:]).sum(2)

    @property
    def _group(self) -> int:
        return self.call.q.shape[1] // self.call.k.shape[1]

    def _copied(self, x: Tensor) -> Tensor:
        """[B, h, m, D] of [B, hkv, m, D]: a copy for each head that shares it."""
        heads = self.heads.stop - self.heads.start
        return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)

    def _laid_out(self, x: Tensor) -> Tensor:
        """[B, n, h, D], the last dimension in one piece."""
        x = x.transpose(1, 2)
        return x if x.stride(-1) == 1 else x.contiguous()


def _strips(call: Call) -> Iterator[_Strip]:
    """Runs of heads of one dilation, whole groups of those that share keys or parts of one."""
    for band in call.lowered.bands:
        for heads, _ in head_runs(call.q.shape[1], call.k.shape[1], band.alike):
            own = band.at(heads.start)
            for residue in range(min(own.dilations[0], call.k.shape[2])):
                strip = _Strip(call, own, heads, residue)
                if strip.start < call.q.shape[2]:
                    yield strip


@dataclass(frozen=True, eq=False)
class _Area:
    """Some rows of one example and its global columns."""

    batch: int
    rows: slice
    positions: Tensor
    rectangle: dense.Rectangle

    def of_queries(self, x: Tensor) -> Tensor:
        return x[self.batch, :, self.rows]


def _columns(call: Call) -> Iterator[_Area]:
    """Columns without what the band shows, a few thousand rows at a time."""
    if call.columns is None:
        return
    queries, device = call.q.shape[2], call.q.device
    head = torch.arange(call.q.shape[1], device=device)[:, None, None]
    for batch, (at, valid) in enumerate(zip(call.columns.positions, call.columns.valid, strict=True)):
        k, v = call.k[batch][:, at], call.v[batch][:, at]
        for start in range(0, queries, COLUMN_ROWS):
            rows = slice(start, min(start + COLUMN_ROWS, queries))
            query = torch.arange(rows.start, rows.stop, device=device)[:, None] + call.offset
            seen = valid & (at <= query) if call.columns.causal else valid.expand(len(query), -1)
            for band in call.lowered.bands:
                seen = seen & ~band.sees(head, query, at)
            area = dense.Rectangle(call.q[batch, :, rows], k, v, seen, None, None, call.scale, None)
            yield _Area(batch, rows, at, area)
