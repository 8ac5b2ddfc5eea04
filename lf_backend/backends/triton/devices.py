"""The device that a call runs on: a GPU, or Triton's interpreter."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
from triton import knobs

from lf_backend.backends.triton.device import UNBUILT, Device
from lf_backend.errors import BuildError


def of(device: torch.device) -> Device:
    """Return the device of a tensor; TRITON_INTERPRET makes it the interpreter.

    Raises:
        BuildError: Triton cannot drive the device.
    """
    return _device(device.type, device.index)


@lru_cache(maxsize=64)
def _device(kind: str, index: int | None) -> Device:
    if knobs.runtime.interpret:
        from lf_backend.backends.triton.interpreter import Interpreter  # with numpy

        return Interpreter("interpreter", processors=8, index=None)
    try:
        with torch.cuda.device(index):
            arch = triton.runtime.driver.active.get_current_target().arch
    except (RuntimeError, *UNBUILT) as error:  # Triton builds its driver when first asked
        raise BuildError(f"triton cannot drive the device: {error}") from error
    return Device(arch, torch.cuda.get_device_properties(index).multi_processor_count, index)
