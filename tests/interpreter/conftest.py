"""These tests run where TRITON_INTERPRET=1 is set, as in `tox run -e interpreter`."""

from __future__ import annotations

from typing import Any

from triton import knobs
from triton.runtime import interpreter

collect_ignore_glob = [] if knobs.runtime.interpret else ["test_*.py"]

_prepare_and_call = interpreter.InterpretedFunction.__call__


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The interpreter prepares triton.language at a launch and again at each call of a function, which
    is half of its time; ours are content with the first."""
    if self.fn.__module__.startswith("lf_backend"):
        return self.rewrite()(*args, **kwargs)
    return _prepare_and_call(self, *args, **kwargs)


interpreter.InterpretedFunction.__call__ = _call
