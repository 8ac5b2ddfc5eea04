"""The table of figures on a CPU: `python -m benchmarks.cpu`.

Longformer-base's attention (N 4,096, W 512, 12 heads x 64, one example) against Hugging Face's layer
and what else runs a window on a CPU. All functions of a section run in turn in one process, and no time
is printed before the result is found equal. Useful FLOPs count visible pairs only: 4 D forward, 10 D
backward, per pair and head; their share is of the rate of a large float32 matrix product.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import lf_backend as lf
from benchmarks import peers, record
from benchmarks.record import Row
from lf_backend.backend import Call
from lf_backend.dispatch import registry
from lf_backend.measure import Timing, interleaved, peak_bytes, resident_bytes
from lf_backend.pattern.block_map import block_map

LENGTH, WINDOW, HEADS, HEAD_DIM = 4096, 512, 12, 64
BASE = lf.conventions.huggingface(WINDOW)
MATRIX = 2048
QUICK = {
    "LENGTH": 512, "WINDOW": 64, "HEADS": 2, "HEAD_DIM": 16, "MATRIX": 64, "LONG": 1024,
    "BASE": lf.conventions.huggingface(64),
}  # fmt: skip
LONG = 65536


def main() -> None:
    options = record.parsed(record.parser(__doc__, SECTIONS, repeats=9), globals(), QUICK)
    record.report(options, SECTIONS, lambda section: section(options.repeats))


def attention(repeats: int) -> Iterator[Row]:
    """The attention alone, without projections, float32."""
    names = {"lf_backend": _ours(BASE), "Hugging Face": peers.longformer_attention(WINDOW, HEADS, HEAD_DIM)}
    others = {"blocked SDPA": peers.blocked_sdpa(BASE, LENGTH), **_flex()}
    forward = {name: _forward(run) for name, run in {**names, **others}.items()}
    _check_equal(forward)
    forward["dense SDPA (no window)"] = _forward(peers.dense(BASE, LENGTH))
    forward["matrix product"] = _product()
    yield from _rows("forward", interleaved(forward, repeats), _flops(4))
    both = {name: _both(run) for name, run in names.items()}
    _check_equal(both)
    yield from _rows(
        "forward + backward", interleaved({**both, "matrix product": _product()}, repeats), _flops(14)
    )


def backends(repeats: int) -> Iterator[Row]:
    """Time every registered backend that can run the work; the chosen one is called lf_backend."""
    for word, kind in (("forward", _forward), ("forward + backward", _both)):
        runs = {name: kind(run) for name, run in _backends().items()}
        _check_equal(runs)
        yield from _rows(word, interleaved(runs, min(repeats, 3), warmup=1), None)


def variants(repeats: int) -> Iterator[Row]:
    """Time each feature beside the plain window; figures are ratios to its time."""
    patterns = {
        "plain": BASE,
        "16 global tokens": BASE | lf.Global(*range(16)),
        "dilation 2": lf.Window(BASE.left, BASE.right, dilation=2),
        "causal": BASE & lf.Causal(),
    }
    for word, kind in (("forward", _forward), ("forward + backward", _both)):
        runs = {name: kind(_ours(pattern)) for name, pattern in patterns.items()}
        runs["bfloat16"] = kind(_ours(BASE), torch.bfloat16)
        times = interleaved(runs, repeats)
        for name, time in times.items():
            yield {
                "work": word,
                "name": name,
                **record.timed(time),
                "time / plain": time.median / times["plain"].median,
            }


def module(repeats: int) -> Iterator[Row]:
    """The attention module with its projections: Hugging Face's, stock and patched."""
    stock, patched = (peers.longformer_layer(WINDOW, HEADS, HEAD_DIM) for _ in range(2))
    lf.patch(patched)
    hidden = torch.randn(1, LENGTH, HEADS * HEAD_DIM)
    arguments = peers.layer_arguments(1, LENGTH)

    def forward(layer: torch.nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad():
                return layer(hidden, **arguments)[0]

        return run

    def both(layer: torch.nn.Module) -> Callable[[], Tensor]:
        leaf = hidden.clone().requires_grad_()

        def run() -> Tensor:
            layer.zero_grad()
            leaf.grad = None
            layer(leaf, **arguments)[0].sum().backward()
            assert leaf.grad is not None, "backward has run"
            return leaf.grad

        return run

    for word, kind in (("forward", forward), ("forward + backward", both)):
        runs = {"lf_backend": kind(patched), "Hugging Face": kind(stock)}
        _check_equal(runs)
        yield from _rows(word, interleaved(runs, repeats), None)


def short(repeats: int) -> Iterator[Row]:
    """A whole model of window 512 on short inputs: upstream pads them to 512."""
    from transformers import LongformerConfig, LongformerModel

    torch.manual_seed(0)
    config = LongformerConfig(
        attention_window=[WINDOW] * 2, num_hidden_layers=2, max_position_embeddings=LENGTH + 2
    )
    model = LongformerModel(config)
    model.train(False)
    for length in (8, 64, 512):
        ids = torch.randint(10, 1000, (1, length))

        def run(ids: Tensor = ids) -> Tensor:
            with torch.no_grad():
                return model(ids).last_hidden_state

        stock = run()
        times = {"Hugging Face": interleaved({"run": run}, repeats)["run"]}
        with lf.patch(model):
            _close("short", run(), stock)
            times["lf_backend"] = interleaved({"run": run}, repeats)["run"]
        yield from _rows(f"2 layers, N {length}", times, None)


def memory(repeats: int) -> Iterator[Row]:
    """Peak of forward + backward over the bytes of q, k, v, out and their gradients.

    Of what PyTorch allocates, and of the process, with what the library keeps for its sums.
    """
    sizes = {name: globals()[name] for name in QUICK}  # which another process would not know
    for name, length in (
        ("window", LONG // 4),
        ("window", LONG),
        ("BigBird", LONG // 4),
        ("BigBird", LONG // 2),
    ):
        run, unit = _memory_run(name, length)
        before, every = 3 * unit, 8 * unit  # q, k, v; and with them the output and the gradients
        peak = peak_bytes(run) + before
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            process = fresh.submit(_memory_of_process, sizes, name, length).result()
        yield {
            "work": f"{name}, forward + backward, N {length:,}",
            "name": "lf_backend",
            "peak MiB": peak / 2**20,
            "peak / (q, k, v, out, gradients)": peak / every,
            "of the process": None if process is None else (process + before) / every,
        }


def _memory_run(name: str, length: int) -> tuple[Callable[[], Any], int]:
    """Forward and backward, and the bytes of its query."""
    inputs = _inputs(torch.float32, True, length)
    pattern = BASE if name == "window" else lf.sparsity.big_bird(LONG)

    def run() -> Any:
        out = lf.attention(inputs[0], inputs[1], inputs[2], pattern)
        return out, torch.autograd.grad(out, inputs, out.detach())

    return run, inputs[0].numel() * 4


def _memory_of_process(sizes: dict[str, Any], name: str, length: int) -> int | None:
    """In a process that has held nothing before, but what a small call leaves."""
    globals().update(sizes)
    _memory_run(name, 256)[0]()
    return resident_bytes(_memory_run(name, length)[0])


def sparse(repeats: int) -> Iterator[Row]:
    """Predicates against SDPA under the same dense mask: BigBird, and 64 packed documents."""
    for name, pattern in (("BigBird", lf.sparsity.big_bird(LENGTH)), ("documents", _packed(64, LENGTH))):
        mask = pattern.mask(LENGTH)[None]
        works = {"lf_backend": _ours(pattern), "SDPA, dense mask": peers.masked(mask)}
        for word, kind in (("forward", _forward), ("forward + backward", _both)):
            runs = {peer: kind(run) for peer, run in works.items()}
            _check_equal(runs)
            yield from _rows(f"{name}, {word}", interleaved(runs, repeats), None)


def decode(repeats: int) -> Iterator[Row]:
    """One query beside a window of 1,024 of 4,096 keys, against PyTorch's fused attention on those keys."""
    window = LENGTH // 4
    q, k, v = (torch.randn(1, HEADS, length, HEAD_DIM) for length in (1, LENGTH, LENGTH))
    near_k, near_v = k[:, :, -window:], v[:, :, -window:]
    pattern = lf.Window.causal(window)
    runs: dict[str, Callable[[], Tensor]] = {
        "lf_backend": lambda: lf.attention(q, k, v, pattern),
        "fused attention": lambda: torch.nn.functional.scaled_dot_product_attention(q, near_k, near_v),
    }
    with torch.no_grad():
        _check_equal(runs)
        yield from _rows("one query", interleaved(runs, 100 * repeats), None)


def overhead(repeats: int) -> Iterator[Row]:
    """What a small call costs besides its backend: 2 heads x 8 tokens x 64, float32."""
    q, k, v = torch.randn(3, 1, 2, 8, 64)
    pattern, leaf = lf.Window(4, 4), q.clone().requires_grad_()
    padding = torch.zeros(1, 8, dtype=torch.bool)
    call = Call(q, k, v, pattern.lowered, None, None, None, 64**-0.5, None, 0.0, None)
    backend = registry.get(lf.explain(q, k, v, pattern).chosen or "")
    runs: dict[str, Callable[[], object]] = {
        "backend alone": lambda: backend.forward(call),
        "lf_backend": lambda: lf.attention(q, k, v, pattern),
        "lf_backend, key_padding": lambda: lf.attention(q, k, v, pattern, key_padding=padding),
        "lf_backend, forward of a gradient": lambda: lf.attention(leaf, k, v, pattern),
        "dense SDPA (no window)": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
    }
    yield from _rows("one call", interleaved(runs, 500 * repeats), None)


def maps(repeats: int) -> Iterator[Row]:
    """A block map from bounds against one forward of the same pattern, N 65,536."""
    length = LONG
    q, k, v = _inputs(torch.float32, False, length)
    patterns = {
        "BigBird": lf.sparsity.big_bird(length),
        "blocks of 256": lf.sparsity.block_local(256, reach=1),
        "512 documents": _packed(512, length),
        "256 x 256 pixels": lf.sparsity.neighbourhood(256, 256, reach=7),
    }
    for name, pattern in patterns.items():

        def make(pattern: lf.Pattern = pattern) -> object:
            unkept = block_map.__wrapped__  # type: ignore[attr-defined]
            found: object = unkept(pattern.lowered.others, 0, length, length, rows=64)
            return found

        def run(pattern: lf.Pattern = pattern) -> Tensor:
            return lf.attention(q, k, v, pattern)

        times = interleaved({"map": make, "forward": run}, min(repeats, 3), warmup=1)
        share = times["map"].median / times["forward"].median
        yield {"work": name, "name": "map", **record.timed(times["map"]), "time / forward": share}


SECTIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    "attention": attention,
    "variants": variants,
    "module": module,
    "short": short,
    "memory": memory,
    "sparse": sparse,
    "decode": decode,
    "overhead": overhead,
    "maps": maps,
    "backends": backends,
}


def _inputs(dtype: torch.dtype, grad: bool, length: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, length or LENGTH, HEADS, HEAD_DIM)
    drawn = [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]
    return [x.transpose(1, 2).requires_grad_(grad) for x in drawn]


def _packed(count: int, length: int) -> lf.Pattern:
    """Documents of random lengths."""
    ends = random.Random(0).sample(range(1, length), count - 1)
    return lf.sparsity.documents([0, *sorted(ends), length])


def _ours(pattern: lf.Pattern, backend: str | None = None) -> peers.Attention:
    return lambda q, k, v: lf.attention(q, k, v, pattern, backend=backend)


def _backends() -> dict[str, peers.Attention]:
    """Every backend that can run the work, the one that is chosen first and called "lf_backend"."""
    q, k, v = _inputs(torch.float32, True)
    selection = lf.explain(q, k, v, BASE)
    able = [verdict.backend for verdict in selection.verdicts if not verdict.reasons]
    others = {f"backend {name}": _ours(BASE, name) for name in able if name != selection.chosen}
    return {"lf_backend": _ours(BASE), **others}


def _forward(run: peers.Attention, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    inputs = _inputs(dtype, False)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(*inputs)

    return forward


def _both(run: peers.Attention, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    inputs = _inputs(dtype, True)
    upstream = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def both() -> Tensor:
        return torch.cat(torch.autograd.grad(run(*inputs), inputs, upstream))

    return both


def _product() -> Callable[[], Tensor]:
    a, b = torch.randn(2, MATRIX, MATRIX)
    return lambda: a @ b


def _flops(per_pair: int) -> float:
    return float(per_pair * HEAD_DIM * BASE.pairs(LENGTH, heads=HEADS))


def _flex() -> dict[str, peers.Attention]:
    """Compiled FlexAttention where it compiles; what it says where it does not."""
    try:
        run = peers.flex(BASE, LENGTH)
        _forward(run)()
    except RuntimeError as error:  # torch's compiler, which speaks for a C++ compiler that is missing as well
        Console().print(f"compiled FlexAttention: not measured ({type(error).__name__}: {str(error)[:200]})")
        return {}
    return {"FlexAttention, compiled": run}


def _check_equal(runs: Mapping[str, Callable[[], Tensor]]) -> None:
    wanted = runs["lf_backend"]()
    for name, run in runs.items():
        _close(name, run(), wanted)


def _close(name: str, got: Tensor, wanted: Tensor) -> None:
    difference = (got.float() - wanted.float()).abs().max().item() / wanted.abs().max().item()
    if not difference < 1e-4:
        raise SystemExit(f"{name}: differs by {difference:.2g} of the largest value; no time is measured")


def _rows(work: str, times: Mapping[str, Timing], flops: float | None) -> Iterator[Row]:
    product = times.get("matrix product")
    for name, time in times.items():
        row: Row = {
            "work": work,
            "name": name,
            **record.timed(time),
            "times as long": time.median / times["lf_backend"].median,
        }
        if flops is not None and product is not None and "dense" not in name and name != "matrix product":
            row["share"] = (flops / time.median) / (2 * MATRIX**3 / product.median)
        yield row


if __name__ == "__main__":
    main()
