"""What the demo shows: a table, and the paper's figure 1 for this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lf_backend.demo.comparison import Row
from lf_backend.optional import optional

MIB = 1 << 20


def table(rows: Sequence[Row]) -> Table:
    """One row per length."""
    found = Table(title="one forward pass, stock and patched", box=SIMPLE_HEAD)
    for name in ("tokens", "stock", "patched", "faster", "stock MiB", "patched MiB", "less", "difference"):
        found.add_column(name, justify="right")
    for row in rows:
        found.add_row(
            f"{row.length:,}",
            f"{row.stock.median:.3f} s",
            f"{row.ours.median:.3f} s",
            f"{row.stock.median / row.ours.median:.1f} x",
            f"{row.stock_bytes / MIB:.0f}",
            f"{row.our_bytes / MIB:.0f}",
            f"{row.stock_bytes / row.our_bytes:.1f} x",
            f"{row.difference:.1e}",
        )
    return found


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Save time and memory against length as a PNG file.

    Raises:
        LFError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = optional("matplotlib.figure", "plots").Figure(figsize=(9, 4), layout="constrained")
    time, memory = figure.subplots(1, 2)
    lengths = [row.length for row in rows]
    for label, timings in (("stock", [row.stock for row in rows]), ("patched", [row.ours for row in rows])):
        line = time.plot(lengths, [t.median for t in timings], "o-", label=label)[0]
        low, high = [t.p20 for t in timings], [t.p80 for t in timings]
        time.fill_between(lengths, low, high, color=line.get_color(), alpha=0.2)
    memory.plot(lengths, [row.stock_bytes / MIB for row in rows], "o-", label="stock")
    memory.plot(lengths, [row.our_bytes / MIB for row in rows], "o-", label="patched")
    _label(time, "seconds, one forward pass")
    _label(memory, "peak memory in MiB, without weights")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, format="png", dpi=150)


def _label(axes: Any, what: str) -> None:
    axes.set(xlabel="tokens", ylabel=what, xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
