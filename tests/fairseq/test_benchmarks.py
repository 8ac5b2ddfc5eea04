"""Every section of fairseq's benchmarks runs at small sizes, on results that are found equal first."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import char_lm, fairseq, positions
from tests.quickly import quickly

RUNS = [
    pytest.param(module, section, id=f"{module.__name__.removeprefix('benchmarks.')}-{section}")
    for module in (fairseq, positions)
    for section in module.SECTIONS
]


def test_the_claims_of_a_character_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quickly(char_lm, monkeypatch, "--work", str(tmp_path))


@pytest.mark.parametrize(("module", "section"), RUNS)
def test_a_section_runs(module: ModuleType, section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(module, monkeypatch, "--only", section)
