"""Pictures of patterns, like figure 2 of the paper: queries downwards, keys to the right.

    print(lf.draw("window(2, 2) | global(0)", 12))
    lf.draw(pattern, 4096).save("pattern.png")

A long sequence is drawn in cells of several positions. A cell is filled if any of its pairs is visible:
computed from the bands and global tokens, without a mask of all pairs. What is neither is only sampled.
Global tokens are drawn over the window. Heads that look the same share a picture.
"""

from __future__ import annotations

import enum
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lf_backend._integers import integer
from lf_backend._optional import optional
from lf_backend.pattern.lowered import Lowered, Tokens
from lf_backend.pattern.notation import parse
from lf_backend.pattern.terms import Pattern

SAMPLES = 8  # positions of a cell, per axis, at which a rule is asked


class Kind(enum.IntEnum):
    """The content of a cell; the largest wins."""

    UNSEEN = 0
    RULE = 1
    WINDOW = 2
    GLOBAL = 3


GLYPHS = {Kind.UNSEEN: " ·", Kind.RULE: "░░", Kind.WINDOW: "▒▒", Kind.GLOBAL: "██"}
ASCII = {Kind.UNSEEN: " .", Kind.RULE: " ?", Kind.WINDOW: " #", Kind.GLOBAL: " +"}
COLOURS = {Kind.UNSEEN: "#f4f4f4", Kind.RULE: "#b79ad0", Kind.WINDOW: "#7fb685", Kind.GLOBAL: "#e9a04a"}
_NAMES = {Kind.RULE: "other rule", Kind.WINDOW: "window", Kind.GLOBAL: "global"}


