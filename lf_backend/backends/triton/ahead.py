"""Kernels compiled for devices that are not here, and what they take: registers, shared memory, local memory.

Only what a launch would compile is compiled: `Target` is a `Device` that notes instead of running.

What registers have no room for, a compiler keeps in local memory. Outside the loops over tiles that costs
little, and sizes that do so can be the fastest; inside, it is paid for with every tile. So a kernel fits a
device if its shared memory is there, and no loop over tiles touches local memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from lf_backend.backend import Call, Columns
from lf_backend.backends.triton import launch
from lf_backend.backends.triton.assembly import Code, code_of, nvidia_tool
from lf_backend.backends.triton.device import Device, options
from lf_backend.backends.triton.tuning import (
    INSTALLED,
    LIKE,
    Tiles,
    TilesRow,
    Version,
    Wanted,
    row_for,
    table,
)
from lf_backend.pattern.terms import Window

SHARED_BYTES: Mapping[int | str, int] = {  # of one program
    80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10,
    "gfx942": 64 << 10,
}  # fmt: skip

TENSOR_COLUMNS = 512  # of a processor

KERNELS = ("forward", "grad_queries", "grad_keys", "grad_columns")
CALLS = ((64, 2), (128, 2), (256, 2), (64, 4), (128, 4))  # head dimensions, bytes of an element
DTYPES = {2: torch.bfloat16, 4: torch.float32}


@dataclass(frozen=True)
class Compiled:
    """One kernel for one target.

    Attributes:
        registers: of a thread.
        spills: bytes of local memory of a thread.
        shared: bytes of a program's shared memory.
        tensor: columns of its tensor memory, which is sm_100's for products.
        assembly: what Triton has made of it, by kind.
    """

    kernel: str
    tiles: Tiles
    registers: int
    spills: int
    shared: int
    tensor: int
    assembly: Mapping[str, Any] = field(repr=False)

    @cached_property
    def code(self) -> Code:
        """The instructions."""
        return code_of(self.assembly)

    @property
    def looped(self) -> int:
        """Loads and stores of local memory inside loops over tiles."""
        return self.code.local_in_loops if self.spills else 0

    def fits(self, arch: int | str) -> bool:
        """Whether a device has the memory, and no loop over tiles touches local memory."""
        return self.shared <= SHARED_BYTES[arch] and self.tensor <= TENSOR_COLUMNS and self.looped == 0


class Shipped(NamedTuple):
    """A kernel that users may compile: of a row, for a target, for calls with or without extras."""

    row: TilesRow
    arch: int | str
    extras: bool


@dataclass(frozen=True)
class Target(Device):
    """A device to compile for.

    Attributes:
        sizes: tiles of some kernels, instead of the table's.
        only: kernels to compile, or all.
        found: what was compiled.
    """

    sizes: Mapping[str, Tiles] = field(default_factory=dict)
    only: frozenset[str] | None = None
    found: list[Compiled] = field(default_factory=list)

    @classmethod
    def named(cls, arch: int | str, sizes: Mapping[str, Tiles] | None = None, *only: str) -> Target:
        """A target by Triton's word for it: 80, 90, 100, "gfx942"."""
        return cls(arch, 132, 0, sizes or {}, frozenset(only) or None)

    def tiles(self, wanted: Wanted) -> Tiles:
        return self.sizes.get(wanted.kernel) or super().tiles(wanted)

    def launch(self, kernel: Any, grid: tuple[int, int], size: Tiles, **arguments: Any) -> None:
        name = kernel.fn.__name__
        if self.only is not None and name not in self.only:
            return
        done = kernel.warmup(**arguments, grid=grid, **options(size))
        registers, spills = _usage(done.asm)
        found = done.metadata
        tensor = getattr(found, "tmem_size", 0)
        self.found.append(Compiled(name, size, registers, spills, found.shared, tensor, done.asm))


def compiled(call: Call, target: Target) -> list[Compiled]:
    """All kernels of a call, forward and backward, for a target. Tensors may be on the CPU."""
    with _pretend(target.arch):
        launch.forward(call, target)
        lse = torch.zeros(call.q.shape[:3])
        launch.backward(call, target, torch.zeros_like(call.q), lse, lse)
    return target.found


def example(dtype: torch.dtype, dims: int, reach: int, extras: bool, device: str, length: int) -> Call:
    """A call with 64 global columns; with softcap, band bias, dropout and padding if `extras`."""
    heads = 12
    pattern = Window(reach // 2, reach - reach // 2)
    q, k, v = (torch.zeros(1, heads, length, dims, dtype=dtype, device=device).normal_() for _ in "qkv")
    at = torch.arange(64, device=device)[None]
    bias = q.new_zeros(1, heads, length, reach + 1) if extras else None
    return Call(
        q,
        k,
        v,
        pattern.lowered,
        Columns(at, at >= 0, False),
        torch.zeros(1, length, dtype=torch.bool, device=device) if extras else None,
        bias,
        dims**-0.5,
        30.0 if extras else None,
        0.1 if extras else 0.0,
        torch.zeros(1, dtype=torch.int64, device=device) if extras else None,
    )


def built(row: TilesRow, arch: int | str, extras: bool) -> Compiled:
    """A row's kernel, for a target and a call with or without extras."""
    call = example(DTYPES[row.bytes], row.dims, 512, extras, "cpu", 1024)
    (found,) = compiled(call, Target.named(arch, {row.kernel: row.tiles}, row.kernel))
    return found


def shipped(version: Version = INSTALLED) -> list[Shipped]:
    """Every row with every target of its own and kind of call that it sizes."""
    archs = [arch for arch in SHARED_BYTES if arch not in LIKE]
    calls = product(KERNELS, CALLS, sorted({row.reach for row in table()}), (False, True), archs)
    found = {
        Shipped(row_for(arch, Wanted(kernel, dims, size, reach, extras), version), arch, extras): None
        for kernel, (dims, size), reach, extras, arch in calls
    }
    return list(found)


@contextmanager
def _pretend(arch: int | str) -> Iterator[None]:
    """Triton takes the target for the device at hand."""
    backend, warp = ("cuda", 32) if isinstance(arch, int) else ("hip", 64)
    driver = triton.runtime.driver
    before = driver._active
    driver.set_active(_Driver(GPUTarget(backend, arch, warp)))
    try:
        yield
    finally:
        driver._active = before


@dataclass(frozen=True)
class _Driver:
    """The part of a Triton driver that compiling asks for."""

    target: GPUTarget

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)  # kernels are cached by it

    def get_current_stream(self, device: Any = None) -> int:
        return 0


def _usage(assembly: Mapping[str, Any]) -> tuple[int, int]:
    """Registers of a thread and the bytes of its local memory."""
    if "amdgcn" in assembly:
        text = assembly["amdgcn"]
        words = {"registers": r"\.vgpr_count:\s*(\d+)", "spills": r"\.vgpr_spill_count:\s*(\d+)"}
        registers, spilled = (int(re.findall(word, text)[0]) for word in words.values())
        return registers, 4 * spilled
    text = nvidia_tool("cuobjdump", assembly["cubin"], "--dump-resource-usage")
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]
