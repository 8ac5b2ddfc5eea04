"""Whole models of transformers, stock and through lf_backend: `python -m benchmarks.huggingface`.

Seeded weights in the shapes of published models, with fewer layers, which are all alike. What is compared
runs in turn in one process, on results found equal first; report ratios.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import lf_backend as lf
import lf_huggingface
from benchmarks import record
from benchmarks.record import Row
from lf_backend.measure import interleaved

OURS, STOCK = "lf_backend", "Hugging Face"
LENGTH, WIDTH, HEADS, INNER = 4096, 768, 12, 3072  # of the encoders, in their base sizes
HALF = 256  # window on each side
CACHED, CACHED_WIDTH, CACHED_HEADS, CONTEXT = 1024, 1024, 16, 32768  # of the decoder
QUICK = {
    "LENGTH": 1024, "WIDTH": 48, "HEADS": 4, "INNER": 64, "HALF": 32, "CACHED": 64, "CACHED_WIDTH": 64,
    "CACHED_HEADS": 4, "CONTEXT": 256,
}  # fmt: skip


def main() -> None:
    record.by_layers(globals(), SECTIONS, layers=3)


def longformer(repeats: int, layers: int) -> Iterator[Row]:
    """Longformer-base's shape, N 4,096, window 512, one global token, float32."""
    config = transformers.LongformerConfig(
        attention_window=[2 * HALF] * layers,
        num_hidden_layers=layers,
        max_position_embeddings=LENGTH + 2,
        **_base(),
    )
    stock = _seeded(transformers.LongformerModel, config)
    patched = copy.deepcopy(stock)
    lf.patch(patched)
    batch = _batch(LENGTH, is_global=True)
    forward = {OURS: _forward(patched, batch), STOCK: _forward(stock, batch)}
    alone = {"without attention": _forward(_without_attention(stock), batch)}
    yield from _compared("forward", forward, repeats, alone)
    runs = {OURS: _step(patched, batch), STOCK: _step(stock, batch)}
    yield from _compared("training step", runs, repeats)
    yield from record.peaks("training step", runs, STOCK)


def led(repeats: int, layers: int) -> Iterator[Row]:
    """LED-base's encoder, N 16,384, window 1,024, forward, float32."""
    config = transformers.LEDConfig(
        attention_window=[4 * HALF] * layers,
        encoder_layers=layers,
        decoder_layers=1,
        d_model=WIDTH,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=INNER,
        decoder_ffn_dim=INNER,
    )
    stock = _seeded(transformers.LEDModel, config).encoder
    patched = copy.deepcopy(stock)
    lf.patch(patched)
    batch = _batch(4 * LENGTH, is_global=True)
    runs = {OURS: _forward(patched, batch), STOCK: _forward(stock, batch)}
    yield from _compared("forward", runs, repeats)
    yield from record.peaks("forward", runs, STOCK)


def encoders(repeats: int, layers: int) -> Iterator[Row]:
    """BigBird-base, N 4,096; the encoders of LongT5-base (local) and PegasusX-base, N 8,192; float32."""
    shape: dict[str, Any] = {"encoder_layers": layers, "decoder_layers": 1}
    models = {
        "BigBird": _seeded(
            transformers.BigBirdModel, transformers.BigBirdConfig(num_hidden_layers=layers, **_base())
        ),
        "LongT5": _seeded(
            transformers.LongT5EncoderModel,
            transformers.LongT5Config(
                d_model=WIDTH,
                d_ff=INNER * 2 // 3,
                d_kv=WIDTH // HEADS,
                num_heads=HEADS,
                num_layers=layers,
                feed_forward_proj="gated-gelu",
            ),
        ),
        "PegasusX": _seeded(
            transformers.PegasusXModel,
            transformers.PegasusXConfig(
                d_model=WIDTH,
                encoder_ffn_dim=INNER,
                encoder_attention_heads=HEADS,
                decoder_attention_heads=HEADS,
                num_global_tokens=128,
                **shape,
            ),
        ).encoder,
    }
    for name, stock in models.items():
        patched = copy.deepcopy(stock)
        lf.patch(patched)
        batch = _batch(LENGTH if name == "BigBird" else 2 * LENGTH, is_global=False)
        yield from _compared(
            f"{name}, forward", {OURS: _forward(patched, batch), STOCK: _forward(stock, batch)}, repeats
        )
        runs = {OURS: _step(patched, batch), STOCK: _step(stock, batch)}
        yield from _compared(f"{name}, training step", runs, repeats)
        yield from record.peaks(f"{name}, training step", runs, STOCK)


