"""Trainings that ranks run: FSDP2 over dp x cp, and an optimizer that nobody averages for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import lf_backend as lf
import lf_huggingface
from tests.huggingface.parallel import models

STEPS = 20
EPS = 1e-4  # above the rounding of gradients that are 0, as those of biases of keys
DP, CP = 2, 2


def _batch(name: str, step: int, part: int) -> dict[str, Tensor]:
    """Return what one group of ranks takes of a step, with as many labels as the others have."""
    found = models.batch(name)
    torch.manual_seed(100 * step + part)
    ids = torch.randint(4, 50, found["input_ids"].shape)
    labels = ids.clone()
    labels[:, ::3] = -100
    mask = found["attention_mask"]
    return found | {
        "input_ids": torch.where(mask == 0, found["input_ids"], ids),
        "labels": labels.masked_fill(mask == 0, -100),
    }


def alone(name: str) -> tuple[list[float], dict[str, Any]]:
    """Return losses and weights of one process that has the whole batch of each step."""
    model = models.build(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=EPS)
    losses = []
    for step in range(STEPS):
        parts = [model(**_batch(name, step, part)).loss for part in range(DP)]
        loss = sum(parts[1:], parts[0]) / DP
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {n: x.detach().numpy() for n, x in model.named_parameters()}


def sharded(mesh: Any, name: str) -> tuple[list[float], dict[str, Any]]:
    """Return them of FSDP2 over all ranks, groups of which share sequences."""
    mesh = init_device_mesh("cpu", (DP, CP), mesh_dim_names=("dp", "cp"))
    both = mesh[("dp", "cp")]._flatten("dp_cp")
    model: Any = models.build(name).train()
    base = model.base_model
    for layer in base.layers if hasattr(base, "layers") else base.encoder.layer:
        fully_shard(layer, mesh=both)
    fully_shard(model, mesh=both)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=EPS)
    losses = []
    with lf_huggingface.context_parallel(model, mesh["cp"]) as cp:
        for step in range(STEPS):
            loss = model(**cp.shard(_batch(name, step, mesh["dp"].get_local_rank()))).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total = loss.detach().clone()
            torch.distributed.all_reduce(total, group=mesh["dp"].get_group())
            losses.append(total.item() / DP)
    return losses, {n: x.full_tensor().detach().numpy() for n, x in model.named_parameters()}


def not_averaged(mesh: Any) -> None:
    """Step without averaging."""
    model: Any = models.build("Llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lf_huggingface.context_parallel(model, mesh) as cp:
        model(**cp.shard(models.batch("Llama"))).loss.backward()
        optimizer.step()


def never_averaged(mesh: Any) -> None:
    """Leave without averaging."""
    model: Any = models.build("Llama")
    with lf_huggingface.context_parallel(model, mesh) as cp:
        model(**cp.shard(models.batch("Llama"))).loss.backward()


def other_batches(mesh: Any) -> None:
    """Give every rank a batch of its own."""
    batch = models.batch("Llama", "none")
    batch["input_ids"] = batch["input_ids"].roll(mesh.get_local_rank(), 1)
    with lf_huggingface.context_parallel(models.build("Llama"), mesh) as cp:
        cp.shard(batch)


def generating(mesh: Any) -> None:
    """Generate over ranks, and afterwards."""
    model: Any = models.build("Llama")
    ids = models.batch("Llama", "none")["input_ids"]
    with lf_huggingface.context_parallel(model, mesh):
        pass
    assert model.generate(ids, max_new_tokens=1, do_sample=False).shape[1] == ids.shape[1] + 1
    with lf_huggingface.context_parallel(model, mesh):
        model.generate(ids, max_new_tokens=1)


def data_parallel(mesh: Any) -> None:
    """Wrap a model in DDP over the ranks that share sequences."""
    model: nn.Module = DistributedDataParallel(models.build("Llama"), process_group=mesh.get_group())
    lf_huggingface.context_parallel(model, mesh)


def too_short(mesh: Any) -> None:
    """Cut fewer tokens than there are ranks."""
    with lf_huggingface.context_parallel(models.build("Llama"), mesh) as cp:
        cp.shard({"input_ids": torch.ones(1, 2, dtype=torch.int64)})


def unknown(mesh: Any) -> None:
    """Give a tensor that nobody knows how to cut."""
    with lf_huggingface.context_parallel(models.build("Llama"), mesh) as cp:
        cp.shard(models.batch("Llama") | {"pixel_values": torch.ones(2, 3)})


def ahead(mesh: Any) -> list[float]:
    """Return losses of batches that were all sharded before the first forward, and those of one process."""
    model: Any = models.build("Llama")
    batches = [models.batch("Llama", "right"), models.batch("Llama", "none"), _packed(9), _packed(23)]
    with lf_huggingface.context_parallel(model, mesh) as cp, torch.no_grad():
        losses = [model(**given).loss.item() for given in map(cp.shard, batches)]
        several = [model(**given).loss.item() for given in list(map(cp.shard, batches))]
    with torch.no_grad():
        return [*losses, *several, *(model(**batch).loss.item() for batch in batches)]


def _packed(first: int) -> dict[str, Tensor]:
    """Return a row of two documents."""
    at = torch.cat([torch.arange(first), torch.arange(models.LENGTH - first)])[None]
    ids = torch.arange(3, 3 + models.LENGTH)[None]
    return {"input_ids": ids, "labels": ids.clone(), "position_ids": at}


def two_forwards(mesh: Any, other: int) -> float:
    """Compute layers again for one backward of two batches; the error of a gradient against one process."""
    shared, alone = (models.build("Llama").train() for _ in range(2))
    old: Any = shared
    (getattr(old, "activation_checkpointing_enable", None) or old.gradient_checkpointing_enable)()
    batches = _packed(9), _packed(other)
    with lf_huggingface.context_parallel(shared, mesh) as cp:
        given = [cp.shard(batches[0])]
        given.append(given[0] if other == 9 else cp.shard(batches[1]))
        (shared(**given[0]).loss + shared(**given[1]).loss).backward()
        cp.average_gradients()
    (alone(**batches[0]).loss + alone(**batches[1]).loss).backward()
    pairs = zip(shared.parameters(), alone.parameters(), strict=True)
    return max(float((x.grad - y.grad).abs().max()) for x, y in pairs if x.grad is not None)


def unsharded(mesh: Any, length: int | None) -> None:
    """Give the model a whole batch, before and after one is sharded."""
    model: Any = models.build("Llama")
    with lf_huggingface.context_parallel(model, mesh) as cp:
        if length is not None:
            cp.shard(models.batch("Llama", length=length))
        model(**models.batch("Llama"))


def asked_for(mesh: Any, name: str, value: Any) -> None:
    """Ask a forward for what ranks do not have."""
    model: Any = models.build("Llama")
    with lf_huggingface.context_parallel(model, mesh) as cp:
        model(**{**cp.shard(models.batch("Llama")), name: value})


def pooled(mesh: Any) -> Tensor:
    """Return the mean over tokens of a sequence, and whole hidden states."""
    model: Any = models.build("BERT base")
    batch = models.batch("BERT base")
    with lf_huggingface.context_parallel(model, mesh) as cp, torch.no_grad():
        given = cp.shard(batch)
        hidden = model(**given).last_hidden_state
        means = cp.mean(hidden, given["attention_mask"])
        whole = cp.gather(hidden)
    weights = batch["attention_mask"][..., None]
    torch.testing.assert_close(means, (whole * weights).sum(1) / weights.sum(1))
    assert isinstance(means, Tensor)
    return means


def refused(mesh: Any, name: str) -> None:
    """Share a model that cannot be shared."""
    lf_huggingface.context_parallel(_REFUSED[name](), mesh)


def _unpatched() -> nn.Module:
    from tests.huggingface import zoo

    return zoo.longformer()


def _of_sdpa() -> nn.Module:
    from tests.huggingface import families

    return families.build("Mistral", "sdpa")


def _in_full() -> nn.Module:
    from tests.huggingface import families

    return families.build("Gemma 3")


def _unpadded() -> nn.Module:
    from tests.huggingface import zoo

    model = zoo.longformer()
    lf.patch(model, unpad=True)
    return model


def _choices() -> nn.Module:
    from tests.huggingface import zoo

    model = zoo.longformer("LongformerForMultipleChoice")
    lf.patch(model)
    return model


def _hooked() -> nn.Module:
    from accelerate import big_modeling

    attach: Any = big_modeling._attach_context_parallel_hooks
    model = models.build("Llama")
    attach(model)
    return model


def without_a_name(mesh: Any) -> None:
    """Give a mesh of two dimensions."""
    whole = init_device_mesh("cpu", (1, mesh.size()), mesh_dim_names=("dp", "cp"))
    lf_huggingface.context_parallel(models.build("Llama"), whole)


_REFUSED = {
    "hooks": _hooked,
    "unpatched": _unpatched, "sdpa": _of_sdpa, "full": _in_full, "unpad": _unpadded, "choices": _choices,
}  # fmt: skip
