"""Every section of fairseq's benchmarks runs at small sizes, on results that are found equal first."""

from __future__ import annotations

from types import ModuleType

import pytest

from benchmarks import fairseq, positions
from tests.quickly import quickly

RUNS = [
    pytest.param(module, section, id=f"{module.__name__.removeprefix('benchmarks.')}-{section}")
    for module in (fairseq, positions)
    for section in module.SECTIONS
]


@pytest.mark.parametrize(("module", "section"), RUNS)
def test_a_section_runs(module: ModuleType, section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(module, monkeypatch, "--only", section)
