"""Every Python block of the README and of docs/ runs, those of a page in turn; fairseq's pages elsewhere.

A block whose title is "with PACKAGE" runs where the package is installed. A plain block right behind one is
what it prints.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("[!f]*.md")))
    if "```python" in page.read_text("utf8")
]
BLOCK = re.compile(
    r'^```python(?: title="with (\w+)")?\n(.*?)^```(?:\n\n```\n(.*?)^```)?', re.DOTALL | re.MULTILINE
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text("utf8")
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```python"), "a block that this test does not know how to run"
    names: dict[str, Any] = {"__name__": page.stem}
    for package, block, printed in blocks:
        if package and not find_spec(package):
            continue
        capsys.readouterr()
        exec(compile(block, str(page), "exec"), names)
        if printed:
            assert capsys.readouterr().out == printed
