"""From a call to launches: its plan, its tensors, and what torch does around the kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lf_backend._device_constants import on_device
from lf_backend._looked import once
from lf_backend.backend import Call, Columns, Gradients
from lf_backend.backends.triton import forward as forward_kernels
from lf_backend.backends.triton import grad_columns, grad_keys, grad_queries, sums
from lf_backend.backends.triton.device import Device
from lf_backend.backends.triton.plan import LaunchPlan, dims_of, over, reach_of
from lf_backend.backends.triton.tiles import Documents, Dropout, Padding, Taps, View
from lf_backend.backends.triton.tuning import Tiles
from lf_backend.numerics import dropout

DELTAS = Tiles(64, 64, 4, 1)  # rows of a program, and listed rows that it compares them with at a time
SUMS = Tiles(1, 32, 4, 1)  # a row of a program, and parts that it reads at a time


def forward(call: Call, device: Device, into: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Out [B, H, N, D] and lse [B, H, N]; or the rows of these that are at the call's positions, in place."""
    plan, given = LaunchPlan.of(call, device), Given.of(call)
    step = plan.forward
    if into is None:
        out = torch.empty_like(call.q, memory_format=torch.contiguous_format)
        into = out, out.new_empty(out.shape[:3], dtype=torch.float32)
    out, lse = into
    found, found_lse = into
    if step.parts > 1:
        found = plan.partial(step.parts, call.q.device)
        found_lse = found.new_empty(found.shape[:3])
    device.launch(
        forward_kernels.forward, step.grid, step.size,
        **step.arguments, **given.scoring, positions=given.positions, columns=given.columns, out=view(found),
        lse=found_lse, padding=given.padding,
    )  # fmt: skip
    if step.parts > 1:
        device.launch(
            forward_kernels.combine, plan.combine.grid, plan.combine.size,
            **plan.combine.arguments, positions=given.positions, partial=found, partial_lse=found_lse,
            out=view(out), lse=lse,
        )  # fmt: skip
    return into


def deltas(
    grad_out: Tensor, out: Tensor, lse: Tensor, rows: Tensor | None, device: Device
) -> tuple[Tensor, Tensor]:
    """Return the sum of grad_out * out, and lse with +inf in the rows without effect; see the kernel."""
    batch, heads, queries, head_dim = out.shape
    delta, local = torch.empty_like(lse), torch.empty_like(lse)
    device.launch(
        sums.deltas, (over(queries, DELTAS.rows) * heads * batch, 1), DELTAS,
        grad_out=view(grad_out), out=view(out), lse=lse.contiguous(), delta=delta, local=local, heads=heads,
        rows=None if rows is None else once(_int32, rows), queries=queries,
        count=0 if rows is None else rows.shape[1], HEAD_DIM=head_dim, DIMS=dims_of(head_dim),
        ROWS=DELTAS.rows, LISTED=DELTAS.keys,
    )  # fmt: skip
    return delta, local


def backward(
    call: Call, device: Device, grad_out: Tensor, delta: Tensor, lse: Tensor, into: Gradients | None = None
) -> Gradients:
    """Gradients in the shapes and dtypes of the inputs.

    With positions, only their queries have any: in `into`, their rows of the gradient of q are overwritten,
    and theirs of k and v added; without it, all is new.
    """
    plan, given = LaunchPlan.of(call, device), Given.of(call)
    upstream = {"grad_out": view(grad_out), "lse": lse.contiguous(), "delta": delta.contiguous()}
    given.scoring.update(upstream)
    work = _Backward(call, device, plan, given)
    if plan.grad_keys.shares:
        return work.of_rows(into)
    columns = None if call.columns is None else work.parts_of_columns()
    grad_q, grad_bias = work.of_queries(None if into is None else into.q, columns)
    grad_k, grad_v = work.of_keys(None if into is None else (into.k, into.v), None)
    if columns is not None:
        work.of_columns(columns, grad_k, grad_v)
    return Gradients(grad_q, grad_k, grad_v, grad_bias)


