"""The phases one after the other: text, training, bits per character, picture; each once."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lf_backend.errors import LFError
from lf_fairseq.recipes import binarise, corpus, evaluation, phases, plot, training
from lf_fairseq.recipes.phases import LAST_PHASE, Run, Size

RESULTS, PICTURE, IDENTITY = "results.json", "curves.png", "phase.json"


def train(size: Size, numbers: Sequence[int], data: Path | None, run: Run, console: Console) -> None:
    """Train phases, and score each on the test text.

    Args:
        numbers: phases in order; the one before the first must be done.
        data: folder of text8 or enwik8, None for Python's sources.

    Raises:
        LFError: no such data, a phase before that is not done, or a batch that does not divide.
    """
    text = corpus.load(data)
    with Progress(console=console) as progress:
        record = binarise.binarise(text, run.data, progress)
        console.print(f"{record['corpus']}: {record['splits']} characters, sha256 {record['sha256'][:12]}")
        for number in numbers:
            _phase(size, number, run, progress)
    console.print(_table(run))
    _picture(run, console)


def results(out: Path) -> dict[int, dict[str, Any]]:
    """The content of `results.json`, by phase."""
    path = out / RESULTS
    return {row["phase"]: row for row in json.loads(path.read_text("utf8"))} if path.exists() else {}


def _phase(size: Size, number: int, run: Run, progress: Progress) -> None:
    if number > 1:
        _check_done(size, number - 1, run)
    phase = size.phase(number)
    command = phases.arguments(size, phase, run)
    _claim(run.folder(number), phases.identity(size, phase, run))
    progress.console.print(f"[dim]fairseq-train {shlex.join(command)}[/dim]", soft_wrap=True, highlight=False)
    training.train(command, run.log(number), phase.updates, progress, f"phase {number}")
    _evaluate(size, number, run, progress)


def _check_done(size: Size, number: int, run: Run) -> None:
    """Raise LFError unless a phase is done, of the same training."""
    phase, done = size.phase(number), training.updates_of(run.checkpoint(number))
    if done < phase.updates:
        raise LFError(
            f"--phase: {number} done before {number + 1} wanted, {phase.updates} updates, got {done} in "
            f"{run.folder(number)}"
        )
    _claim(run.folder(number), phases.identity(size, phase, run))


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Mark a phase's folder as that of one training, which no other may continue."""
    path = folder / IDENTITY
    if path.exists():
        found = json.loads(path.read_text("utf8"))
        if different := [name for name in identity if found.get(name) != identity[name]]:
            raise LFError(
                f"--out: the folder of the same training wanted, {folder} has another "
                + ", ".join(f"{name} ({found.get(name)}, not {identity[name]})" for name in different)
            )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(identity, indent=1) + "\n", "utf8")


def _evaluate(size: Size, number: int, run: Run, progress: Progress) -> None:
    """Bits per character of the test text after a phase, into `results.json`, unless they are there."""
    found, phase, (length, step) = results(run.out), size.phase(number), size.evaluation
    _, development = training.curves(run.log(number))
    entry: dict[str, Any] = {
        "phase": number,
        **phases.identity(size, phase, run),
        "development": development[-1]["bits"] if development else None,
        "evaluation": [length, step],
    }
    if entry.items() <= found.get(number, {}).items():
        return
    model, task = evaluation.load(run.checkpoint(number), run.data)
    if run.devices:
        model.cuda()
    tokens = evaluation.tokens_of(task, "test", size.evaluated)
    score = evaluation.score(model, tokens, task.dictionary.eos(), length, step, 1, progress)
    found[number] = {**entry, "test": score.per_character, "characters": score.characters}
    rows = [found[at] for at in sorted(found)]
    (run.out / RESULTS).write_text(json.dumps(rows, indent=1) + "\n", "utf8")


def _table(run: Run) -> Table:
    table = Table("phase", "updates", "length", "lr", "development", "test", title="bits per character")
    for row in results(run.out).values():
        bits = ("" if row[name] is None else f"{row[name]:.4f}" for name in ("development", "test"))
        table.add_row(*(str(row[name]) for name in ("phase", "updates", "length", "learning_rate")), *bits)
    return table


def _picture(run: Run, console: Console) -> None:
    if find_spec("matplotlib") is None:
        console.print("no picture: python -m pip install 'lf-backend[plots]'")
        return
    begun = [number for number in range(1, LAST_PHASE + 1) if run.log(number).exists()]
    tests = {number: row["test"] for number, row in results(run.out).items()}
    path = run.out / PICTURE
    plot.draw({number: training.curves(run.log(number)) for number in begun}, tests, path)
    console.print(f"saved {path}")
