"""Every error this library raises on purpose, so that a caller can catch one base class."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lf_backend.dispatch.selection import Selection


class LFError(Exception):
    """Base of every error raised by lf_backend."""


class ArgumentError(LFError, TypeError):
    """An argument by a name that the function does not have."""


class PatternError(LFError, ValueError):
    """A pattern that means nothing, cannot be read, or does not fit the call."""


class ShapeError(LFError, ValueError):
    """A tensor or number whose shape, dtype, device or value does not fit the call."""


class PatchError(LFError, RuntimeError):
    """A model that cannot be patched, or a patch used in the wrong order."""


class BuildError(LFError, RuntimeError):
    """Raised by a backend whose kernels cannot be built for a call: another backend is asked then."""


class DistributedError(LFError, RuntimeError):
    """No process group to compute with, or ranks that disagree about a call."""


class UnsupportedError(LFError, NotImplementedError):
    """No backend, or not the one asked for, can run the call.

    Attributes:
        selection: the whole trace of the decision, or None where no selection took place.
    """

    def __init__(self, message: str, selection: Selection | None = None) -> None:
        super().__init__(message)
        self.selection = selection
