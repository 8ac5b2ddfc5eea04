"""The tables and pictures of the README and the pages, from raw rows: `python -m benchmarks.pages`.

A table stands between two comments, the first of which says where its figures are:

    <!-- rows: FILE SECTION ... -->        a table of all rows of some sections
    <!-- machine: FILE -->                 the machine and the versions that they come from
    <!-- figures: NAME -->                 some of `FIGURES`, a sentence and a number each
    <!-- claims: FILE -->                 rows of `benchmarks.tasks` over all seeds, beside the paper's
    <!-- end -->

The tests fail where a page says other than its rows.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import lf_backend as lf
from benchmarks import lengths
from benchmarks.record import RESULTS, WORDS, Row
from lf_backend._optional import optional

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- (rows|machine|figures|claims): (.+?) -->\n)(?:.*?\n)??(<!-- end -->)", re.DOTALL)


class Figure(NamedTuple):
    """One number of the raw rows, and what it is of.

    Attributes:
        text: the work.
        file, section, work, name, column: which row of which file, and what of it.
        situation: of the row, where a section has several.
    """

    text: str
    file: str
    section: str
    work: str
    name: str
    column: str
    situation: str | None = None

    def __str__(self) -> str:
        wanted = (self.section, self.work, self.name, self.situation)
        keys = ("section", "work", "name", "situation")
        (row,) = (row for row in results(self.file)["rows"] if tuple(map(row.get, keys)) == wanted)
        return f"| {self.text} | {shown(row[self.column])}{noise(row)} |"


@cache
def results(file: str) -> dict[str, Any]:
    """Return what a benchmark saved: `environment` and `rows`."""
    found: dict[str, Any] = json.loads((RESULTS / f"{file}.json").read_text("utf8"))
    return found


def shown(value: Any) -> str:
    """A number as a table shows it: three figures of it."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def noise(row: Row) -> str:
    """What marks a row whose time was another in the first half of its rounds than in the second."""
    return " (noisy)" if row.get("noisy") else ""


