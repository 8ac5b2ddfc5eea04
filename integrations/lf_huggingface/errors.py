"""Errors of this integration alone."""

from __future__ import annotations

from lf_backend.errors import LFError


class ConversionError(LFError, ValueError):
    """A model that cannot be made long exactly, or not as asked."""