class _Backward(NamedTuple):
    """The launches of one backward; `given.scoring` holds grad_out, lse and delta besides."""

    call: Call
    device: Device
    plan: LaunchPlan
    given: Given

    def of_rows(self, into: Gradients | None) -> Gradients:
        """Compute all gradients of queries so few that each block of keys finds its part of theirs."""
        plan, given, parts = self.plan, self.given, self.plan.grad_keys.shares
        grad_q = self._new_grad_q() if into is None else into.q
        partial = plan.partial(parts, grad_q.device)
        grad_k, grad_v = self.of_keys(None if into is None else (into.k, into.v), partial)
        self._sum((partial,), (grad_q,), given.positions, parts, plan.keys - plan.queries)
        return Gradients(grad_q, grad_k, grad_v, None)

    def of_queries(
        self, grad: Tensor | None, columns: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the gradients of queries and of the band bias, and parts of few columns' on the way."""
        call, plan, given, step = self.call, self.plan, self.given, self.plan.grad_queries
        grad = self._new_grad_q() if grad is None else grad
        found = grad if step.parts == 1 else plan.partial(step.parts, grad.device)
        of_k, of_v = columns if columns is not None and step.shares else (None, None)
        grad_bias = taps = None
        if call.band_bias is not None:
            shape = (plan.batch, *call.band_bias.shape[1:])
            grad_bias = torch.zeros(shape, dtype=torch.float32, device=grad.device)
            taps = Taps(grad_bias, grad_bias.stride())
        self.device.launch(
            grad_queries.grad_queries, step.grid, step.size,
            **step.arguments, **given.scoring, positions=given.positions, columns=given.columns,
            grad_q=view(found), grad_bias=taps, grad_k=None if of_k is None else view(of_k),
            grad_v=None if of_v is None else view(of_v), padding=given.padding,
        )  # fmt: skip
        if step.parts > 1:
            self._sum((found,), (grad,), given.positions, step.parts, plan.keys - plan.queries)
        if grad_bias is not None and call.band_bias is not None:
            grad_bias = grad_bias.sum(0, keepdim=True) if call.band_bias.shape[0] == 1 else grad_bias
            grad_bias = grad_bias.to(call.band_bias.dtype)
        return grad, grad_bias

    def of_keys(self, into: tuple[Tensor, Tensor] | None, of_queries: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the band's gradients of keys; heads that share keys may be shared among programs."""
        call, plan, given = self.call, self.plan, self.given
        if plan.band is None:
            return torch.zeros_like(call.k), torch.zeros_like(call.v)
        step, add = plan.grad_keys, into is not None
        shape = (plan.batch, plan.kv_heads * step.parts, plan.keys, plan.head_dim)
        dtype = call.k.dtype if step.parts == 1 else torch.float32
        if into is None:
            into = (
                torch.empty(shape, dtype=dtype, device=call.k.device),
                torch.empty(shape, dtype=dtype, device=call.k.device),
            )
        grad_k, grad_v = into
        self.device.launch(
            grad_keys.grad_keys, step.grid, step.size,
            **step.arguments, **given.scoring, positions=given.positions, grad_k=view(grad_k),
            grad_v=view(grad_v), grad_q=None if of_queries is None else view(of_queries),
            padding=given.padding, ADD=add,
        )  # fmt: skip
        if step.parts > 1:
            grouped = (plan.batch, plan.kv_heads, step.parts, *shape[2:])
            grad_k, grad_v = (x.view(grouped).sum(2).to(call.k.dtype) for x in (grad_k, grad_v))
        return grad_k, grad_v

    def parts_of_columns(self) -> tuple[Tensor, Tensor]:
        """Memory for what every part finds for the columns' k and v, float32 [parts * B, Hkv, count, D]."""
        plan = self.plan
        parts = plan.grad_queries.shares or plan.grad_columns.parts
        shape = (parts * plan.batch, plan.kv_heads, plan.count, plan.head_dim)
        device = self.call.k.device
        return (
            torch.empty(shape, dtype=torch.float32, device=device),
            torch.empty(shape, dtype=torch.float32, device=device),
        )

    def of_columns(self, found: tuple[Tensor, Tensor], grad_k: Tensor, grad_v: Tensor) -> None:
        """Overwrite the gradients of global columns, whose parts the queries have found if they are few."""
        plan, given = self.plan, self.given
        parts = plan.grad_queries.shares
        if not parts:
            step = plan.grad_columns
            parts = step.parts
            self.device.launch(
                grad_columns.grad_columns, step.grid, step.size,
                **step.arguments, **given.scoring, columns=given.columns, grad_k=view(found[0]),
                grad_v=view(found[1]), padding=given.padding,
            )  # fmt: skip
        self._sum(found, (grad_k, grad_v), given.columns, parts, 0)

    def _sum(
        self,
        partial: tuple[Tensor, ...],
        to: tuple[Tensor, ...],
        positions: Tensor | None,
        parts: int,
        first: int,
    ) -> None:
        """Sum each partial [parts * B, H, slots, D] into the rows of its `to` at positions, from `first` on.

        There are one or two of them.
        """
        plan, pair = self.plan, len(to) == 2
        heads, slots = partial[0].shape[1:3]
        self.device.launch(
            sums.sum_parts, (slots * heads * plan.batch, 1), SUMS,
            partial=view(partial[0]), to=view(to[0]), other_partial=view(partial[1]) if pair else None,
            other_to=view(to[1]) if pair else None, positions=positions, heads=heads, slots=slots,
            parts=parts, first=first, HEAD_DIM=plan.head_dim, DIMS=plan.dims, PARTS=SUMS.keys, PAIR=pair,
        )  # fmt: skip

    def _new_grad_q(self) -> Tensor:
        """Memory for the gradient of q, which is 0 where queries are listed and this one is not."""
        make = torch.empty if self.call.positions is None else torch.zeros
        return make(self.call.q.shape, dtype=self.call.q.dtype, device=self.call.q.device)


def view(x: Tensor) -> View:
    """A tensor [B, H, N, D] with its strides."""
    stride, (_, _, length, width) = x.stride(), x.shape
    last = (length - 1) * stride[2] + (width - 1) * stride[3]
    return View(x, stride, 1 if last >= 2**31 else None)


class Given(NamedTuple):
    """The part of a call that no plan has: tensors, and numbers that may be others in every call.

    Attributes:
        scoring: for every kernel that computes scores.
        positions: int32 [B, listed], which queries are computed, or None for all.
        columns: int32 [B, G], positions of global columns, -1 where a slot is not used; or None.
        padding: padded positions, or None.
    """

    scoring: dict[str, Any]
    positions: Tensor | None
    columns: Tensor | None
    padding: Padding | None

    @classmethod
    def of(cls, call: Call) -> Given:
        scoring = {
            "q": view(call.q), "k": view(call.k), "v": view(call.v), "scale": call.scale,
            "softcap": call.softcap, "dilations": _dilations(call), "bias": _bias(call),
            "dropout": _dropout(call), "documents": _call_documents(call),
        }  # fmt: skip
        positions = None if call.positions is None else once(_int32, call.positions)
        columns = None if call.columns is None else once(_int32, _positions(call.columns))
        padding = None if call.key_padding is None else padding_of(call.key_padding)
        return cls(scoring, positions, columns, padding)


def _dilations(call: Call) -> Tensor | None:
    """Int32 [H], or None where all are 1."""
    bands = call.lowered.bands
    if not bands or bands[0].dilations == (1,):
        return None
    _, dilations = reach_of(call)
    if set(dilations) == {1}:
        return None
    each = dilations if len(dilations) > 1 else dilations * call.q.shape[1]
    return on_device(each, torch.int32, call.q.device)


def _bias(call: Call) -> Taps | None:
    if call.band_bias is None:
        return None
    bias = call.band_bias.expand(call.q.shape[0], -1, -1, -1)
    return Taps(bias, bias.stride())


def _call_documents(call: Call) -> Documents | None:
    if call.documents is None:
        return None
    listed = call.positions if call.columns is None else _positions(call.columns)
    if listed is None:
        return once(_documents, *call.documents)
    return once(_documents_of, *call.documents, listed, call.k.shape[2])


def _dropout(call: Call) -> Dropout | None:
    if not call.dropout_p:
        return None
    assert call.seed is not None, "the operator draws a seed"
    starts = dropout.starts(call.seed, torch.arange(call.q.shape[0], device=call.q.device))
    return Dropout(
        starts, dropout.origin(call.seed), dropout.threshold(call.dropout_p), 1 / (1 - call.dropout_p)
    )


def padding_of(mask: Tensor) -> Padding:
    """Padded positions as kernels take them, made of bool [B, M] without a look by the host."""
    whole = mask if mask.is_contiguous() else once(torch.Tensor.contiguous, mask)
    return Padding(whole.view(torch.int8), once(_bounds, mask))


def _bounds(mask: Tensor) -> Tensor:
    real = (~mask).to(torch.int8)
    keys, count = mask.shape[1], real.sum(1)
    first = torch.where(count > 0, real.argmax(1), 0)
    end = torch.where(count > 0, keys - real.flip(1).argmax(1), 0)
    return torch.stack((first, end, (end - first != count).to(first.dtype)), 1).to(torch.int32)


def _positions(columns: Columns) -> Tensor:
    """Int64 [B, G], -1 where a slot is not used."""
    return once(_listed, columns.positions, columns.valid)


def _listed(positions: Tensor, valid: Tensor) -> Tensor:
    return positions.masked_fill(~valid, -1)


def _int32(x: Tensor) -> Tensor:
    return x.to(torch.int32, copy=True).contiguous()


def _documents(start: Tensor, end: Tensor) -> Documents:
    start, end = _int32(start), _int32(end)
    return Documents(start, end, start, end)  # what is not looked at where nothing is listed


def _documents_of(start: Tensor, end: Tensor, listed: Tensor, keys: int) -> Documents:
    """The documents, and which of the columns or of the listed queries, ascending and then -1, is whose."""
    ascending = torch.where(listed < 0, keys, listed).contiguous()
    first, last = torch.searchsorted(ascending, start), torch.searchsorted(ascending, end)
    return Documents(*map(_int32, (start, end, first, last)))