def rendered(page: str) -> str:
    """A page with all of its tables written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{_content(found[2], found[3].split())}\n{found[4]}", page)


def _content(kind: str, words: list[str]) -> str:
    if kind == "machine":
        return _machine(results(words[0])["environment"])
    if kind == "figures":
        return "\n".join(["| work | times as long |", "|---|---|", *map(str, FIGURES[words[0]])])
    if kind == "claims":
        return "\n".join(_claims(results(words[0])["rows"]))
    file, *sections = words
    rows = [row for row in results(file)["rows"] if row["section"] in sections]
    return "\n".join(_table(rows))


def _machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    load = f"; {found['load']}" if "load" in found else ""
    native = f" ({found['native']})" if found.get("native") else ""
    on = f"On {found['processor']}{native}, {found['threads']} threads{load}"
    return f"{on}; {versions}; commit {found['commit']}."


def _table(rows: list[Row]) -> Iterator[str]:
    hidden = {"p20", "p80", "noisy"}
    if len({row.get("section") for row in rows}) == 1:
        hidden.add("section")
    columns = [name for name in dict.fromkeys(key for row in rows for key in row) if name not in hidden]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "".join("---|" if name in WORDS else "---:|" for name in columns)
    for row in rows:
        cells = (shown(row.get(name, "")) + (noise(row) if name == "ms" else "") for name in columns)
        yield f"| {' | '.join(cells)} |"


def _claims(rows: list[Row]) -> Iterator[str]:
    yield "| claim | | here: mean ± deviation | by seed | the paper's |"
    yield "|---|---|---|---|---|"
    for (claim, case), theirs in PAPER.items():
        own = [row for row in rows if (row["claim"], row["case"]) == (claim, case)]
        metric = "bits" if claim == "mlm" else "accuracy"
        values = [row[metric] for row in own]
        each = ", ".join(f"{value:.3f}" for value in values)
        spread = f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
        yield f"| {claim}, {metric} | {case} | {spread} | {each} | {theirs} |"


def main() -> None:
    for page in PAGES:
        text = page.read_text("utf8")
        if (new := rendered(text)) != text:
            page.write_text(new, "utf8")
            print(f"written: {page.relative_to(ROOT)}")
    draw()


def draw() -> None:
    """Draw all pictures anew; the same rows give the same bytes."""
    with optional("matplotlib", "plots").rc_context({"svg.hashsalt": "lf_backend"}):
        pictures = {
            name: lengths.draw(results(name)["rows"]) for name in ("lengths-2-cores", "backends-2-cores")
        }
        pictures["speed-2-cores"] = _bars("cpu-2-cores", ("attention",))
        pictures["parallel-2-ranks-cpu"] = _bars("parallel-2-ranks-cpu", ("weak", "strong"))
        pictures["patterns"] = _patterns()
        pictures["tasks"] = _losses()
        for name, picture in pictures.items():
            picture.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})


def _bars(file: str, sections: tuple[str, ...]) -> Any:
    """How many times as long everything takes, one panel for each work."""
    rows = [r for r in results(file)["rows"] if r["section"] in sections and "times as long" in r]
    rows = [row for row in rows if row["name"] != "matrix product"]
    works = list(dict.fromkeys(row["work"] for row in rows))
    figure = optional("matplotlib.figure", "plots").Figure(figsize=(10, 2.6), layout="constrained")
    for axes, work in zip(figure.subplots(1, len(works), squeeze=False)[0], works, strict=True):
        own = [row for row in rows if row["work"] == work][::-1]
        bars = axes.barh([row["name"] for row in own], [row["times as long"] for row in own])
        axes.bar_label(bars, fmt="%.3g", padding=3)
        axes.set(title=work, xlabel="times as long")
        axes.margins(x=0.15)
    return figure


def _losses() -> Any:
    """What the recipes trained for the claims about tasks: a line for each case and seed."""
    rows = [row for row in results("tasks")["rows"] if len(row.get("losses", ())) > 2]
    claims = list(dict.fromkeys(row["claim"] for row in rows))
    figure = optional("matplotlib.figure", "plots").Figure(figsize=(10, 3), layout="constrained")
    for axes, claim in zip(figure.subplots(1, len(claims), squeeze=False)[0], claims, strict=True):
        cases = list(dict.fromkeys(row["case"] for row in rows if row["claim"] == claim))
        for row in (row for row in rows if row["claim"] == claim):
            color, first = f"C{cases.index(row['case'])}", row["seed"] == 1
            axes.plot(*zip(*row["losses"], strict=True), color=color, label=row["case"] if first else None)
        axes.set(title=claim, xlabel="update", ylabel="loss in training")
        axes.legend(frameon=False, fontsize="small")
    return figure


def _patterns() -> Any:
    """The four patterns of the paper's figure 2."""
    patterns = {
        "full": lf.Window(None, None),
        "sliding window": lf.Window(3, 3),
        "dilated sliding window": lf.Window(3, 3, dilation=2),
        "sliding window, global tokens": lf.Window(3, 3) | lf.Global(1, 2, 6, 16),
    }
    figure = optional("matplotlib.figure", "plots").Figure(figsize=(10, 2.8), layout="constrained")
    for axes, (title, pattern) in zip(figure.subplots(1, len(patterns)), patterns.items(), strict=True):
        axes.imshow(pattern.mask(24)[0], cmap="Greens", vmin=0, vmax=1.6)
        axes.set(title=title, xticks=[], yticks=[])
    return figure


def _attention(text: str, work: str, name: str) -> Figure:
    return Figure(text, "cpu-2-cores", "attention", work, name, "times as long")


PAPER = {
    ("mlm", "short"): "RoBERTa 1.846",
    ("mlm", "copied"): "1.957",
    ("mlm", "random positions"): "10.299",
    ("mlm", "40 updates"): "1.753 (2,000 updates)",
    ("wikihop", "full"): "73.8",
    ("wikihop", "without own projections"): "72.2",
    ("wikihop", "without globals"): "65.5, own projections left out too",
    ("wikihop", "first 512 tokens"): "72.4 (RoBERTa)",
    ("classify", "whole"): "94.8 (Hyperpartisan)",
    ("classify", "first 512 tokens"): "87.4 (RoBERTa)",
}
FIGURES = {
    "readme": (
        _attention("Hugging Face's layer, forward", "forward", "Hugging Face"),
        _attention("Hugging Face's layer, forward + backward", "forward + backward", "Hugging Face"),
        Figure("the same beside two busy processes, forward", "load-2-cores", "load", "forward",
               "Hugging Face", "times as long", "beside two busy processes"),
        _attention("dense attention (PyTorch's fused kernel), forward", "forward", "dense SDPA (no window)"),
        _attention("FlexAttention, compiled, forward", "forward", "FlexAttention, compiled"),
        Figure("a padded batch through stock Longformer, against ours without padding, training step",
               "packing-unpadded-2-cores", "unpadded", "training step", "Hugging Face", "times as long"),
    ),
}  # fmt: skip


if __name__ == "__main__":
    main()
