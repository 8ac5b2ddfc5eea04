"""transformers' Trainer, with an order of examples that resumes to the bit and evaluation by a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import DistributedType, ParallelismConfig
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from lf_huggingface.errors import RecipeError
from lf_huggingface.parallel.trainer import ContextParallelMixin
from lf_huggingface.recipes import folder as run_folder
from lf_huggingface.recipes import processes
from lf_huggingface.recipes.data.order import Collator, Examples, Order
from lf_huggingface.recipes.data.store import Store
from lf_huggingface.recipes.options import Options
from lf_huggingface.recipes.task import Task

NON_FINITE = "non-finite.pt"


class RecipeTrainer(ContextParallelMixin, transformers.Trainer):
    """A Trainer of one stage of a task.

    Args:
        task: the stage.
        model, tokenizer: what is trained.
        stores: encoded examples of "train" and "dev"; either may be missing.
        folder: where checkpoints, and the batch of a loss that is not finite, are written.
    """

    heads = "whole"  # those of tasks look up tokens anywhere

    def __init__(
        self, task: Task[Any], model: Any, tokenizer: Any, stores: dict[str, Store], folder: Path
    ) -> None:
        self._task, self._folder = task, folder
        self._order: Order | None = None
        seed = task.options.seed
        examples = {split: Examples(store, seed) for split, store in stores.items()}
        super().__init__(
            model=model,
            args=arguments(task.options, task, folder, len(stores.get("train", ()))),
            train_dataset=examples.get("train"),
            eval_dataset=examples.get("dev"),
            data_collator=Collator(lambda rows, rng: task.batch(rows, tokenizer, rng)),
            processing_class=tokenizer,
        )
        # A loss is the mean over its batch, and is divided by the batches that accumulate. Trainer takes any
        # model with **kwargs for one that divides by `num_items_in_batch` itself, which Longformer does not.
        self.model_accepts_loss_kwargs = False
        self.add_callback(_Steps(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        options = self._task.options
        examples: Any = self.train_dataset
        lengths = examples.store.lengths
        self._order = Order(lengths, options.seed, self.args.train_batch_size, options.group_by_length)
        return self._order

    def begin_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch when it is next asked for."""
        if self._order is not None:
            self._order.epoch = epoch

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        """See Trainer; the model is not told which examples it sees."""
        return super().compute_loss(model, {k: v for k, v in inputs.items() if k != "index"}, *rest, **more)

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        """See Trainer.

        Raises:
            RecipeError: the loss is not finite; the batch is saved, and no weight has changed.
        """
        loss = super().training_step(model, inputs, *rest, **more)
        if not math.isfinite(float(loss)):
            path = self._folder / NON_FINITE
            torch.save({name: x.cpu() for name, x in inputs.items()}, path)
            raise RecipeError(
                f"loss: a finite number wanted in update {self.state.global_step + 1}, got {float(loss)}; "
                f"the batch is in {path}"
            )
        return loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """The task's metrics on the development set, logged."""
        store = self._dev()
        found = self._task.score(self.predictions(), store)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predictions(self) -> list[Any]:
        """One prediction for each example of the development set, on every process."""
        store, model = self._dev(), self.model_wrapped
        was_training = model.training
        model.eval()
        found: list[tuple[int, Any]] = []
        with self.sharing(model):
            for batch in _progress(self.get_eval_dataloader(), not self.is_world_process_zero()):
                inputs = self._prepare_inputs(batch)
                indices = inputs.pop("index").tolist()
                with torch.no_grad(), self.compute_loss_context_manager():
                    made = self._task.predict(model, inputs, [store[index] for index in indices])
                found += zip(indices, made, strict=True)
        model.train(was_training)
        by_index = dict(gather_object(found))
        return [by_index[index] for index in range(len(store))]

    def _dev(self) -> Store:
        examples: Any = self.eval_dataset
        found: Store = examples.store
        return found

    def resume(self) -> None:
        """Train to the end, from the last whole checkpoint if there is one; the best weights stay."""
        last = run_folder.last_checkpoint(self._folder)
        if last is None:
            self.train()
            return
        state = transformers.TrainerState.load_from_json(str(last / "trainer_state.json"))
        if state.global_step < state.max_steps:
            self.train(resume_from_checkpoint=str(last))
            return
        state.best_model_checkpoint = str(last.with_name(f"checkpoint-{state.best_global_step}"))
        self.state = state  # Trainer would do one more update
        self._load_best_model()


