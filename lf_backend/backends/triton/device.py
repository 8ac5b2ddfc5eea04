"""The device that kernels are compiled for and run on."""

from __future__ import annotations

from dataclasses import dataclass, field
from subprocess import SubprocessError
from typing import Any

import torch
from triton.errors import TritonError

from lf_backend.backends.triton.tuning import Tiles, Wanted, row_for
from lf_backend.errors import BuildError

# Not compiled, or too large for the device; or a compiler of C that fails, a cache that cannot be written:
# what Triton launches by is built as well.
UNBUILT = (TritonError, SubprocessError, OSError)
# What compilers and drivers say, in a plain RuntimeError, of a kernel that a device will never run.
CANNOT_BE_BUILT = (
    "PassManager::run failed",
    "Triton Error [CUDA]: out of memory",  # for local memory, when the kernel is loaded
    "Triton Error [CUDA]: no kernel image is available",
    "Triton Error [CUDA]: device kernel image is invalid",
    "Triton Error [HIP]:  Code: 2",  # out of memory
    "Triton Error [HIP]:  Code: 209",  # no binary for the device
)


@dataclass(frozen=True)
class Device:
    """A device as launches see it.

    Attributes:
        arch: Triton's word: 90 for compute capability 9.0, "gfx942".
        processors: how many programs run side by side.
        index: PyTorch's; None on the CPU.
        plans: of launches here, by kind of call; see `launch`.
    """

    arch: int | str
    processors: int
    index: int | None
    plans: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def tiles(self, wanted: Wanted) -> Tiles:
        """Sizes for a kernel; see `tuning`."""
        return row_for(self.arch, wanted).tiles

    def launch(self, kernel: Any, grid: tuple[int, int], size: Tiles, **arguments: Any) -> None:
        """Run a kernel here, on the current stream.

        Raises:
            BuildError: it cannot be compiled for the device, or takes more than the device has.
        """
        try:
            with torch.cuda.device(self.index):  # a kernel runs on the current device, not its tensors'
                kernel[grid](**arguments, **options(size))
        except UNBUILT as error:
            raise BuildError(f"{kernel.fn.__name__} with {size}: {error}") from error
        except RuntimeError as error:
            if not any(words in str(error) for words in CANNOT_BE_BUILT):
                raise  # of the device, and perhaps not even of this kernel
            raise BuildError(f"{kernel.fn.__name__} with {size}: {error}") from error


def options(size: Tiles) -> dict[str, Any]:
    """How a kernel is compiled. Multiply-adds are fused, whatever Triton's default is."""
    found = {"num_warps": size.warps, "num_stages": size.stages, "enable_fp_fusion": True}
    return {**found, "maxnreg": size.registers} if size.registers else found
