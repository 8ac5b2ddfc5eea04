"""A Trainer as one process or ranks run it."""

from __future__ import annotations

import os
import tempfile
import warnings
from typing import Any

import torch
import transformers
from accelerate import ParallelismConfig
from accelerate.state import AcceleratorState

import lf_huggingface
from tests.huggingface.parallel import models

UPDATES, BATCH = 6, 4


class Examples(torch.utils.data.Dataset[dict[str, Any]]):
    """Sequences, half of whose labels count; every third is shorter."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(index)
        ids = torch.randint(4, 50, (models.LENGTH,), generator=draw)
        mask = torch.ones_like(ids)
        mask[models.LENGTH - 11 * (index % 3 == 0) :] = 0
        labels = ids.masked_fill((torch.rand(ids.shape, generator=draw) < 0.5) | (mask == 0), -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def results(mesh: Any, name: str, cp_size: int, **more: Any) -> dict[str, Any]:
    """Return what a training logs, and what the trained model predicts for all examples."""
    warnings.simplefilter("ignore")  # of what accelerate and transformers deprecate
    world = 1 if mesh is None else mesh.size()
    if mesh is not None:
        rank = str(mesh.get_local_rank())
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(world), MASTER_ADDR="localhost")
        os.environ.update(LOCAL_WORLD_SIZE=str(world), MASTER_PORT="1")  # of a group that exists already
        dp = {"dp_shard_size": world // cp_size} if world > cp_size else {}
        more["parallelism_config"] = ParallelismConfig(cp_size=cp_size, **dp)
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=UPDATES,
        learning_rate=1e-3,
        adam_epsilon=1e-4,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        per_device_train_batch_size=BATCH // (world // cp_size),
        per_device_eval_batch_size=3,
        gradient_accumulation_steps=2,
        **more,
    )
    trainer = lf_huggingface.ContextParallelTrainer(
        models.build(name), arguments, train_dataset=Examples(24), eval_dataset=Examples(22)
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = trainer.predict(Examples(22))  # no multiple of a batch on all ranks
    return {
        "losses": [entry["loss"] for entry in logged],
        "norms": [entry["grad_norm"] for entry in logged],
        "evaluated": found.metrics["test_loss"],
        "predictions": found.predictions,
    }
