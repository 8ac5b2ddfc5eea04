"""What ranks run in these tests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lf_huggingface
from tests.huggingface.parallel import models

Results = dict[str, Any]


def results(mesh: Any, name: str, batch: dict[str, Tensor], changes: dict[str, Any]) -> Results:
    """Return loss, outputs and gradients of a model, over ranks or, without a mesh, in one process."""
    return _run(mesh, models.build(name, **changes), batch)


def with_whole_heads(mesh: Any, name: str, batch: dict[str, Tensor]) -> Results:
    """Return them of a model whose head has all tokens."""
    return _run(mesh, models.build(name), batch, heads="whole")


def checkpointed(mesh: Any, name: str, batch: dict[str, Tensor]) -> Results:
    """Return them of a model in training whose layers are computed again in the backward."""
    model: Any = models.build(name).train()
    old = "gradient_checkpointing_enable"  # deprecated where the new name exists
    (getattr(model, "activation_checkpointing_enable", None) or getattr(model, old))()
    return _run(mesh, model, batch)


def adapted(mesh: Any, name: str, batch: dict[str, Tensor]) -> Results:
    """Return them of a model of which LoRA trains a part."""
    import peft

    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    return _run(mesh, peft.get_peft_model(models.build(name), config), batch)


def halved(mesh: Any, name: str, batch: dict[str, Tensor]) -> Results:
    """Return them under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return _run(mesh, models.build(name), batch)


def compiled(mesh: Any, name: str, batch: dict[str, Tensor]) -> Results:
    """Return them of a model that is compiled into one graph."""
    torch._dynamo.reset()
    model: Any = models.build(name)
    return _run(mesh, model, batch, torch.compile(model, backend="aot_eager", fullgraph=True))


def _run(mesh: Any, model: nn.Module, batch: dict[str, Tensor], called: Any = None, **how: Any) -> Results:
    keys = sorted(model.state_dict())
    shared = nullcontext() if mesh is None else lf_huggingface.context_parallel(model, mesh, **how)
    with shared as cp:
        given = batch if cp is None else cp.shard(batch)
        # For hidden states transformers itself breaks graphs.
        outputs = model(**given, output_hidden_states=True) if called is None else called(**given)
        loss = outputs.get("loss")
        if loss is None:
            loss = outputs.pooler_output.square().sum() + outputs.last_hidden_state.sum() * 0
        loss.backward()
        if cp is not None:
            cp.average_gradients()
            outputs = cp.gather(outputs)
    assert sorted(model.state_dict()) == keys
    grads = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    found = {name: x for name, x in outputs.items() if isinstance(x, Tensor)} | {"loss": loss}
    states = outputs.get("hidden_states", outputs.get("encoder_hidden_states")) or ()
    found |= {f"state {index}": x for index, x in enumerate(states)}
    plain = {name: x.detach().float().numpy() for name, x in found.items()}
    return plain | {f"grad {name}": x.float().numpy() for name, x in grads.items() if x is not None}


def refusal(mesh: Any, make: Callable[[Any], Any]) -> Any:
    """Run what is refused."""
    return make(mesh)


def assert_same(got: Results, wanted: Results, tolerance: float) -> None:
    """Raise AssertionError unless two results are near, in the scale of all outputs and of all gradients."""
    missing = {name for name in wanted if name not in got}
    assert not missing, missing
    scale = max(float(np.abs(x).max()) for name, x in wanted.items() if name.startswith("grad"))
    for name, x in got.items():
        other = wanted.get(name)
        if other is None:  # a parameter without part in one process may have a gradient of 0 over ranks
            assert name.startswith("grad") and not x.any(), name
            continue
        assert x.shape == other.shape, name
        most = scale if name.startswith("grad") else max(1.0, float(np.abs(other).max()))
        error = float(np.abs(x - other).max())
        assert error <= tolerance * most, f"{name}: {error:.2e} of {most:.2e}"
