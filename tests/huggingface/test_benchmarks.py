"""Every section of the benchmarks runs at small sizes, `--quick`, on results that are found equal first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import cpu, huggingface, lengths, load, native, packing, recipe_step, record, select
from tests.quickly import quickly

RUNS = [
    pytest.param(module, section, id=f"{module.__name__.removeprefix('benchmarks.')}-{section}")
    for module in (cpu, huggingface, lengths, load, native, packing, recipe_step, select)
    for section in getattr(module, "SECTIONS", ("all",))
]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # by what compiles FlexAttention
@pytest.mark.parametrize(("module", "section"), RUNS)
def test_a_section_runs(module: ModuleType, section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(module, monkeypatch, *([] if section == "all" else ["--only", section]))


def test_quick_times_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", "--save", "nothing"])
    with pytest.raises(SystemExit, match="--save: no --quick wanted"):
        lengths.main()


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections that are there are kept, and what was measured elsewhere is not."""
    ran: list[str] = []

    def section(name: str) -> record.Section:
        def measured(repeats: int) -> list[record.Row]:
            ran.append(name)
            return [{"work": name, "name": f"{name} {len(ran)}"}]

        return measured

    sections = {name: section(name) for name in ("one", "two")}

    def run(*more: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["benchmark", "--save", "rows", "--out", str(tmp_path), *more])
        options = record.parser("", sections, repeats=1).parse_args()
        record.report(options, sections, lambda made: made(options.repeats))
        return [row["name"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]]

    assert run("--only", "one") == ["one 1"]
    assert run("--resume") == ["one 1", "two 2"] and ran == ["one", "two"]
    other = {**json.loads((tmp_path / "rows.json").read_text()), "environment": {}}
    (tmp_path / "rows.json").write_text(json.dumps(other))
    assert run("--resume") == ["one 3", "two 4"]