def _progress(loader: DataLoader[Any], disable: bool) -> Iterable[Any]:
    from transformers.utils.logging import tqdm

    found: Iterable[Any] = tqdm(loader, "evaluating", leave=False, disable=disable)
    return found


class _Steps(transformers.TrainerCallback):
    """Tell the order which epoch begins or goes on; end with a checkpoint."""

    def __init__(self, trainer: RecipeTrainer) -> None:
        self._begin: Callable[[int], None] = trainer.begin_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


def arguments(options: Options, task: Task[Any], folder: Path, examples: int) -> Any:
    """TrainingArguments of a stage.

    Raises:
        RecipeError: a batch that the devices do not divide, or `--trainer` words that are not known or are
            options of the recipe.
    """
    more = _more(options.trainer)
    started, shared = int(processes.state().num_processes), options.context_parallel
    if started % shared:
        raise RecipeError(
            f"--context-parallel: a number that divides the processes, of which there are {started}, wanted, "
            f"got {shared}; start them by torchrun --nproc-per-node {shared} -m lf_huggingface.recipes ..."
        )
    devices = started // shared  # that have batches of their own
    assert options.batch is not None and options.device_batch is not None, "settled"
    accumulated, left = divmod(options.batch, devices * options.device_batch)
    if left or not accumulated:
        raise RecipeError(
            f"--batch: a multiple of {devices} devices x --device-batch {options.device_batch} wanted, "
            f"got {options.batch}"
        )
    every = options.evaluate_every or max(1, math.ceil(examples / options.batch))
    schedule = (
        {"lr_scheduler_kwargs": {"power": options.power, "lr_end": 0.0}}
        if options.schedule == "polynomial"
        else {}
    )
    settings: dict[str, Any] = {
        "output_dir": str(folder / run_folder.CHECKPOINTS),
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.epochs,
        "max_steps": options.updates or -1,
        "per_device_train_batch_size": options.device_batch,
        "per_device_eval_batch_size": options.device_batch,
        "gradient_accumulation_steps": accumulated,
        "warmup_steps": options.warmup,
        "lr_scheduler_type": options.schedule,
        **schedule,
        "weight_decay": options.weight_decay,
        "adam_beta2": options.adam_beta2,
        "adam_epsilon": options.adam_epsilon,
        "max_grad_norm": options.max_grad_norm,
        "bf16": options.bf16,
        **({_checkpointing(): True} if options.gradient_checkpointing else {}),
        "seed": options.seed,
        "dataloader_num_workers": options.workers,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "logging_steps": max(1, every // 10),
        "logging_nan_inf_filter": False,
        "save_total_limit": options.save_limit + 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{task.best}",
        "greater_is_better": not task.lower_is_better,
        "remove_unused_columns": False,
        "use_cpu": processes.on_cpu(),
        "dataloader_pin_memory": not processes.on_cpu(),
        "ddp_find_unused_parameters": False,
        "report_to": [],
    }
    if shared > 1:
        sharded = {"dp_shard_size": devices} if devices > 1 else {}
        settings["parallelism_config"] = ParallelismConfig(cp_size=shared, **sharded)
    if taken := sorted(settings.keys() & more.keys()):
        raise RecipeError(
            f"--trainer: arguments that the recipe does not set itself wanted, got {', '.join(taken)}"
        )
    _check_sharding(more)
    parser: Any = transformers.HfArgumentParser
    [made] = parser(transformers.TrainingArguments).parse_dict({**settings, **more})
    made._n_gpu = min(made.n_gpu, 1)  # several devices are several processes, never DataParallel
    return made


def _check_sharding(more: dict[str, Any]) -> None:
    """Raise RecipeError where accelerate would take FSDP and leave it out without a word."""
    kind = processes.state().distributed_type
    if more.get("fsdp") and kind in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise RecipeError(
            f"--trainer fsdp: several processes on accelerators wanted, got {kind.value}, which accelerate "
            "does not shard"
        )


def _checkpointing() -> str:
    """The argument's name, which changes with transformers' version."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    return next(name for name in names if name in transformers.TrainingArguments.__dataclass_fields__)


def _more(words: list[str]) -> dict[str, Any]:
    known = {name for name in transformers.TrainingArguments.__dataclass_fields__}
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise RecipeError(
                f"--trainer: NAME=VALUE of transformers' TrainingArguments wanted, got {word!r}"
            )
        found[name] = {"true": True, "false": False}.get(value.lower(), value)
    return found
