"""Training: checkpointing, loss curves, `Trainer`, several processes, adapters."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

import lf_backend as lf
from tests.huggingface import families, zoo

STEPS = 200


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["Llama", "Gemma 2", "ModernBERT", "BART"])
def test_gradient_checkpointing(family: str, reentrant: bool) -> None:
    model = families.build(family, lf_attention="window(5, 5) | global(0)")
    batch = families.batch(family, "right")
    want = families.results(model, batch)
    model.train()
    old = "gradient_checkpointing_enable"  # deprecated where the new name exists
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, old)
    enable({"use_reentrant": reentrant})
    got = families.results(model, batch)
    assert got.keys() == want.keys()
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, msg=name)


def _losses(model: nn.Module, batches: list[Tensor], mark: bool) -> list[float]:
    """The curve of a plain loop, of a model that learns to say its input."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found = []
    for ids in batches:
        marked = {"global_attention_mask": torch.zeros_like(ids)} if mark else {}
        if mark:
            marked["global_attention_mask"][:, 0] = 1
        loss = model.train()(ids, labels=ids, **marked).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def _longformers() -> tuple[nn.Module, nn.Module]:
    stock = zoo.longformer("LongformerForMaskedLM", num_hidden_layers=1, initializer_range=0.05)
    patched = copy.deepcopy(stock)
    lf.patch(patched)
    return patched, stock


def _mistrals() -> tuple[nn.Module, nn.Module]:
    model = families.build("Mistral", num_hidden_layers=1, initializer_range=0.05)
    return model, families.twin(model)


@pytest.mark.parametrize("make", [_longformers, _mistrals], ids=["patched", "configured"])
def test_the_loss_follows_stocks_for_200_steps(make: Callable[[], tuple[nn.Module, nn.Module]]) -> None:
    ours, stock = make()
    base = torch.randint(3, zoo.VOCABULARY, (8, 2, 16))
    batches = [base[step % 8] for step in range(STEPS)]
    got, want = (torch.tensor(_losses(x, batches, make is _longformers)) for x in (ours, stock))
    assert want[-8:].mean() < 0.5 * want[:8].mean()  # it learns
    assert float((got - want).abs().max()) < 0.02 * float(want[0])


def test_trainer(tmp_path: Path) -> None:
    rows = [{"input_ids": x, "labels": x} for x in torch.randint(3, families.VOCABULARY, (8, 24))]
    found = []
    for name in ("lf", "eager"):
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=2,
            logging_steps=1,
            use_cpu=True,
            bf16=True,
            report_to=[],
            save_strategy="no",
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(families.build("Mistral", name), arguments, train_dataset=rows)
        trainer.train()
        found.append(torch.tensor([row["loss"] for row in trainer.state.log_history if "loss" in row]))
    assert len(found[0]) == 4
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0)


def test_two_processes_one_of_them_without_any_global_token() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.huggingface.ranks"]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)[-3000:]


@pytest.mark.filterwarnings("ignore:.*deprecated and will be removed in v6:FutureWarning")  # peft's own
def test_lora_on_local_and_global_projections() -> None:
    peft = pytest.importorskip("peft")
    stock = zoo.longformer("LongformerForMaskedLM")
    names = ["query", "value", "query_global", "value_global"]
    tuned = peft.get_peft_model(stock, peft.LoraConfig(target_modules=names, init_lora_weights=False))
    ids = zoo.tokens(2, 20)
    marked = torch.zeros_like(ids)
    marked[:, 0] = 1
    batch = {"input_ids": ids, "labels": ids, "global_attention_mask": marked}
    want = zoo.results(tuned.eval(), batch, 20)
    assert any("query_global" in name for name in want)
    with lf.patch(tuned):
        got = zoo.results(tuned, batch, 20)
    assert got.keys() == want.keys()
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, atol=2e-5, rtol=1e-4, msg=name)
