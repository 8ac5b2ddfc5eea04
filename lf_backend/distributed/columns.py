"""Columns, the keys of global tokens, joined to the softmax of windows in place, and their gradients.

With lse the log-sum-exp of the joined softmax, a weight is exp(score - lse) and the gradient of its score is
weight * (grad_out @ v - delta + grad_lse), delta being the sum of grad_out * out over D. So the windows' own
backward takes the joined out and lse as they are, and what is added here is a few keys wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lf_backend.distributed.pieces import Rectangle


@dataclass(frozen=True, eq=False)
class Columns:
    """Attributes:
    rectangle: this rank's queries, and the global tokens of all ranks.
    q: [B, H, n, D].
    k, v: [B, Hkv, G, D], of the global tokens.
    bias: [B or 1, H, n, taps], or None.
    hidden: bool [B, 1, n, 1], True at queries that see no column: padding, and global tokens themselves,
        which are rows.
    """

    rectangle: Rectangle
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    hidden: Tensor

    def join(self, out: Tensor, lse: Tensor) -> None:
        """Join the columns to a softmax, in place; hidden queries have out 0 and lse -inf.

        Args:
            out: [B, H, n, Dv].
            lse: [B, H, n].
        """
        for rows in self.rectangle.steps(self.q):
            hidden, bias = self.hidden[:, :, rows], self._bias(rows)
            q = self.q[:, :, rows].masked_fill(hidden, 0)
            values, total, unit = self.rectangle.piece(q, self.k, self.v, bias, rows)
            old = lse[:, :, rows, None]
            new = torch.logaddexp(old, total.log() + _finite(unit)).masked_fill_(hidden, -torch.inf)
            finite = _finite(new)
            joined = out[:, :, rows] * (old - finite).exp() + values * (unit - finite).exp()
            out[:, :, rows] = joined.masked_fill_(new == -torch.inf, 0)
            lse[:, :, rows] = new[..., 0]

    def gradients(
        self, grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor
    ) -> dict[str, Tensor]:
        """Return the gradients of q, k, v and, if there is one, the bias, by name.

        Args:
            out, lse: of the joined softmax.
        """
        total = {name: torch.zeros_like(x, dtype=lse.dtype) for name, x in (("k", self.k), ("v", self.v))}
        total["q"] = torch.empty_like(self.q)
        if self.bias is not None:
            total["band_bias"] = torch.zeros_like(self.bias)
        for rows in self.rectangle.steps(self.q):
            effective = lse[:, :, rows, None]
            idle = effective == -torch.inf
            upstream = grad_out[:, :, rows].to(lse.dtype).masked_fill(idle, 0)
            less = (upstream * out[:, :, rows].masked_fill(idle, 0)).sum(-1, keepdim=True)
            if grad_lse is not None:
                less -= grad_lse[:, :, rows, None].masked_fill(idle, 0)
            found = self._step(rows, upstream, less, effective)
            total["q"][:, :, rows] = found[0]
            total["k"] += found[1]
            total["v"] += found[2]
            if self.bias is not None:
                total["band_bias"][:, :, rows] += found[3]
        return total | {name: total[name].to(x.dtype) for name, x in (("k", self.k), ("v", self.v))}

    def _step(self, rows: slice, upstream: Tensor, less: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of some queries, of k and v in the dtype of sums, and of their bias."""
        bias = self._bias(rows)
        with torch.enable_grad():
            q = self.q[:, :, rows].masked_fill(self.hidden[:, :, rows], 0).requires_grad_()
            k, v = (x.to(lse.dtype, copy=True).requires_grad_() for x in (self.k, self.v))
            leaves = [q, k, v]
            if bias is not None:
                leaves.append(bias.detach().requires_grad_())
                bias = leaves[-1]
            values, total, unit = self.rectangle.piece(q, k, v, bias, rows)
        share = (unit - _finite(lse)).exp().masked_fill(lse == -torch.inf, 0)
        return torch.autograd.grad((values, total), leaves, (upstream * share, -less * share))

    def _bias(self, rows: slice) -> Tensor | None:
        return None if self.bias is None else self.bias[:, :, rows]


def _finite(x: Tensor) -> Tensor:
    return x.masked_fill(x == -torch.inf, 0)