@dataclass(frozen=True, eq=False)
class Panel:
    """The picture of heads that see the same.

    Attributes:
        heads: their numbers.
        cells: int8 [rows, columns] of `Kind`.
    """

    heads: tuple[int, ...]
    cells: Tensor


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawn pattern: `str()` for a terminal, `save()` for a PNG file, itself in a notebook.

    Attributes:
        pattern: what is drawn.
        queries, keys: the positions drawn; the queries are the last ones.
        step: positions per cell, the same in both directions.
        panels: one for each kind of head.
    """

    pattern: Pattern
    queries: int
    keys: int
    step: int
    panels: tuple[Panel, ...]

    def text(self, ascii: bool = False) -> str:
        """The picture in characters, two per cell; with `ascii`, in ASCII alone."""
        glyphs = ASCII if ascii else GLYPHS
        lines = [str(self.pattern), self._scale()]
        for panel in self.panels:
            lines.extend(self._titles(panel))
            lines.extend("".join(glyphs[Kind(cell)] for cell in row) for row in panel.cells.tolist())
        legend = (f"{glyphs[kind].strip()} {_NAMES[kind]}" for kind in self._kinds())
        return "\n".join([*lines, "   ".join(legend)]).rstrip()

    def __str__(self) -> str:
        return self.text()

    def save(self, path: str | Path) -> None:
        """Write the picture as a PNG file.

        Raises:
            LFError: matplotlib is not installed.
            OSError: the file cannot be written.
        """
        Path(path).write_bytes(self._repr_png_())

    def _repr_png_(self) -> bytes:
        figure = optional("matplotlib.figure", "plots").Figure(
            figsize=(4.0 * len(self.panels), 5.0), layout="constrained"
        )
        figure.suptitle(f"{self.pattern}\n{self._scale()}", fontsize="small")
        for axes, panel in zip(
            figure.subplots(1, len(self.panels), squeeze=False)[0], self.panels, strict=True
        ):
            self._paint(axes, panel)
        patches = optional("matplotlib.patches", "plots")
        handles = [patches.Patch(color=COLOURS[kind], label=_NAMES[kind]) for kind in self._kinds()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()

    def _paint(self, axes: Any, panel: Panel) -> None:
        rows, columns = panel.cells.shape
        first = self.keys - self.queries
        palette = optional("matplotlib.colors", "plots").ListedColormap([COLOURS[kind] for kind in Kind])
        edges = {"edgecolors": "white", "linewidth": 0.5} if max(rows, columns) <= 64 else {}
        axes.pcolormesh(
            [column * self.step for column in range(columns + 1)],
            [first + row * self.step for row in range(rows + 1)],
            panel.cells.tolist(),
            cmap=palette,
            vmin=-0.5,
            vmax=len(Kind) - 0.5,
            **edges,
        )
        axes.set(xlabel="key", ylabel="query", aspect="equal")
        axes.set_title(" ".join(self._titles(panel)), fontsize="medium")
        axes.invert_yaxis()

    def _scale(self) -> str:
        cell = f"a cell is {self.step} x {self.step} positions" if self.step > 1 else "a cell is one pair"
        return f"{self.queries} queries (down) x {self.keys} keys (right), {cell}"

    def _titles(self, panel: Panel) -> list[str]:
        return [_heads(panel.heads)] if len(self.panels) > 1 else []

    def _kinds(self) -> list[Kind]:
        found = {cell for panel in self.panels for cell in panel.cells.flatten().tolist()}
        return [kind for kind in reversed(Kind) if kind in found and kind is not Kind.UNSEEN]


def draw(
    pattern: Pattern | str, n: int, m: int | None = None, heads: int | None = None, cells: int = 32
) -> Picture:
    """Draw a pattern of any length, in memory that depends on the number of cells alone.

    Args:
        pattern: a pattern or its string.
        n: number of queries, the last `n` of the `m` positions.
        m: number of keys, `n` if not given.
        heads: number of heads; if not given, as many as the pattern distinguishes (else 1).
        cells: at most so many cells in a row.

    Raises:
        PatternError: lengths or heads that do not fit the pattern.
    """
    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    m, heads = pattern.extent(integer("n", n, 1), m, heads)
    step = -(-m // integer("cells", cells, 1))
    groups: dict[bytes, tuple[list[int], Tensor]] = {}
    for head in range(heads):
        drawn = _cells(pattern.lowered, head, _blocks(m - n, m, step), _blocks(0, m, step))
        groups.setdefault(bytes(drawn.flatten().tolist()), ([], drawn))[0].append(head)
    panels = tuple(Panel(tuple(numbers), drawn) for numbers, drawn in groups.values())
    return Picture(pattern, n, m, step, panels)


def _blocks(start: int, stop: int, step: int) -> list[range]:
    return [range(at, min(at + step, stop)) for at in range(start, stop, step)]


def _cells(lowered: Lowered, head: int, rows: list[range], columns: list[range]) -> Tensor:
    """Return the cells of one head, int8 [rows, columns] of `Kind`."""
    queries = torch.tensor([[row[0], row[-1]] for row in rows])[:, None]
    keys = torch.tensor([[column[0], column[-1]] for column in columns])[None]
    low, high = keys[..., 0] - queries[..., 1], keys[..., 1] - queries[..., 0]
    cells = torch.zeros(len(rows), len(columns), dtype=torch.int8)
    for rule in lowered.others:
        tokens = [position for part in rule.parts if isinstance(part, Tokens) for position in part.positions]
        query, key = _samples(rows, tokens), _samples(columns, tokens)
        seen = rule.sees(head, query.view(-1, 1), key.view(1, -1)).view(*query.shape, *key.shape)
        kind = Kind.GLOBAL if tokens else Kind.RULE
        cells[seen.any(3).any(1) & (cells < kind)] = kind
    for band in lowered.bands:
        cells[band.touches(head, low, high) & (cells < Kind.WINDOW)] = Kind.WINDOW
    for token in lowered.positions:
        row = (queries[..., 0] <= token) & (token <= queries[..., 1])
        column = (keys[..., 0] <= token) & (token <= keys[..., 1])
        if lowered.causal_globals:
            row, column = row & (keys[..., 0] <= token), column & (token <= queries[..., 1])
        cells[row | column] = Kind.GLOBAL
    return cells


def _samples(blocks: list[range], tokens: list[int]) -> Tensor:
    """Positions of each block, both ends and a global token if it has one, int64 [blocks, SAMPLES + 1]."""
    spread = [torch.linspace(block[0], block[-1], SAMPLES).round().long() for block in blocks]
    inside = [next((token for token in tokens if token in block), block[0]) for block in blocks]
    return torch.cat([torch.stack(spread), torch.tensor(inside)[:, None]], dim=1)


def _heads(numbers: Sequence[int]) -> str:
    """`heads 0-1, 4`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
    return f"head{'s' if len(numbers) > 1 else ''} {words}"
