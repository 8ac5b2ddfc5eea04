"""xformers' memory-efficient attention: a window by its local bias, dilated by strided views.

    band            one call per run of heads of one dilation and residue class, which is a plain window
    documents       all in that call where xformers has a bias for it, causal windows over as many queries as
                    keys; otherwise a call for each. The host waits for their lengths
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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Documents, Gradients
from lf_backend.errors import BuildError
from lf_backend.numerics.global_columns import add_gradients, join_columns
from lf_backend.numerics.head_runs import head_runs
from lf_backend.pattern.bands import Band
from lf_backend.pattern.interchange import has_block_bias, xformers_bias, xformers_block_bias
from lf_backend.problem import Feature, Machine, Problem

EXTRA = 8  # dimensions
BURIED = {torch.float16: 2.0**15, torch.bfloat16: 2.0**60}  # its square hides any other product
NOBODY = 1e30  # log-sum-exp of a row without effect, finite for the kernels' sake


class Xformers(Backend):
    """See the module."""

    name = "xformers"
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
        deterministic=False,
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
            own = strip.unpacked(own, 2)
            strip.of_queries(out).copy_(strip.without_extra(values))
            strip.of_queries(lse).copy_(own.masked_fill(own < strip.buried / 2, -torch.inf))
        join_columns(call, out, lse)
        return out.masked_fill_(lse[..., None] == -torch.inf, 0).to(call.q.dtype), lse

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        grad_q, grad_k, grad_v = (
            torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (call.q, call.k, call.v)
        )
        for strip in _strips(call):
            upstream, out = strip.with_delta(grad_out, delta)
            own = strip.packed(strip.of_queries(lse).clamp(max=NOBODY), 2).contiguous()
            found = self.differentiate(upstream, out, own, *strip.inputs(extra=True), strip.bias, strip.scale)
            dq, dk, dv = map(strip.without_extra, found)
            strip.of_queries(grad_q).copy_(dq if call.scale else torch.zeros_like(dq))
            for grad, more in ((grad_k, dk), (grad_v, dv)):
                strip.of_keys(grad).add_(strip.grouped(more))
        add_gradients(call, grad_out, delta, lse, (grad_q, grad_k, grad_v))
        dtype = call.q.dtype
        return Gradients(grad_q.to(dtype), grad_k.to(dtype), grad_v.to(dtype), None)

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Any, scale: float) -> tuple[Tensor, Tensor]:
        """xformers' forward: out [B, n, H, D] and lse [B, H, n] of q [B, n, H, D], k and v [B, m, H, D]."""
        try:
            out, lse = _fmha().memory_efficient_attention_forward_requires_grad(q, k, v, bias, scale=scale)
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


class _Run(NamedTuple):
    """The positions first, ..., end - 1 of some examples."""

    examples: slice
    first: int
    end: int

    def indices(self, residue: int, step: int, offset: int = 0) -> slice:
        """Indices of the positions residue, residue + step, ..., where index 0 is position `offset`."""
        first = max(self.first, offset)
        return slice(first + (residue - first) % step - offset, max(self.end - offset, 0), step)


@dataclass(frozen=True, eq=False)
class _Strip:
    """One residue class of some heads of one dilation: of all examples, or of one document.

    Attributes:
        counts: the lengths of the documents in the residue class, one after another, if one call holds all.
    """

    call: Call
    band: Band
    heads: slice
    residue: int
    run: _Run
    counts: tuple[int, ...] = ()

    @property
    def bias(self) -> Any:
        if self.counts:
            return xformers_block_bias(self.band.left, self.band.right, self.counts, self.call.q.device)
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
    def queries(self) -> slice:
        """Indices of the queries."""
        return self.run.indices(self.residue, self.band.dilations[0], self.call.offset)

    @property
    def keys(self) -> slice:
        """Positions of the keys."""
        return self.run.indices(self.residue, self.band.dilations[0])

    def of_queries(self, x: Tensor) -> Tensor:
        """The strip's view [B, h, n, ...] of x [B, H, N, ...]."""
        return x[self.run.examples, self.heads, self.queries]

    def of_keys(self, x: Tensor) -> Tensor:
        """The strip's view [B, hkv, m, ...] of x [B, Hkv, M, ...]."""
        group = self._group
        kv_heads = slice(self.heads.start // group, (self.heads.stop - 1) // group + 1)
        return x[self.run.examples, kv_heads, self.keys]

    def packed(self, x: Tensor, at: int) -> Tensor:
        """Join the examples of x along dimension `at`, if one call holds all: [1, ..., B * n, ...]."""
        if not self.counts:
            return x
        return x.movedim(0, at - 1).flatten(at - 1, at)[None]

    def unpacked(self, x: Tensor, at: int) -> Tensor:
        """Undo `packed`."""
        if not self.counts:
            return x
        apart = torch.unflatten(x[0], at - 1, (self.call.q.shape[0], -1))
        return apart.movedim(at - 1, 0)

    def inputs(self, extra: bool) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, n, h, D] as xformers takes them, with or without extra dimensions."""
        q, k, v = self.of_queries(self.call.q), *(self.of_keys(x) for x in (self.call.k, self.call.v))
        if not self.call.scale:
            q = torch.zeros_like(q)
        if extra:
            q, k, v = (torch.nn.functional.pad(x, (0, EXTRA)) for x in (q, k, v))
            if self.call.key_padding is not None:
                height = BURIED[q.dtype]
                padded = self.call.key_padding[self.run.examples, None, self.keys]
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
        return self.unpacked(x, 1)[..., : self.call.q.shape[-1]].transpose(1, 2)

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
        x = self.packed(x.transpose(1, 2), 1)
        return x if x.stride(-1) == 1 else x.contiguous()


def _strips(call: Call) -> Iterator[_Strip]:
    """Runs of heads of one dilation, whole groups of those that share keys or parts of one."""
    whole = [_Run(slice(None), 0, call.k.shape[2])]
    runs = whole if call.documents is None else _runs(call.documents)
    for band in call.lowered.bands:
        for heads, _ in head_runs(call.q.shape[1], call.k.shape[1], band.alike):
            own = band.at(heads.start)
            joined = call.documents is not None and call.offset == 0 and has_block_bias(own.left, own.right)
            for residue in range(min(own.dilations[0], call.k.shape[2])):
                counts = _counts(runs, residue, own.dilations[0]) if joined else ()
                for run in whole if joined else runs:
                    strip = _Strip(call, own, heads, residue, run, counts)
                    if range(call.q.shape[2])[strip.queries]:
                        yield strip


def _counts(runs: list[_Run], residue: int, step: int) -> tuple[int, ...]:
    """Lengths of documents in a residue class, without those that have no position in it."""
    classes = (run.indices(residue, step) for run in runs)
    return tuple(filter(None, (len(range(x.start, x.stop, x.step)) for x in classes)))


def _runs(documents: Documents) -> list[_Run]:
    """Return every document: a look by the host."""
    examples = zip(documents.start.tolist(), documents.end.tolist(), strict=True)
    return [
        _Run(slice(example, example + 1), first, end)
        for example, ends in enumerate(examples)
        for first, end in sorted(set(zip(*ends, strict=True)))
    ]
