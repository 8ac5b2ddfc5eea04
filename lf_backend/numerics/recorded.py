"""Autograd inside a custom operator, where PyTorch records nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import torch

T = TypeVar("T")


def recorded(device: torch.device, work: Callable[[], T]) -> T:
    """Do the work in a thread of its own, on this one's stream, where autograd records again."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def there() -> T:
        with nullcontext() if stream is None else torch.cuda.stream(stream), torch.enable_grad():
            return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(there).result()
