"""The paper's claims about windows of a character language model, at the scale of one core.

    python -m benchmarks.char_lm --save char-lm

Beltagy et al. 2020, table 4: with the same steps and parameters, windows that increase from the bottom
layer to the top beat one window for all, and this beats decreasing ones; dilation on 2 heads of the upper
layers helps a little more. And section 4.2: a longer context at evaluation lowers the bits per character.

Here: 1.3M parameters instead of 41M, 500 updates instead of 150,000, on the sources of Python's standard
library. A run takes minutes on one thread and is kept as soon as it is done: the same command continues.
What is compared has the same seed, so the same initial weights and the same sequences in the same order.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

import lf_backend as lf
from benchmarks import record
from benchmarks.record import Row
from lf_fairseq.recipes import binarise, corpus, evaluation, phases, training

LAYERS, HEADS = 6, 4
LENGTH, BATCH, UPDATES, RATE = 512, 4, 500, 2e-3
BOTTOM, TOP = 8, 128
DILATIONS = (1, 1, 1, 2, 3, 4)  # table 12: none in the lower half, then 1, 2 and 3 positions skipped
EVALUATION, CHARACTERS = (1024, 512), 131_072
CONTEXTS, CONTEXT_STEP, CONTEXT_CHARACTERS = (256, 512, 1024, 2048), 256, 32_768
QUICK = {
    "LENGTH": 64, "EVALUATION": (64, 32), "CHARACTERS": 2048, "CONTEXTS": (32, 64), "CONTEXT_STEP": 16,
    "CONTEXT_CHARACTERS": 1024,
}  # fmt: skip


def schedules() -> dict[str, lf.schedules.Schedule]:
    """The four of table 4, worst first in the paper; all have the same mean window, to half a key."""
    increasing = lf.schedules.growing(LAYERS, BOTTOM, TOP)
    mean = round(statistics.mean(len(layer.key_range(TOP, 2 * TOP)) for layer in increasing))
    return {
        "decreasing": lf.schedules.shrinking(LAYERS, TOP, BOTTOM),
        "fixed": lf.schedules.fixed(LAYERS, mean),
        "increasing": increasing,
        "dilated": lf.schedules.dilated(increasing, DILATIONS, HEADS),
    }


def size(name: str, updates: int) -> phases.Size:
    """Phase 1 of the recipe's smallest model, under one of the schedules."""
    schedule = schedules()[name]
    return phases.Size(
        name=name,
        arch="longformer_lm_laptop",
        schedule=lambda phase: schedule,
        lengths=(LENGTH,),
        batches=(BATCH,),
        sequences=(BATCH,),
        updates=(updates,),
        learning_rate=RATE,
        evaluation=EVALUATION,
        validation=updates,
        look=0,
        block=0,
    )


def run(name: str, seed: int, updates: int, data: Path, work: Path, progress: Progress) -> Iterator[Row]:
    """Train one model and score it; a longer context for the models whose windows increase."""
    of = size(name, updates)
    where = phases.Run(data, work / f"{name}-{seed}-{updates}", seed=seed)
    phase, title = of.phase(1), f"{name}, seed {seed}"
    training.train(phases.arguments(of, phase, where), where.log(1), updates, progress, title)
    model, task = evaluation.load(where.checkpoint(1), data)
    tokens, eos = evaluation.tokens_of(task, "test", CHARACTERS), task.dictionary.eos()
    settings: Row = {"schedule": name, "seed": seed, "updates": updates}
    found = evaluation.score(model, tokens, eos, *EVALUATION, BATCH, progress)
    last = training.curves(where.log(1))[0][-1]
    yield {**settings, "length": EVALUATION[0], "bits": found.per_character, "training bits": last["bits"]}
    if name in ("increasing", "dilated"):
        for length in CONTEXTS:
            some = tokens[:CONTEXT_CHARACTERS]
            found = evaluation.score(model, some, eos, length, CONTEXT_STEP, BATCH, progress)
            yield {**settings, "context": length, "bits": found.per_character}


def comparison(rows: list[Row]) -> Iterator[Row]:
    """Bits per character of each schedule, and the difference to the fixed window, paired by seed."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        if "length" in row:
            scores.setdefault(row["schedule"], {})[row["seed"]] = row["bits"]
    for name, by_seed in scores.items():
        pairs = [
            bits - scores["fixed"][seed] for seed, bits in by_seed.items() if seed in scores.get("fixed", {})
        ]
        yield {
            "name": name, "seeds": len(by_seed), **_spread("bits", by_seed.values()),
            **_spread("minus fixed", pairs),
            "minus fixed, by seed": " ".join(f"{pair:+.4f}" for pair in pairs),
        }  # fmt: skip


def contexts(rows: list[Row]) -> Iterator[Row]:
    """Bits per character of the same text by length of the sequences, and what they gain on the shortest."""
    scores: dict[tuple[str, int], dict[int, float]] = {}
    for row in rows:
        if "context" in row:
            scores.setdefault((row["schedule"], row["context"]), {})[row["seed"]] = row["bits"]
    for (name, length), by_seed in scores.items():
        shortest = scores[name, min(CONTEXTS)]
        gains = [bits - shortest[seed] for seed, bits in by_seed.items()]
        yield {
            "name": name, "length": length, "seeds": len(by_seed), **_spread("bits", by_seed.values()),
            **_spread(f"minus {min(CONTEXTS)}", gains),
        }  # fmt: skip


def _spread(name: str, values: Iterable[float]) -> dict[str, str]:
    """Mean, and standard deviation of single values."""
    found = list(values)
    if not found:
        return {}
    deviation = f" ± {statistics.stdev(found):.4f}" if len(found) > 1 else ""
    return {name: f"{statistics.mean(found):.4f}{deviation}"}


def _kept(name: str) -> list[Row]:
    path = record.RESULTS / f"{name}.json"
    rows: list[Row] = json.loads(path.read_text("utf8"))["rows"] if path.exists() else []
    return rows


def report(rows: list[Row], console: Console) -> None:
    """Both tables."""
    console.print(record.table("bits per character of the test text", list(comparison(rows))))
    console.print(record.table("a longer context at evaluation", list(contexts(rows))))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", metavar="NAME", help="keep the rows in benchmarks/results/NAME.json")
    parser.add_argument("--work", type=Path, default=Path("char-lm-claims"), help="folder for checkpoints")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print what is kept, run nothing")
    options = record.parsed(parser, globals(), QUICK)
    if options.table and not options.save:
        raise SystemExit("--table: the --save wanted whose rows are kept, got none")
    if options.quick:
        options.seeds, options.updates = 1, 2
    return options


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    logging.getLogger().setLevel(logging.WARNING)  # one of fairseq's modules has asked for DEBUG
    console, rows = Console(width=130), _kept(options.save) if options.save else []
    if not options.table:
        with Progress(console=console) as progress:
            data = options.work / "data"
            binarise.binarise(corpus.standard_library(), data, progress)
            for seed in range(1, options.seeds + 1):
                for name in schedules():
                    key = {"schedule": name, "seed": seed, "updates": options.updates}
                    if any(key.items() <= row.items() for row in rows):
                        continue
                    rows += run(**_named(key), data=data, work=options.work, progress=progress)
                    if options.save:
                        record.save(options.save, rows)
    report([row for row in rows if row["updates"] == options.updates], console)


def _named(key: Row) -> dict[str, Any]:
    return {"name": key["schedule"], "seed": key["seed"], "updates": key["updates"]}


if __name__ == "__main__":
    main()
