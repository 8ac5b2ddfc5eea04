"""The dtype that accumulates what another dtype holds."""

from __future__ import annotations

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64, else float32: the dtype of softmax, lse and accumulated gradients."""
    return torch.float64 if dtype == torch.float64 else torch.float32
