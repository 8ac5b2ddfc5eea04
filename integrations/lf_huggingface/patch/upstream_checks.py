"""transformers' private seams; see `lf_backend.patching.upstream`.

A replaced `forward` takes the parameters of the one that it replaces, and what lies between two replaced
modules must pass them on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from lf_backend.patching import Upstream

TRANSFORMERS = Upstream("transformers", tested="5.17 to 5.23")


def check_forward(upstream: type[nn.Module], ours: type[nn.Module]) -> None:
    """Raise PatchError unless upstream's `forward` takes the parameters of ours."""
    TRANSFORMERS.check_call(upstream.forward, ours.forward, f"{upstream.__name__}.forward")


def like(forward: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """For a `forward` around upstream's: it takes the same parameters, which others look at."""
    return functools.wraps(forward)
