"""The names under which our attention is registered with transformers, and that of a mark on models."""

from __future__ import annotations

from typing import Any

NAME = "lf"
UNPADDED = "_lf_unpadded"  # an attribute of encoders whose padding is dropped
registered: set[str] = set()


def is_ours(config: Any) -> bool:
    """Return whether a config asks for our attention."""
    return getattr(config, "_attn_implementation", None) in registered
