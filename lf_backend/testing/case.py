"""One call to test, as a value: its tensors come from its seed, so that a failure is replayed by its repr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lf_backend.ops.arguments import Arguments
from lf_backend.ops.static_documents import lifted
from lf_backend.pattern.interned import intern
from lf_backend.pattern.terms import Pattern
from lf_backend.problem import Problem


@dataclass(frozen=True)
class Case:
    """One call of `lf_backend.attention`, without its tensors.

    Attributes:
        pattern: what sees what.
        batch, heads, kv_heads, queries, head_dim: shape; `keys` is `queries` if None.
        value_dim: width of values, `head_dim` if None.
        padding: "" for none, "right", "left", "middle" (holes anywhere), or "all" (one example whole).
        globals: per-example global tokens: None for no mask, else the most an example has; the first
            example has none.
        listed: per-example globals come as positions, not as a mask.
        documents: packed documents: 0 for none, else the most that an example has.
        separate: the rows of global tokens have projections of their own.
        bias: 0 for no band bias, else its batch (1 or `batch`).
        transposed: q, k, v are views of [B, N, H, D].
        spread: standard deviation of q; large values make sharp softmaxes.
    """

    pattern: Pattern
    batch: int = 2
    heads: int = 2
    kv_heads: int = 2
    queries: int = 33
    keys: int | None = None
    head_dim: int = 16
    value_dim: int | None = None
    padding: str = ""
    globals: int | None = None
    listed: bool = False
    documents: int = 0
    separate: bool = False
    sinks: bool = False
    bias: int = 0
    scale: float | None = None
    softcap: float | None = None
    dropout_p: float = 0.0
    transposed: bool = False
    spread: float = 1.0
    seed: int = 0

    @property
    def length(self) -> int:
        """Number of keys M."""
        return self.queries if self.keys is None else self.keys

    def tensors(self, dtype: torch.dtype, device: torch.device) -> Tensors:
        """Fresh leaves for every tensor argument, the same for every dtype up to rounding."""
        draw = _Draw(torch.Generator().manual_seed(self.seed), dtype, device)
        width = self.head_dim if self.value_dim is None else self.value_dim
        shapes = (
            (self.heads, self.queries, self.head_dim),
            (self.kv_heads, self.length, self.head_dim),
            (self.kv_heads, self.length, width),
        )
        q, k, v = (draw.layout(self, *shape) for shape in shapes)
        gq, gk, gv = (draw.layout(self, *shape) if self.separate else None for shape in shapes)
        sinks = draw.leaf(self.heads) if self.sinks else None
        bias = draw.leaf(self.bias, self.heads, self.queries, self._taps()) if self.bias else None
        if self.spread != 1.0:
            q = (q.detach() * self.spread).requires_grad_()
        padding = draw.padding(self) if self.padding else None
        mask = draw.globals(self) if self.globals is not None else None
        at = draw.listed(mask) if mask is not None and self.listed else None
        mask = mask if at is None else None
        ids = draw.documents(self) if self.documents else None
        return Tensors(q, k, v, gq, gk, gv, sinks, bias, padding, mask, at, ids)

    def options(self) -> dict[str, Any]:
        """The arguments that are numbers."""
        return {"scale": self.scale, "softcap": self.softcap, "dropout_p": self.dropout_p}

    def problem(self, dtype: torch.dtype, differentiable: bool = True) -> Problem:
        """Return the problem that the case poses to a backend."""
        t = self.tensors(dtype, torch.device("cpu"))
        arguments = Arguments(
            **t.named(),
            seed=None,
            pattern=intern(self.pattern),
            scale=1.0,
            softcap=self.softcap,
            dropout_p=self.dropout_p,
            differentiable=differentiable,
            backend="",
        )
        return lifted(arguments).problem()

    def _taps(self) -> int:
        taps = self.pattern.lowered.bands[0].taps()
        assert taps is not None, "a window with a bias is limited"
        return taps


@dataclass(frozen=True, eq=False)
class Tensors:
    """The tensor arguments of a call; None where it has none."""

    q: Tensor
    k: Tensor
    v: Tensor
    global_q: Tensor | None
    global_k: Tensor | None
    global_v: Tensor | None
    sinks: Tensor | None
    band_bias: Tensor | None
    key_padding: Tensor | None
    global_mask: Tensor | None
    global_positions: Tensor | None
    documents: Tensor | None

    def named(self) -> dict[str, Any]:
        """All by argument name."""
        return dict(vars(self))

    def leaves(self) -> dict[str, Tensor]:
        """Those that have gradients."""
        return {name: x for name, x in vars(self).items() if x is not None and x.requires_grad}

    def to(self, dtype: torch.dtype) -> Tensors:
        """Fresh leaves of the same values in another dtype; masks as they are."""
        return Tensors(
            **{
                name: x.detach().to(dtype).requires_grad_() if x is not None and x.requires_grad else x
                for name, x in vars(self).items()
            }
        )


class _Draw:
    """Random tensors, drawn in float64 on the CPU so that all dtypes and devices see the same values."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> None:
        self.generator = generator
        self.dtype = dtype
        self.device = device

    def leaf(self, *shape: int) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return x.to(self.device, self.dtype).requires_grad_()

    def layout(self, case: Case, heads: int, length: int, width: int) -> Tensor:
        if not case.transposed:
            return self.leaf(case.batch, heads, length, width)
        x = self.leaf(case.batch, length, heads, width).detach()
        return x.transpose(1, 2).requires_grad_()

    def padding(self, case: Case) -> Tensor:
        padded = torch.zeros(case.batch, case.length, dtype=torch.bool)
        for example in range(case.batch):
            count = int(torch.randint(case.length + 1, (), generator=self.generator))
            if case.padding == "right":
                padded[example, case.length - count // 2 :] = count > 1
            elif case.padding == "left":
                padded[example, : count // 2] = True
            else:
                padded[example] = torch.rand(case.length, generator=self.generator) < 0.3
        if case.padding == "all":
            padded[0] = True
        return padded.to(self.device)

    def globals(self, case: Case) -> Tensor:
        assert case.globals is not None, "called only where globals are wanted"
        mask = torch.zeros(case.batch, case.length, dtype=torch.bool)
        for example in range(1, case.batch):
            count = min(case.globals, case.length)
            mask[example, torch.randperm(case.length, generator=self.generator)[:count]] = True
        return mask.to(self.device)

    def listed(self, mask: Tensor) -> Tensor:
        """The marks of a mask as positions, in any order, with -1 among them."""
        width = int(mask.sum(1).max()) + 1 if mask.numel() else 1
        found = torch.full((len(mask), width), -1)
        for row, marks in zip(found, mask, strict=True):
            at = marks.nonzero()[:, 0].cpu()
            row[torch.randperm(width, generator=self.generator)[: len(at)]] = at
        return found.to(self.device)

    def documents(self, case: Case) -> Tensor:
        """Documents of any length, one position too; ids that are no numbers in a row."""
        ids = torch.zeros(case.batch, case.length, dtype=torch.int64)
        for row in ids:
            count = int(torch.randint(1, case.documents + 1, (), generator=self.generator))
            begins = torch.randint(case.length, (count,), generator=self.generator)
            row.index_add_(0, begins, torch.ones_like(begins))
            row.copy_(7 - 3 * row.cumsum(0))
        return ids.to(self.device)
