"""Run with TRITON_INTERPRET=1, as `tox run -e interpreter` does."""

from __future__ import annotations

from typing import Any

import pytest
from triton import knobs
from triton.runtime import interpreter

if not knobs.runtime.interpret:
    raise pytest.UsageError("tests/interpreter: TRITON_INTERPRET=1 wanted before Triton is imported")

_prepare_and_call = interpreter.InterpretedFunction.__call__


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The interpreter prepares triton.language at a launch and again at each call of a function, which
    is half of its time; ours are content with the first."""
    if self.fn.__module__.startswith("lf_backend"):
        return self.rewrite()(*args, **kwargs)
    return _prepare_and_call(self, *args, **kwargs)


interpreter.InterpretedFunction.__call__ = _call
