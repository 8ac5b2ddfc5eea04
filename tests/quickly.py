"""A benchmark as its command runs it, at small sizes."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest


def quickly(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Run `python -m benchmarks.MODULE --quick`, and give the module its sizes back later."""
    for name in module.QUICK:
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", *options])
    module.main()
