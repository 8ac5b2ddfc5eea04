"""Loss and metrics of a training, as one picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from lf_backend._optional import optional

PICTURE = "curves.png"


def draw(history: Iterable[Mapping[str, Any]], best: str, folder: Path, console: Console) -> None:
    """Write the picture of Trainer's log to a folder, and every point beside it; without matplotlib say so.

    Args:
        history: records with "step", and "loss" or "eval_..." values.
        best: the metric to draw.
    """
    from lf_huggingface.recipes import folder as run_folder

    records = list(history)
    run_folder.write_json(folder / "curves.json", records)
    if find_spec("matplotlib") is None:
        console.print("no picture: python -m pip install 'lf-backend[plots]'")
        return
    figure = optional("matplotlib.figure", "plots").Figure(figsize=(8, 4), layout="constrained")
    loss, metric = figure.subplots(1, 2)
    for axes, name, title in ((loss, "loss", "training loss"), (metric, f"eval_{best}", best)):
        points = [(record["step"], record[name]) for record in records if name in record]
        axes.plot([step for step, _ in points], [value for _, value in points], marker=".")
        axes.set_xlabel("updates")
        axes.set_title(title)
    figure.savefig(folder / PICTURE)
