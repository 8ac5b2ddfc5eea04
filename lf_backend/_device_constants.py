"""Numbers of a pattern on a device. Copied once: a copy to a GPU waits for it and cannot be captured."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def on_device(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor that nobody writes to."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