def modernbert(repeats: int, layers: int) -> Iterator[Row]:
    """ModernBERT-base's shape, N 8,192, every third layer full, forward, against its SDPA, float32."""
    config = transformers.ModernBertConfig(
        num_hidden_layers=layers,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=3 * INNER // 8,
    )
    stock = _seeded(transformers.ModernBertModel, config, "sdpa")
    ours = copy.deepcopy(stock)
    ours.set_attn_implementation("lf")
    batch = _batch(2 * LENGTH, is_global=False)
    yield from _compared("forward", {OURS: _forward(ours, batch), STOCK: _forward(stock, batch)}, repeats)


def decoding(repeats: int, layers: int) -> Iterator[Row]:
    """One token, window 1,024 and 4 sinks: WindowCache against SDPA on a cache of everything."""
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=CACHED_WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=CACHED_HEADS,
        num_key_value_heads=CACHED_HEADS,
        max_position_embeddings=2 * CONTEXT,
    )
    config.lf_attention = f"window({CACHED - 1}, 0) | global(0, 1, 2, 3)"
    stock = _seeded(transformers.LlamaModel, config, "sdpa")
    ours = copy.deepcopy(stock)
    ours.set_attn_implementation("lf")
    for context in (CACHED, CONTEXT):
        caches = {
            OURS: _filled(lf_huggingface.WindowCache(ours.config), context),
            STOCK: _filled(transformers.DynamicCache(), context),
        }
        runs = {OURS: _token(ours, caches[OURS]), STOCK: _token(stock, caches[STOCK])}
        times = interleaved(runs, 20 * repeats)
        yield from record.compared(f"context {context:,}", times, OURS)
        for name, cache in caches.items():
            kept = cache.layers[0].keys.untyped_storage().nbytes() / 2**20
            yield {"work": f"context {context:,}", "name": name, "keys, MiB": kept}


SECTIONS: dict[str, Callable[[int, int], Iterator[Row]]] = {
    "longformer": longformer,
    "led": led,
    "encoders": encoders,
    "modernbert": modernbert,
    "decoding": decoding,
}


def _base() -> dict[str, Any]:
    """The shape of an encoder, as most configurations call it."""
    return {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": INNER}


def _seeded(kind: Any, config: Any, attention: str = "eager") -> Any:
    torch.manual_seed(0)
    return kind._from_config(config, attn_implementation=attention).train(False)


def _batch(length: int, is_global: bool) -> dict[str, Tensor]:
    ids = torch.randint(10, 1000, (1, length), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if is_global:
        batch["global_attention_mask"] = torch.zeros_like(ids).index_fill_(1, torch.tensor([0]), 1)
    return batch


def _forward(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return model(**batch)[0]

    return run


def _step(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        model.zero_grad()
        out: Tensor = model(**batch)[0]
        out.square().mean().backward()
        return torch.cat([x.grad.flatten() for x in model.parameters() if x.grad is not None])

    return run


def _without_attention(stock: nn.Module) -> nn.Module:
    """The model with its projections, and without attention between them."""

    class Passing(type(stock.encoder.layer[0].attention.self)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
            return (self.query(hidden_states) + self.key(hidden_states) + self.value(hidden_states),)

    model = copy.deepcopy(stock)
    lf.patch(model)
    for layer in model.encoder.layer:  # type: ignore[union-attr]
        layer.attention.self.__class__ = Passing
    return model


def _filled(cache: Any, context: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    shape = (1, CACHED_HEADS, context, CACHED_WIDTH // CACHED_HEADS)
    cache.update(*(torch.randn(shape, generator=generator) for _ in range(2)), 0)
    return cache


def _token(model: nn.Module, cache: Any) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return model(torch.tensor([[7]]), past_key_values=cache)[0]

    return run


def _compared(
    work: str,
    runs: Mapping[str, Callable[[], Tensor]],
    repeats: int,
    others: Mapping[str, Callable[[], Tensor]] | None = None,
) -> Iterator[Row]:
    """Times of both, if both give the same, and of others in the same rounds."""
    got, wanted = (run() for run in runs.values())
    difference = (got - wanted).abs().max().item() / wanted.abs().max().item()
    if not difference < 1e-3:
        raise SystemExit(f"{work}: differs by {difference:.2g} of the largest value; no time is measured")
    times = interleaved({**runs, **(others or {})}, repeats, warmup=1)
    yield from record.compared(work, times, OURS)


if __name__ == "__main__":
    main()
