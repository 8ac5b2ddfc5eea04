"""Numbers of a pattern on a device. Copied once: a copy to a GPU waits for it and cannot be captured."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lf_backend import _callers


def on_device(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values, (nested) tuples of ints, as a tensor that nobody writes to.

    What a compiler or tracer makes is its own, and not kept for others.
    """
    if torch.compiler.is_compiling() or _callers.is_recorded():
        with _callers.not_traced():
            return torch.tensor(values, dtype=dtype, device=device)
    return _kept(values, dtype, device)


@lru_cache(maxsize=256)
def _kept(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
