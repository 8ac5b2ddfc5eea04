"""Loss and bits per character of all phases, as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lf_backend._optional import optional
from lf_fairseq.recipes.training import Record

TRAINING, DEVELOPMENT, TEST = "#9ecae1", "#08519c", "#d94801"


def draw(
    phases: Mapping[int, tuple[list[Record], list[Record]]], tests: Mapping[int, float], path: Path
) -> None:
    """Write the curves to a file, whose name says in which format.

    Args:
        phases: training and development records of each phase that has begun, see `training.curves`.
        tests: bits per character of the test text, after those phases that were evaluated.

    Raises:
        LFError: matplotlib is not installed.
    """
    figure = optional("matplotlib.figure", "plots").Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    start = 0.0
    for number, (training, development) in sorted(phases.items()):
        axes.plot(*_points(training, start), color=TRAINING, label="training loss")
        axes.plot(*_points(development, start), color=DEVELOPMENT, marker=".", label="development")
        end = start + max((record["update"] for record in (*training, *development)), default=0)
        if number in tests:
            axes.plot(
                [end], [tests[number]], color=TEST, marker="D", linestyle="", label="test, long context"
            )
        axes.axvline(end, color="0.8", linewidth=1)
        axes.text(
            (start + end) / 2, 1.01, f"phase {number}", ha="center", transform=axes.get_xaxis_transform()
        )
        start = end
    axes.set_xlabel("updates")
    axes.set_ylabel("bits per character")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _points(records: list[Record], start: float) -> tuple[list[float], list[float]]:
    return [start + record["update"] for record in records], [record["bits"] for record in records]
