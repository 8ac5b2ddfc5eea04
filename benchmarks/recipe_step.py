"""A training step through the recipes against the bare loop: the same model, batches and optimizer, in turn.

    python -m benchmarks.recipe_step --save recipe-step

An update of a Longformer under WikiHop's head, from the data loader to the optimizer. The two take turns in
one process, so that what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from benchmarks import record
from lf_huggingface.recipes.data.store import cached
from lf_huggingface.recipes.models import encoders, marks
from lf_huggingface.recipes.models.heads import CandidateScorer
from lf_huggingface.recipes.options import settled
from lf_huggingface.recipes.tasks.wikihop import WikiHop, WikiHopOptions
from lf_huggingface.recipes.training import RecipeTrainer
from lf_huggingface.recipes.trial import model as trial_model

WIDTH, LAYERS = 256, 4
QUICK = {"WIDTH": 32, "LAYERS": 1}


class _Clock(transformers.TrainerCallback):
    """Times of updates, and a bare update after each, at the same place of the training."""

    def __init__(self, bare: Any) -> None:
        self.recipe: list[float] = []
        self.bare: list[float] = []
        self._bare, self._last = bare, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._last = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.perf_counter()
        self.recipe.append(now - self._last)
        self._bare()
        self._last = time.perf_counter()
        self.bare.append(self._last - now)


def rows(updates: int, folder: Path) -> list[record.Row]:
    """Median milliseconds of an update, and how many times as long as the bare loop's."""
    WikiHop.trial_data(folder / "data", 1)
    trial_model.make(folder / "model", folder / "data", decoder=False)
    tokenizer = encoders.load_tokenizer(folder / "model")
    given = settled(WikiHopOptions(trial=True, updates=updates, evaluate_every=10**6), WikiHop.sizes)
    task = WikiHop(dataclasses.replace(given, batch=4, device_batch=4))
    task.data = folder / "data"
    config = transformers.LongformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        attention_window=32,
        max_position_embeddings=260,
        pad_token_id=1,
    )
    model = CandidateScorer.on(
        transformers.LongformerModel(config, add_pooling_layer=False), over_chunks="average"
    )
    marks.add(model, tokenizer, task.marks)
    records = task.records(task.file("train"), gold=True)
    store = cached(folder / "cache", "x", 1, lambda: task.encode(records, tokenizer, "train"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def bare() -> None:
        batch = task.batch([store[index] for index in range(4)], tokenizer, None)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    trainer = RecipeTrainer(task, model, tokenizer, {"train": store, "dev": store}, folder / "run")
    clock = _Clock(bare)
    trainer.add_callback(clock)
    trainer.resume()
    times = {"bare loop": statistics.median(clock.bare[3:]), "recipe": statistics.median(clock.recipe[3:])}
    return [
        {"name": name, "ms": 1e3 * x, "times as long": x / times["bare loop"]} for name, x in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    given = record.parsed(parser, globals(), QUICK)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = rows(5 if given.quick else given.updates, Path(folder))
    Console().print(record.table("an update, in turn", found))
    if given.save:
        record.save(given.save, found)


if __name__ == "__main__":
    main()
