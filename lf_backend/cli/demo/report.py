"""The demo's results as tables, and as the paper's figure 1 for this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lf_backend._optional import optional
from lf_backend.cli.demo.comparison import Compared

MIB = 1 << 20


def times(rows: Sequence[Compared]) -> Table:
    """One row per length: the whole model, and its attention."""
    found = _table("seconds of one forward pass: the whole model, and of it the attention, projections apart")
    for name in ("tokens", "stock", "patched", "faster", "attention, stock", "patched", "faster"):
        found.add_column(name, justify="right")
    for row in rows:
        stock, ours = row.stock.seconds.median, row.ours.seconds.median
        found.add_row(
            f"{row.length:,}",
            *(f"{stock:.3f}", f"{ours:.3f}", f"{stock / ours:.1f} x"),
            *(f"{row.stock.attention:.3f}", f"{row.ours.attention:.3f}"),
            f"{row.stock.attention / row.ours.attention:.1f} x",
        )
    return found


def memory(rows: Sequence[Compared]) -> Table:
    """One row per length: peak memory, and how far the answers are apart."""
    found = _table("peak memory, and how far the outputs differ")
    for name in ("tokens", "stock", "patched", "less", "difference"):
        found.add_column(name, justify="right")
    for row in rows:
        found.add_row(
            f"{row.length:,}",
            *(f"{cost.bytes / MIB:.0f} MiB" for cost in (row.stock, row.ours)),
            f"{row.stock.bytes / row.ours.bytes:.1f} x",
            f"{row.difference:.1e}",
        )
    return found


def _table(title: str) -> Table:
    return Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")


def plot(rows: Sequence[Compared], path: Path, title: str) -> None:
    """Save time and memory against length as a PNG file.

    Raises:
        LFError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = optional("matplotlib.figure", "plots").Figure(figsize=(9, 4), layout="constrained")
    seconds, bytes = figure.subplots(1, 2)
    lengths = [row.length for row in rows]
    for label, costs in (("stock", [row.stock for row in rows]), ("patched", [row.ours for row in rows])):
        line = seconds.plot(lengths, [cost.seconds.median for cost in costs], "o-", label=label)[0]
        low, high = [cost.seconds.p20 for cost in costs], [cost.seconds.p80 for cost in costs]
        seconds.fill_between(lengths, low, high, color=line.get_color(), alpha=0.2)
        attention = [cost.attention for cost in costs]
        seconds.plot(lengths, attention, "o--", color=line.get_color(), label=f"{label}, attention alone")
        bytes.plot(lengths, [cost.bytes / MIB for cost in costs], "o-", label=label)
    _label(seconds, "seconds of one forward pass")
    _label(bytes, "peak memory in MiB, without weights")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, format="png", dpi=150)


def _label(axes: Any, what: str) -> None:
    axes.set(xlabel="tokens", ylabel=what, xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
