"""Run by torchrun: a recipe's command, and what its training ran as, in OUT/seen.json.

    python -m tests.huggingface.recipes.ranks OUT WORDS...

accelerate shards on accelerators alone. Told that these processes are some, it does so over gloo too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from torch import nn
from torch.distributed.tensor import DTensor

from lf_huggingface.recipes import processes, workflow
from lf_huggingface.recipes.__main__ import main
from lf_huggingface.recipes.training import RecipeTrainer

seen: dict[str, Any] = {}


def accelerators() -> None:
    """Have accelerate take the processes for accelerators, where it shall shard."""
    if "fsdp=true" in sys.argv:
        PartialState().distributed_type = DistributedType.MULTI_GPU


class Seen(RecipeTrainer):
    """Note how the model is laid out, and in what its layers compute."""

    def create_accelerator_and_postprocess(self) -> None:
        accelerators()  # again: TrainingArguments have begun anew
        super().create_accelerator_and_postprocess()

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        layer = next(module for module in model.modules() if isinstance(module, nn.Linear))
        hook = layer.register_forward_hook(lambda *call: seen.update(computes=str(call[-1].dtype)))
        loss = super().training_step(model, inputs, *rest, **more)
        hook.remove()
        seen.update(
            fsdp2=bool(self.accelerator.is_fsdp2),
            sharded=all(isinstance(x, DTensor) for x in model.parameters()),
            processes=self.accelerator.num_processes,
            kept=str(next(model.parameters()).dtype),
        )
        return loss


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, words = Path(sys.argv[1]), sys.argv[2:]
    workflow.RecipeTrainer = Seen  # type: ignore[misc]
    processes.state()
    accelerators()
    status = main([*words, "--out", str(out)])
    if not status:
        (out / "seen.json").write_text(json.dumps(seen))
    sys.exit(status)
