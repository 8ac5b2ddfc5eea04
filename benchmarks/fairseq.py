"""A character language model of fairseq, stock and through lf_backend: `python -m benchmarks.fairseq`.

Seeded weights. What is compared runs in turn in one process, after the two were found equal under a window
that reaches over all of a shorter text; report ratios. Stock is dense: its attention is causal and no more.
"""

from __future__ import annotations

import copy
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import lf_backend as lf
from benchmarks import record
from benchmarks.record import Row
from lf_backend.measure import interleaved

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r".torch\.jit\.\w+. is deprecated", DeprecationWarning)
    from fairseq.data import Dictionary
    from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture

OURS, STOCK = "lf_backend", "fairseq"
LENGTH, WINDOW, WIDTH = 8192, 256, 512
CONTEXTS = (WINDOW, 1024, 4096, LENGTH)
QUICK = {"LENGTH": 512, "WINDOW": 32, "WIDTH": 64, "CONTEXTS": (32, 128)}
SYMBOLS = [chr(code) for code in range(97, 123)]


def main() -> None:
    record.by_layers(globals(), SECTIONS, layers=6)


def training(repeats: int, layers: int) -> Iterator[Row]:
    """Training step, 8,192 characters, window 256, 8 heads x 64, float32, without dropout of attention."""
    yield from _training(repeats, layers, 0.0)


def dropout(repeats: int, layers: int) -> Iterator[Row]:
    """One layer of it with dropout 0.1 of attention, which torch's fused attention does not have on CPUs.

    fairseq holds all scores then, several gigabytes a layer.
    """
    yield from ({**row, "layers": 1} for row in _training(repeats, 1, 0.1))


def decoding(repeats: int, layers: int) -> Iterator[Row]:
    """One character more, window 256, by incremental decoding: the bounded buffer against all keys."""
    stock = _model(layers, 0.0).train(False)
    _check_equal(stock)
    ours = copy.deepcopy(stock)
    lf.patch(ours, lf.Window.causal(WINDOW))
    flat = None
    for context in CONTEXTS:
        runs = {OURS: _step(ours, context), STOCK: _step(stock, context)}
        times = interleaved(runs, 20 * repeats)
        flat = flat or times[OURS]
        for row in record.compared(f"context {context:,}", times, OURS):
            yield row | ({"times the first": times[OURS].median / flat.median} if row["name"] == OURS else {})


SECTIONS: dict[str, Callable[[int, int], Iterator[Row]]] = {
    "training": training,
    "dropout": dropout,
    "decoding": decoding,
}


def _training(repeats: int, layers: int, attention_dropout: float) -> Iterator[Row]:
    stock = _model(layers, attention_dropout)
    _check_equal(stock)
    ours = copy.deepcopy(stock)
    lf.patch(ours, lf.Window.causal(WINDOW))
    tokens = _tokens(LENGTH)
    runs = {OURS: _training_step(ours, tokens), STOCK: _training_step(stock, tokens)}
    yield from record.compared("training step", interleaved(runs, repeats, warmup=1), OURS)
    stock.decoder._future_mask = torch.empty(0)  # that of the timed steps; fairseq keeps it from its first on
    yield from record.peaks("training step", runs, STOCK)


def _model(layers: int, attention_dropout: float) -> Any:
    """Pre-norm, 8 heads, 512 wide, as fairseq builds `transformer_lm` with these sizes."""
    torch.manual_seed(0)
    args = Namespace(
        decoder_layers=layers,
        decoder_embed_dim=WIDTH,
        decoder_ffn_embed_dim=4 * WIDTH,
        decoder_attention_heads=8,
        dropout=0.0,
        attention_dropout=attention_dropout,
        share_decoder_input_output_embed=True,
        max_target_positions=2 * LENGTH,
    )
    base_lm_architecture(args)
    words = _dictionary()
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    return TransformerLanguageModel.build_model(args, task)


def _dictionary() -> Any:
    words = Dictionary()
    for symbol in SYMBOLS:
        words.add_symbol(symbol)
    return words


def _tokens(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(4, 4 + len(SYMBOLS), (1, length + 1), generator=generator)


def _training_step(model: nn.Module, tokens: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        model.zero_grad()
        out = model(tokens[:, :-1])[0]
        loss = nn.functional.cross_entropy(out[0], tokens[0, 1:])
        loss.backward()
        return loss.detach()

    return run


def _check_equal(stock: nn.Module) -> None:
    """Stop unless a window over all of a text gives what stock gives."""
    tokens, training = _tokens(512)[:, :-1], stock.training
    stock.train(False)
    with torch.no_grad():
        wanted = stock(tokens)[0]
        with lf.patch(stock, lf.Window.causal(512)):
            got = stock(tokens)[0]
    stock.train(training)
    difference = (got - wanted).abs().max().item() / wanted.abs().max().item()
    if not difference < 1e-3:
        raise SystemExit(f"differs by {difference:.2g} of the largest value; no time is measured")


def _step(model: Any, context: int) -> Callable[[], Tensor]:
    """The next character after a context, again and again: keys of random numbers, kept by the model."""
    tokens = _tokens(context)
    generator = torch.Generator().manual_seed(0)
    filled: dict[str, Any] = {}
    with torch.no_grad():
        for layer in model.decoder.layers:
            x = torch.randn(context, 1, WIDTH, generator=generator)
            layer.self_attn(x, x, x, incremental_state=filled, need_weights=False)

    def run() -> Tensor:
        with torch.no_grad():
            state = {name: dict(kept) if isinstance(kept, dict) else kept for name, kept in filled.items()}
            return model.decoder(tokens, incremental_state=state)[0]

    return run


if __name__ == "__main__":
    main()
