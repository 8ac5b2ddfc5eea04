"""Figures of the README and the pages are those of the raw rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import pages


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)
def test_a_page_says_what_its_rows_say(page: Path) -> None:
    text = page.read_text("utf8")
    assert pages.rendered(text) == text, "python -m benchmarks.pages"


def test_a_figure_that_was_changed_by_hand_is_seen() -> None:
    page = next(page for page in pages.PAGES if page.name == "README.md").read_text("utf8")
    assert "| Hugging Face's layer, forward |" in page
    assert pages.rendered(page.replace("layer, forward | ", "layer, forward | 9")) == page
    assert pages.rendered(page.replace("<!-- end -->", "more\n<!-- end -->")) == page


def test_rows_that_drifted_are_marked() -> None:
    steady, noisy = ({"work": "w", "name": "n", "ms": 2.0, **more} for more in ({}, {"noisy": True}))
    assert list(pages._table([steady, noisy]))[2:] == ["| w | n | 2 |", "| w | n | 2 (noisy) |"]
