"""The four actions of a recipe: train, evaluate, predict, show; stage by stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes import curves, example, options, processes
from lf_huggingface.recipes import folder as run_folder
from lf_huggingface.recipes.data.store import Store, cached, fingerprint
from lf_huggingface.recipes.models import encoders, marks
from lf_huggingface.recipes.task import DEV, TRAIN, Task
from lf_huggingface.recipes.training import RecipeTrainer

FORMAT = 1  # of cached examples
CONVERTED, CACHE = "converted", "cache"
Say = Callable[[str], None]


class Workflow:
    """One run of a task in its folder.

    Args:
        task: the task with its options, settled.
        source: the folder of the encoder to start from.
        data: the folder of the data set.
        console: where to speak.

    Raises:
        RecipeError: the folder belongs to another run, or an option asks for what is not there.
    """

    def __init__(self, task: Task[Any], source: Path, data: Path, console: Console) -> None:
        given = task.options
        assert given.out is not None, "the command line has seen to it"
        if given.context_parallel > 1 and given.unpad:
            raise RecipeError("--unpad: not given wanted with --context-parallel, whose slices have padding")
        self.task, self.out, self.data, self.console = task, given.out.resolve(), data, console
        self.source = source
        who = {"task": task.name, "model": str(source.resolve()), "data": str(data.resolve())}
        run_folder.claim(self.out, {**who, **options.identity(given)})
        for note in task.notes():
            console.print(f"note: {note}", markup=False, highlight=False)

    def train(self) -> dict[str, Any]:
        """Train every stage, keep its best model, evaluate it; the metrics by stage."""
        metrics: dict[str, Any] = {}
        for stage, at in self._stages():
            with processes.state().main_process_first():  # it converts and encodes, the others find it done
                tokenizer, stage.source = self._start()
                stores = {split: self._store(stage, tokenizer, split) for split in (TRAIN, DEV)}
            if not (at / run_folder.METRICS).exists():
                self._train(stage, at, tokenizer, stores)
            metrics[stage.folder or stage.name] = run_folder.read_json(at / run_folder.METRICS)
            self._hand_on(stage, at, stores)
        summary = self.task.summary(metrics)
        if summary and processes.state().is_main_process:
            run_folder.write_json(self.out / "summary.json", summary)
        return {**metrics, **summary}

    def evaluate(self, path: Path | None) -> dict[str, Any]:
        """Metrics of the best models on the development set or on another file of the format."""
        return self._apply(path, gold=True)

    def predict(self, path: Path | None) -> dict[str, Any]:
        """The files of predictions for the development set or for another file, which needs no answers."""
        if not self.task.has_predictions:
            raise RecipeError(
                f"predict: a task that predicts wanted, {self.task.name} has bits alone: evaluate"
            )
        return self._apply(path, gold=False)

    def show(self) -> None:
        """Print one training example with its global tokens, and the picture of its pattern."""
        stage, _ = next(self._stages())
        tokenizer, stage.source = self._start()
        marks_added(stage, tokenizer)
        record = islice(stage.records(stage.file(TRAIN), gold=True), 1)
        encoded = next(iter(stage.encode(record, tokenizer, TRAIN)), None)
        if encoded is None:
            raise RecipeError(f"--show: an example wanted, {stage.file(TRAIN)} has none")
        config = transformers.AutoConfig.from_pretrained(stage.source)
        example.show(stage.batch([encoded], tokenizer, None), tokenizer, config, self.out, self.console)

    def _stages(self) -> Iterator[tuple[Task[Any], Path]]:
        for stage in self.task.stages():
            stage.data = self.data
            yield stage, self.out / stage.folder if stage.folder else self.out

    def _start(self) -> tuple[Any, Path]:
        """The tokenizer and the folder that a stage starts from."""
        given = self.task.options
        self.task.data = self.data
        source = encoders.long_folder(
            self.source, self.out / CONVERTED, given.max_length, given.attention_window
        )
        return encoders.load_tokenizer(source), source

    def _store(
        self, stage: Task[Any], tokenizer: Any, split: str, path: Path | None = None, gold: bool = True
    ) -> Store:
        """The encoded examples of a split, or of a file in its place."""
        marks_added(stage, tokenizer)
        file = path or stage.file(split)
        if not file.exists():
            raise RecipeError(f"--data: {file} wanted, it is not there")
        key = [
            FORMAT, stage.name, stage.folder, split, gold, fingerprint(file), tokenizer.get_vocab(),
            stage.carried_key(split),
            {k: v for k, v in options.identity(stage.options).items() if k in stage.encoding},
        ]  # fmt: skip

        def make() -> Iterator[dict[str, Any]]:
            records = islice(stage.records(file, gold=gold), stage.options.limit)
            yield from stage.encode(records, tokenizer, split)

        return cached(self.out / CACHE, f"{stage.folder or stage.name}-{split}", key, make)

    def _train(self, stage: Task[Any], at: Path, tokenizer: Any, stores: dict[str, Store]) -> None:
        given = stage.options
        transformers.set_seed(given.seed)
        model = stage.new_model(stage.source, tokenizer)
        if stage.marks:
            marks.add(model, tokenizer, stage.marks)
        if given.unpad:
            encoders.sparse(getattr(model, "encoder", model), unpad=True)
        parameters = sum(p.numel() for p in model.parameters())
        self.console.print(
            f"{stage.folder or stage.name}: {type(model).__name__}, {parameters:,} parameters; "
            f"{len(stores[TRAIN]):,} examples to train on, {len(stores[DEV]):,} to evaluate"
        )
        trainer = RecipeTrainer(stage, model, tokenizer, stores, at)
        trainer.resume()
        stage.finish(model)
        trainer.save_model(str(at / run_folder.BEST))
        predictions = trainer.predictions()
        metrics = stage.score(predictions, stores[DEV])
        if trainer.is_world_process_zero():
            if stage.has_predictions:
                stage.write(predictions, stores[DEV], at)
            curves.draw(trainer.state.log_history, stage.best, at, self.console)
            best = {"updates": trainer.state.global_step, "best_update": trainer.state.best_global_step}
            run_folder.write_json(at / run_folder.METRICS, {**metrics, **best})  # last: all else is there
        trainer.accelerator.wait_for_everyone()

    def _trained(self, stage: Task[Any], at: Path) -> tuple[Any, Any]:
        """The best model of a stage and its tokenizer."""
        folder = at / run_folder.BEST
        if not (at / run_folder.METRICS).exists():
            raise RecipeError(
                f"--out: the folder of a training that is done wanted, {at} has none; train first"
            )
        tokenizer = encoders.load_tokenizer(folder)
        marks.check(tokenizer, stage.marks)
        stage.source = folder
        return stage.load_model(folder), tokenizer

    def _apply(self, path: Path | None, gold: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for stage, at in self._stages():
            model, tokenizer = self._trained(stage, at)
            with processes.state().main_process_first():
                store = self._store(stage, tokenizer, DEV, path, gold)
            trainer = RecipeTrainer(stage, model, tokenizer, {DEV: store}, at)
            predictions = trainer.predictions()
            target = at if path is None else at / path.stem
            if gold:
                found[stage.folder or stage.name] = stage.score(predictions, store)
                if trainer.is_world_process_zero():
                    run_folder.write_json(target / "evaluation.json", found[stage.folder or stage.name])
            if stage.has_predictions and trainer.is_world_process_zero():
                target.mkdir(parents=True, exist_ok=True)
                written = str(stage.write(predictions, store, target))
                if not gold:
                    found[stage.folder or stage.name] = {"predictions": written}
            stage.hand_on({DEV: stage.selected(predictions, store)})
        return found

    def _hand_on(self, stage: Task[Any], at: Path, stores: Mapping[str, Store]) -> None:
        """Give the next stage what this one finds in every split; found once."""
        if not stage.hands_on:
            return
        path = at / "handed-on.json"
        if not path.exists():
            model, tokenizer = self._trained(stage, at)
            found = {}
            for split, store in stores.items():
                trainer = RecipeTrainer(stage, model, tokenizer, {DEV: store}, at)
                found[split] = stage.selected(trainer.predictions(), store)
            if processes.state().is_main_process:
                run_folder.write_json(path, found)
            processes.state().wait_for_everyone()
        stage.hand_on(run_folder.read_json(path))


def marks_added(stage: Task[Any], tokenizer: Any) -> None:
    """Add a task's marks to a tokenizer that lacks them."""
    if stage.marks:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(stage.marks)}, replace_extra_special_tokens=False
        )


def trial(task: type[Task[Any]], given: Any, console: Console) -> Workflow:
    """A run on small data of the task's format and a small model, which are made in its folder."""
    from lf_huggingface.recipes.trial import model as trial_model

    assert given.out is not None, "the command line has seen to it"
    home = given.out.with_name(given.out.name + "-trial")
    data, source = home / "data", home / "model"
    if not data.exists():
        task.trial_data(data, given.seed)
    if not source.exists():
        trial_model.make(source, data, decoder=task.name == "summarize")
    return Workflow(task(dataclasses.replace(given, model=source, data=data)), source, data, console)
