"""The processes of a run: which is this, and does it go first."""

from __future__ import annotations

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether there is no accelerator to run on."""
    return not torch.accelerator.is_available()


def state() -> PartialState:
    """accelerate's word on the processes; joins them where a launcher has started several."""
    return PartialState(cpu=on_cpu())
