"""From a call to launches: arguments, grids, tile sizes, and what torch does around the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lf_backend._device_constants import on_device
from lf_backend.backend import Call, Gradients
from lf_backend.backends.triton import backward as backward_kernels
from lf_backend.backends.triton import forward as forward_kernels
from lf_backend.backends.triton.device import Device
from lf_backend.backends.triton.tiles import Columns, Dropout, Padding, Taps, View
from lf_backend.backends.triton.tuning import Tiles, Wanted
from lf_backend.numerics import dropout

PACKED_ROWS = 64  # most rows, over all heads that share keys, of queries so few that one program takes them
MOST_PARTS = 64


def forward(call: Call, device: Device) -> tuple[Tensor, Tensor]:
    """Out [B, H, N, D] and lse [B, H, N]."""
    plan = Plan(call, device)
    size = plan.tiles("forward")
    pack = plan.pack
    rows = plan.rows(size, pack)
    blocks = plan.blocks(plan.queries, rows // pack)
    programs = blocks * plan.heads // pack * plan.batch
    parts = plan.parts(programs, size.keys)
    out = torch.empty_like(call.q, memory_format=torch.contiguous_format)
    lse = out.new_empty(out.shape[:3], dtype=torch.float32)
    partial, partial_lse = out, lse
    if parts > 1:
        partial = out.new_empty(parts * plan.batch, *out.shape[1:], dtype=torch.float32)
        partial_lse = partial.new_empty(partial.shape[:3])
    plan.device.launch(
        forward_kernels.forward, (programs, parts), size,
        **plan.arguments, out=view(partial), lse=partial_lse, positions=plan.positions,
        padding=plan.padding, blocks=blocks, parts=parts, PACK=pack, ROWS=rows, KEYS=size.keys,
        COLUMNS=plan.width(size), **plan.column_arguments,
    )  # fmt: skip
    if parts > 1:
        count = lse.numel()
        plan.device.launch(
            forward_kernels.combine, (count, 1), Tiles(1, 1, 1, 1),
            partial=partial, partial_lse=partial_lse, out=view(out), lse=lse, heads=plan.heads,
            queries=plan.queries, rows=count, parts=parts, HEAD_DIM=plan.head_dim, DIMS=plan.dims,
            PARTS=_power(parts),
        )  # fmt: skip
    return out, lse


def backward(call: Call, device: Device, grad_out: Tensor, delta: Tensor, lse: Tensor) -> Gradients:
    """Gradients in the shapes and dtypes of the inputs."""
    plan = Plan(call, device)
    upstream = {"grad_out": view(grad_out), "lse": lse.contiguous(), "delta": delta.contiguous()}
    grad_q, grad_bias = _grad_queries(plan, upstream)
    grad_k, grad_v = _grad_keys(plan, upstream)
    if call.columns is not None:
        _grad_columns(plan, upstream, grad_k, grad_v)
    return Gradients(grad_q, grad_k, grad_v, grad_bias)


def _grad_queries(plan: Plan, upstream: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    call, size = plan.call, plan.tiles("grad_queries")
    rows = plan.rows(size, 1)
    blocks = plan.blocks(plan.queries, rows)
    programs = blocks * plan.heads * plan.batch
    parts = plan.parts(programs, size.keys)
    dtype = torch.float32 if parts > 1 else call.q.dtype
    grad = call.q.new_empty(parts * plan.batch, *call.q.shape[1:], dtype=dtype)
    grad_bias = taps = None
    if call.band_bias is not None:
        shape = (plan.batch, *call.band_bias.shape[1:])
        grad_bias = torch.zeros(shape, dtype=torch.float32, device=grad.device)
        taps = Taps(grad_bias, grad_bias.stride())
    plan.device.launch(
        backward_kernels.grad_queries, (programs, parts), size,
        **plan.arguments, **upstream, grad_q=view(grad),
        grad_bias=taps, positions=plan.positions,
        padding=plan.padding, blocks=blocks, parts=parts, ROWS=rows, KEYS=size.keys,
        COLUMNS=plan.width(size), **plan.column_arguments,
    )  # fmt: skip
    if parts > 1:
        grad = grad.view(parts, *call.q.shape).sum(0).to(call.q.dtype)
    if grad_bias is not None and call.band_bias is not None:
        grad_bias = grad_bias.sum(0, keepdim=True) if call.band_bias.shape[0] == 1 else grad_bias
        grad_bias = grad_bias.to(call.band_bias.dtype)
    return grad, grad_bias


def _grad_keys(plan: Plan, upstream: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Compute the band's gradients of keys; heads that share keys but differ in dilation get one each."""
    call, size = plan.call, plan.tiles("grad_keys")
    if plan.band is None:
        return torch.zeros_like(call.k), torch.zeros_like(call.v)
    group = plan.group if plan.alike else 1
    shape = (plan.batch, plan.heads // group, plan.keys, plan.head_dim)
    dtype = call.k.dtype if plan.alike else torch.float32
    grad_k, grad_v = (torch.empty(shape, dtype=dtype, device=call.k.device) for _ in "kv")
    blocks = plan.blocks(plan.keys, size.keys)
    plan.device.launch(
        backward_kernels.grad_keys, (blocks * shape[1] * plan.batch, 1), size,
        **plan.arguments, **upstream, grad_k=view(grad_k), grad_v=view(grad_v),
        positions=plan.positions, padding=plan.padding, blocks=blocks, group=group, ROWS=size.rows,
        KEYS=size.keys,
    )  # fmt: skip
    if not plan.alike:
        grouped = (plan.batch, plan.kv_heads, plan.group, *shape[2:])
        grad_k, grad_v = (x.view(grouped).sum(2).to(call.k.dtype) for x in (grad_k, grad_v))
    return grad_k, grad_v


def _grad_columns(plan: Plan, upstream: dict[str, Any], grad_k: Tensor, grad_v: Tensor) -> None:
    """Overwrite the gradients of global columns."""
    columns, size = plan.call.columns, plan.tiles("grad_columns")
    assert columns is not None, "asked only where there are columns"
    count = columns.positions.shape[1]
    width = plan.width(size)
    slots = _over(count, width)
    programs = slots * plan.kv_heads * plan.batch
    parts = max(1, min(2 * plan.device.processors // programs, _over(plan.queries, size.rows), MOST_PARTS))
    shape = (parts * plan.batch, plan.kv_heads, count, plan.head_dim)
    found = [torch.empty(shape, dtype=torch.float32, device=grad_k.device) for _ in "kv"]
    plan.device.launch(
        backward_kernels.grad_columns, (programs, parts), size,
        **plan.arguments, **upstream, grad_k=view(found[0]), grad_v=view(found[1]), slots=slots,
        parts=parts, ROWS=size.rows, COLUMNS=width, **plan.column_arguments,
    )  # fmt: skip
    at = columns.positions[:, None, :, None].expand(-1, *grad_k.shape[1:2], -1, grad_k.shape[3])
    for grad, parted in zip((grad_k, grad_v), found, strict=True):
        whole = parted.view(parts, plan.batch, *shape[1:]).sum(0).to(grad.dtype)
        grad.scatter_(2, at, torch.where(columns.valid[:, None, :, None], whole, grad.gather(2, at)))


def view(x: Tensor) -> View:
    """A tensor [B, H, N, D] with its strides."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape[2:], x.stride()[2:], strict=True))
    return View(x, x.stride(), 1 if last >= 2**31 else None)


class Plan:
    """The arguments with which the kernels of a call are launched.

    Attributes:
        alike: heads that share keys have the same dilation.
        arguments: of every kernel that computes scores.
        column_arguments: of those that see global columns.
        padding: padded keys, or None.
        positions: int32 [B, N], of queries that are not the last N of the keys.
    """

    def __init__(self, call: Call, device: Device) -> None:
        self.call = call
        self.device = device
        self.batch, self.heads, self.queries, self.head_dim = call.q.shape
        self.kv_heads, self.keys = call.k.shape[1:3]
        self.group = self.heads // self.kv_heads
        self.dims = max(16, _power(self.head_dim))
        self.band = call.lowered.bands[0] if call.lowered.bands else None
        self.dilations = self.band.dilations if self.band else (1,)
        self.reach = (0, 0)
        if self.band is not None:
            left, right = self.band.left, self.band.right
            self.reach = (self._within(left), self._within(right))
        if min(self.dilations) >= self.keys and call.band_bias is None:  # itself at most, if that
            self.dilations, self.reach = (1,), (min(self.reach[0], 0), min(self.reach[1], 0))
        self.alike = len(set(self.dilations)) == 1 or all(
            len(set(self.dilations[at : at + self.group])) == 1 for at in range(0, self.heads, self.group)
        )
        plain = call.scale > 0 and call.softcap is None and call.band_bias is None
        self.arguments: dict[str, Any] = {
            "q": view(call.q), "k": view(call.k), "v": view(call.v),
            "left": self.reach[0], "right": self.reach[1], "dilations": self._dilations(),
            "bias": self._bias(), "dropout": self._dropout(),
            "heads": self.heads, "kv_heads": self.kv_heads, "queries": self.queries, "keys": self.keys,
            "scale": call.scale, "softcap": call.softcap,
            "HEAD_DIM": self.head_dim, "DIMS": self.dims, "PLAIN": plain, "PRECISION": _precision(call.q),
        }  # fmt: skip
        self.column_arguments = self._columns()
        self.padding = None if call.key_padding is None else padding_of(call.key_padding)
        self.positions = None if call.positions is None else call.positions.to(torch.int32).contiguous()

    def tiles(self, kernel: str) -> Tiles:
        """Sizes for a kernel on this device."""
        call = self.call
        extras = bool(call.softcap is not None or call.band_bias is not None or call.dropout_p)
        return self.device.tiles(Wanted(kernel, self.dims, call.q.element_size(), sum(self.reach), extras))

    @property
    def most_in_class(self) -> int:
        """Queries of the largest residue class."""
        return _over(self.queries, min(self.dilations))

    @property
    def pack(self) -> int:
        """Heads that one program of the forward takes, so that it reads the keys they share once."""
        together = self.alike and self.most_in_class * self.group <= PACKED_ROWS
        return self.group if together else 1

    def rows(self, size: Tiles, pack: int) -> int:
        """Rows of a program, no more than there are: a power of two from 16, as products want."""
        return max(16, min(size.rows, _power(self.most_in_class * pack)), _power(pack))

    def width(self, size: Tiles) -> int:
        """Global columns of one tile: all, if they are no more than keys of one tile of the band."""
        return max(16, min(_power(self.column_arguments["count"]), size.keys))

    def blocks(self, length: int, size: int) -> int:
        """Blocks that any head has at most: residue classes times blocks of a class."""
        return max(min(d, length) * _over(_over(length, d), size) for d in set(self.dilations))

    def parts(self, programs: int, tile: int) -> int:
        """Programs that share the keys of one block, so that few queries keep the device busy."""
        if self.band is None:
            return 1
        seen = min(sum(self.reach) + 1, self.keys)
        return max(1, min(2 * self.device.processors // programs, seen // (2 * tile), MOST_PARTS))

    def _within(self, reach: int | None) -> int:
        return self.keys if reach is None else min(reach, self.keys)

    def _dilations(self) -> Tensor | None:
        if set(self.dilations) == {1}:
            return None
        each = self.dilations if len(self.dilations) > 1 else self.dilations * self.heads
        return on_device(each, torch.int32, self.call.q.device)

    def _bias(self) -> Taps | None:
        if self.call.band_bias is None:
            return None
        bias = self.call.band_bias.expand(self.batch, -1, -1, -1)
        return Taps(bias, bias.stride())

    def _dropout(self) -> Dropout | None:
        call = self.call
        if not call.dropout_p:
            return None
        assert call.seed is not None, "the operator draws a seed"
        starts = dropout.starts(call.seed, torch.arange(self.batch, device=call.q.device))
        return Dropout(starts, dropout.threshold(call.dropout_p), 1 / (1 - call.dropout_p))

    def _columns(self) -> dict[str, Any]:
        columns = self.call.columns
        found: dict[str, Any] = {
            "columns": None, "count": 0, "BAND": self.band is not None, "CAUSAL": False,
        }  # fmt: skip
        if columns is not None:
            count = columns.positions.shape[1]
            positions, valid = columns.positions.to(torch.int32), columns.valid.to(torch.int8)
            found["columns"] = Columns(positions.contiguous(), valid.contiguous())
            found.update(count=count, CAUSAL=columns.causal)
        return found


def padding_of(mask: Tensor) -> Padding:
    """Bounds and masks of padded keys for the kernels, made of bool [B, M] without a look by the host."""
    real = (~mask).to(torch.int8)
    keys, count = mask.shape[1], real.sum(1)
    first = torch.where(count > 0, real.argmax(1), 0)
    end = torch.where(count > 0, keys - real.flip(1).argmax(1), 0)
    bounds = torch.stack((first, end, (end - first != count).to(first.dtype)), 1)
    return Padding(mask.to(torch.int8).contiguous(), bounds.to(torch.int32))


def _precision(q: Tensor) -> str:
    """float32 means float32, unless torch was told otherwise."""
    if q.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


def _over(length: int, size: int) -> int:
    """How many tiles of a size a length takes."""
    return -(-length // size)


def _power(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
