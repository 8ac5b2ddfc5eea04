"""Several windows, one pass of the kernels after the other, over bands that share no pair.

Forward, the passes meet in their log-sum-exps; backward, each has the weights of the whole softmax from the
whole lse, and gradients add up. Global columns belong to the first pass, and are padding to the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from lf_backend.backend import Call, Gradients
from lf_backend.backends.triton import launch
from lf_backend.backends.triton.device import Device
from lf_backend.numerics.join import join
from lf_backend.pattern.disjoint import disjoint


def forward(call: Call, device: Device) -> tuple[Tensor, Tensor]:
    """Out [B, H, N, D] and lse [B, H, N]."""
    if len(call.lowered.bands) < 2:
        return launch.forward(call, device)
    first, *others = _passes(call)
    out, lse = launch.forward(first, device)
    total = out.float()
    for one in others:
        join(total, lse, *launch.forward(one, device))
    return total.to(out.dtype), lse


def backward(call: Call, device: Device, grad_out: Tensor, delta: Tensor, lse: Tensor) -> Gradients:
    """Gradients in the shapes and dtypes of the inputs."""
    if len(call.lowered.bands) < 2:
        return launch.backward(call, device, grad_out, delta, lse)
    first, *others = _passes(call)
    found = launch.backward(first, device, grad_out, delta, lse)
    totals = [x.float() for x in found[:3]]
    for one in others:
        for total, more in zip(totals, launch.backward(one, device, grad_out, delta, lse)[:3], strict=True):
            total += more
    q, k, v = (total.to(x.dtype) for total, x in zip(totals, (call.q, call.k, call.v), strict=True))
    return Gradients(q, k, v, None)  # a band bias comes with one window alone


def _passes(call: Call) -> Iterator[Call]:
    """The call as one call for each band, none of which shows what another does."""
    bands = disjoint(call.lowered.bands)
    assert bands is not None, "the registry refuses windows that cross"
    padding = _or_columns(call)
    for index, band in enumerate(bands):
        own = replace(call, lowered=replace(call.lowered, bands=(band,)))
        yield own if index == 0 else replace(own, columns=None, key_padding=padding)


def _or_columns(call: Call) -> Tensor | None:
    """Bool [B, M], True for padded keys and global columns."""
    if call.columns is None:
        return call.key_padding
    shape = call.k.shape[0], call.k.shape[2]
    columns = torch.zeros(shape, dtype=torch.bool, device=call.k.device)
    columns.scatter_(1, call.columns.positions, call.columns.valid)
    return columns if call.key_padding is None else columns | call.key_padding
