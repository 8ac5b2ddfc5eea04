"""Options of the recipes: fields of a dataclass, of which HfArgumentParser makes a command line.

What is not given is settled by `--size`: a task has a table with the paper's numbers for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lf_huggingface.errors import RecipeError

SIZES = ("base", "large", "trial")
# What a table of sizes must settle; it may settle more.
OPEN = (
    "max_length",
    "attention_window",
    "long",
    "learning_rate",
    "epochs",
    "batch",
    "warmup",
    "schedule",
    "power",
    "weight_decay",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "device_batch",
)


def option(help: str, default: Any = None, **more: Any) -> Any:
    """A field with the words that --help prints.

    Args:
        help: what it does.
        default: its value when not given.
        more: metadata of HfArgumentParser, or `choices`.
    """
    return field(default=default, metadata={"help": help, **more})


def by_size(help: str, **more: Any) -> Any:
    """A field whose value, if not given, is the paper's for the size."""
    return option(f"{help} [default: the paper's, by size]", **more)


@dataclass
class Options:
    """Options of every task."""

    model: Path | None = option("Folder of the encoder to start from: Longformer, LED, RoBERTa, BERT, ...")
    data: Path | None = option("Folder of the data set, as distributed.")
    out: Path | None = option("Folder of this run; the same command continues what was interrupted.")
    size: str = option("Whose numbers hold where none is given.", "base", choices=SIZES)
    trial: bool = option("Make small data of the format and a small model, and run all of it.", False)
    show: bool = option("Print one training example with its global tokens and its pattern, and stop.", False)
    input: Path | None = option("evaluate, predict: another file of the format than the development set.")
    limit: int | None = option("Use the first so many records of each file.")
    seed: int = option("Of new weights, order, shuffling, masking and dropout.", 1)

    max_length: int | None = by_size("Tokens of an input, and positions of a model that is converted.")
    attention_window: int | None = by_size(
        "Keys of a window, half on each side, of a model that is converted."
    )
    long: str | None = by_size(
        "A longer document is cut, chunked or refused.", choices=("cut", "chunk", "refuse")
    )
    unpad: bool = option("Run the encoder without padding, where lf_backend can.", False)
    context_parallel: int = option("Processes that share one long document.", 1)

    learning_rate: float | None = by_size("The highest rate.")
    epochs: float | None = by_size("Passes over the training set.")
    updates: int | None = option("Updates; takes the place of --epochs.")
    batch: int | None = by_size("Examples of an update, over all devices.")
    device_batch: int | None = by_size("Examples of one device at a time; the rest of a batch accumulates.")
    warmup: float | None = by_size("Updates until the rate is highest; below 1 a share of all.")
    schedule: str | None = by_size("Of the rate after that: linear, polynomial, cosine, constant, ...")
    power: float | None = by_size("Of the polynomial schedule.")
    weight_decay: float | None = by_size("AdamW's.")
    adam_beta2: float | None = by_size("AdamW's second beta.")
    adam_epsilon: float | None = by_size("AdamW's epsilon.")
    max_grad_norm: float | None = by_size("Norm at which gradients are clipped.")
    bf16: bool = option("Compute in bfloat16.", False)
    gradient_checkpointing: bool = option("Keep layers' inputs alone and compute the rest again.", False)
    group_by_length: bool = option("Batches of examples of similar length.", False)
    evaluate_every: int | None = option(
        "Updates between evaluations, each with a checkpoint; if not given, an epoch."
    )
    save_limit: int = option("Checkpoints that are kept beside the best one.", 1)
    workers: int = option("Processes that load examples.", 0)
    trainer: list[str] = field(
        default_factory=list,
        metadata={"help": "More of transformers' TrainingArguments, as NAME=VALUE: fsdp=true, ..."},
    )


T = TypeVar("T", bound=Options)

# What may change between the commands of one run: none of it changes what is trained.
NOT_IDENTITY = frozenset(
    {"out", "model", "data", "input", "show", "workers", "save_limit", "device_batch", "context_parallel"}
)


def settled(options: T, sizes: Mapping[str, Mapping[str, Any]]) -> T:
    """The options with nothing open: what was not given is as the task's table of sizes says.

    Raises:
        RecipeError: a value out of range, by name.
    """
    size = "trial" if options.trial else options.size
    table = {**sizes["base"], **(sizes[size] if size != "base" else {})}
    if unknown := table.keys() - {f.name for f in dataclasses.fields(options)}:
        raise AssertionError(f"sizes: names of options wanted, got {sorted(unknown)}")
    filled = {name: table[name] for name in table if getattr(options, name) is None}
    made = dataclasses.replace(options, **filled, size=size)
    if missing := sorted(name for name in OPEN if getattr(made, name) is None):
        raise AssertionError(f"sizes: a value of {missing} wanted for {size}")
    _check(made)
    return made


def identity(options: Options) -> dict[str, Any]:
    """Return the options that make a run this run and no other, as plain data."""
    return {
        f.name: str(value) if isinstance(value := getattr(options, f.name), Path) else value
        for f in dataclasses.fields(options)
        if f.name not in NOT_IDENTITY
    }


_AT_LEAST = {
    "max_length": 8, "attention_window": 2, "batch": 1, "device_batch": 1, "updates": 1, "limit": 1,
    "evaluate_every": 1, "context_parallel": 1, "save_limit": 1, "workers": 0, "warmup": 0, "weight_decay": 0,
}  # fmt: skip
_ABOVE_ZERO = ("learning_rate", "epochs", "max_grad_norm", "adam_epsilon", "power")


def _check(options: Options) -> None:
    for name, least in _AT_LEAST.items():
        if (value := getattr(options, name)) is not None and not value >= least:
            raise RecipeError(f"--{name.replace('_', '-')}: at least {least} wanted, got {value}")
    for name in _ABOVE_ZERO:
        if (value := getattr(options, name)) is not None and not value > 0:
            raise RecipeError(f"--{name.replace('_', '-')}: above 0 wanted, got {value}")
