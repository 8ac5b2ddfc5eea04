"""Errors of this integration alone."""

from __future__ import annotations

from lf_backend.errors import LFError, UnsupportedError


class ConversionError(LFError, ValueError):
    """A model that cannot be made long exactly, or not as asked."""


class ExportError(LFError, ValueError):
    """A model that cannot be exported, or a file that does not agree with its model."""


class RecipeError(LFError, ValueError):
    """Data, a model, options or a folder that a recipe cannot run with."""


def refuse_weights(asked: object, model: str) -> None:
    """Raise UnsupportedError if attention weights are asked of a patched model that forms none."""
    if asked:
        raise UnsupportedError(
            f"output_attentions: False wanted of a patched {model}, which forms no weights, got {asked}; "
            "undo() the patch to see them"
        )
