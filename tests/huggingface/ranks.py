"""Run by two processes: a patched Longformer under DDP and FSDP 2; one rank's batch has no global token."""

import os

import torch
from torch import distributed, nn

import lf_backend as lf
from tests.huggingface import zoo

rank = int(os.environ["RANK"])
torch.set_num_threads(1)


def batch(rank: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(rank)
    ids = zoo.tokens(2, 20)
    marked = torch.zeros_like(ids)
    marked[:, 0] = rank
    return {"input_ids": ids, "labels": ids, "global_attention_mask": marked}


def patched() -> nn.Module:
    model = zoo.longformer("LongformerForMaskedLM").train()
    lf.patch(model)
    return model


want: dict[str, torch.Tensor] = {}
for other in range(2):
    model = patched()
    model(**batch(other)).loss.backward()
    for name, x in model.named_parameters():
        grad = torch.zeros_like(x) if x.grad is None else x.grad
        want[name] = want.get(name, 0) + grad / 2

distributed.init_process_group("gloo")
for kind in ("ddp", "fsdp"):
    model = patched()
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        for layer in model.longformer.encoder.layer:
            distributed.fsdp.fully_shard(layer)
        distributed.fsdp.fully_shard(model)
    for _ in range(2):  # a second step finds out whether the first left DDP waiting
        model.zero_grad()
        model(**batch(rank)).loss.backward()
    for name, x in model.named_parameters():
        grad = x.grad.full_tensor() if kind == "fsdp" else x.grad
        torch.testing.assert_close(grad, want[name.removeprefix("module.")], atol=1e-6, rtol=1e-4, msg=name)
distributed.destroy_process_group()
