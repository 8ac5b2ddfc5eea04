"""Packed documents, and encoders without padding: `python -m benchmarks.packing`.

What is compared does the same work, is found equal first, and runs in turn in one process; report ratios.
"""

from __future__ import annotations

import copy
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import lf_backend as lf
from benchmarks import record
from benchmarks.record import Row
from lf_backend.measure import interleaved

LENGTH, HEADS, HEAD_DIM = 16384, 12, 64
PATTERN = lf.conventions.huggingface(512)
LEAST, MOST, EXAMPLES = 200, 4096, 8  # of 16, stock takes 24 GiB in a training step
WINDOW, WIDTH, BOUNDARIES = 512, 768, 10_000  # of the model; how many boundaries
QUICK = {
    "LENGTH": 1024, "HEADS": 2, "HEAD_DIM": 16, "PATTERN": lf.conventions.huggingface(64), "LEAST": 20,
    "MOST": 128, "EXAMPLES": 4, "WINDOW": 32, "WIDTH": 48, "BOUNDARIES": 100,
}  # fmt: skip


def main() -> None:
    options = record.parsed(record.parser(__doc__, SECTIONS, repeats=5), globals(), QUICK)
    record.report(options, SECTIONS, lambda section: section(options.repeats))


def rows(repeats: int) -> Iterator[Row]:
    """One row of 16,384 with documents in it, against the same tokens laid out without."""
    for count, apart, word in (
        (64, 64, "64 documents of 256, against 64 rows of 256"),
        (2, 1, "2 documents of 8,192, against one row of 16,384"),
    ):
        ids = lf.document_ids(list(range(0, LENGTH + 1, LENGTH // count)))
        packed, plain = _inputs(1), _inputs(apart)
        if apart == count:
            found, wanted = _attend(packed, ids), _attend(plain, None)
            wanted = wanted.transpose(0, 1).flatten(1, 2)[None]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        for kind, run in (("forward", _forward), ("forward + backward", _both)):
            runs = {"packed": run(packed, ids), "apart": run(plain, None)}
            times = interleaved(runs, repeats)
            yield from record.compared(f"{word}, {kind}", times, "apart")


def globals_(repeats: int) -> Iterator[Row]:
    """One global token in each document: cost per token must not depend on how many documents there are."""
    pattern = PATTERN | lf.Global(0)
    runs = {}
    for count in (1, 16, 64, 256):
        ids = lf.document_ids(list(range(0, LENGTH + 1, LENGTH // count)))
        inputs = _inputs(1)
        runs[f"{count} documents"] = _forward(inputs, ids, pattern)
    yield from record.compared("forward", interleaved(runs, repeats), "1 documents")


def unpadded(repeats: int) -> Iterator[Row]:
    """8 documents of 200 to 4,096 tokens in 2 layers of Longformer-base's shape."""
    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        attention_window=[WINDOW] * 2,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        max_position_embeddings=MOST + 2,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    stock = transformers.LongformerModel(config)
    stock.train(False)
    patched, without = copy.deepcopy(stock), copy.deepcopy(stock)
    lf.patch(patched)
    lf.patch(without, unpad=True)
    sizes = torch.linspace(LEAST, MOST, EXAMPLES).long()
    mask = (torch.arange(MOST) < sizes[:, None]).long()
    marks = torch.zeros_like(mask)
    marks[:, 0] = 1
    batch = {
        "input_ids": torch.randint(10, 1000, mask.shape), "attention_mask": mask,
        "global_attention_mask": marks,
    }  # fmt: skip
    models = {"Hugging Face": stock, "patched": patched, "unpadded": without}
    with torch.no_grad():
        real = mask[..., None].bool()
        found = [model(**batch).last_hidden_state.masked_fill(~real, 0) for model in models.values()]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4)
    share = float(sizes.sum()) / mask.numel()
    for word, kind in (("forward", _model_forward), ("training step", _model_step)):
        times = interleaved({name: kind(m, batch) for name, m in models.items()}, repeats, warmup=1)
        for row in record.compared(word, times, "unpadded"):
            yield {**row, "real tokens": share}


def boundaries(repeats: int) -> Iterator[Row]:
    """10,000 distinct boundaries through one compiled function: growth of memory, and graphs."""
    from torch._dynamo.testing import CompileCounter

    graphs = CompileCounter()
    q = torch.randn(1, 1, 256, 16)
    attend = torch.compile(
        lambda q, ids: lf.attention(q, q, q, "window(8, 8)", documents=ids), backend=graphs, fullgraph=True
    )

    def run(first: int, last: int) -> int:
        for seed in range(first, last):
            cut = 1 + seed % 254
            attend(q, lf.document_ids([0, cut, cut + (seed // 254) % (256 - cut), 256]))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    warm = BOUNDARIES // 20
    before = run(0, warm)
    grown = run(warm, warm + BOUNDARIES) - before
    tracemalloc.stop()
    yield {"work": f"{BOUNDARIES:,} boundaries", "name": "growth, bytes", "value": grown}
    yield {"work": f"{BOUNDARIES:,} boundaries", "name": "graphs", "value": graphs.frame_count}


SECTIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    "rows": rows,
    "globals": globals_,
    "unpadded": unpadded,
    "boundaries": boundaries,
}


def _inputs(batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, LENGTH, HEADS, HEAD_DIM)
    drawn = (torch.randn(shape, generator=generator) for _ in range(3))
    return [x.view(batch, LENGTH // batch, HEADS, HEAD_DIM).transpose(1, 2).requires_grad_() for x in drawn]


def _attend(inputs: list[Tensor], ids: Tensor | None, pattern: lf.Pattern = PATTERN) -> Tensor:
    return lf.attention(inputs[0], inputs[1], inputs[2], pattern, documents=ids)


def _forward(inputs: list[Tensor], ids: Tensor | None, pattern: lf.Pattern = PATTERN) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return _attend(inputs, ids, pattern)

    return run


def _both(inputs: list[Tensor], ids: Tensor | None) -> Callable[[], Any]:
    upstream = torch.randn(inputs[0].shape)
    return lambda: torch.autograd.grad(_attend(inputs, ids), inputs, upstream)


def _model_forward(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return model(**batch).last_hidden_state

    return run


def _model_step(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    real = batch["attention_mask"][..., None]

    def run() -> None:
        model.zero_grad()
        (model(**batch).last_hidden_state * real).pow(2).mean().backward()

    return run


if __name__ == "__main__":
    main()
