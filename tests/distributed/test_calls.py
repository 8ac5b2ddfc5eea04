"""What crosses is what `explain` says; ranks that disagree or leave end in an error; ways to call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lf_backend as lf
from tests.distributed import calls
from tests.distributed.ranks import Ranks


@pytest.mark.parametrize("pattern", ["window(5, 3, dilation=2)", "window(9, 0) | global(0, 100)", None])
@pytest.mark.parametrize("documents", [False, True])
def test_bytes_that_cross_are_those_of_explain(ranks: Ranks, pattern: str | None, documents: bool) -> None:
    seen = []
    for length in (207, 399):  # slices that begin within a block, at one place of it
        found = ranks.run(3, calls.counted, length, pattern, documents)
        for sent, forward, backward in found:
            assert sent["c10d::alltoall_base_"] == forward + backward > 0
            assert sent["c10d::allgather_"] <= 2 * (24 + 24 + 8 + 32)  # the words by which ranks agree
        seen.append([sent for sent, *_ in found])
    if pattern is None or "global" not in pattern:  # whose owner changes with the length
        assert seen[0] == seen[1]
    total = [sum(sent["c10d::alltoall_base_"] for sent in each) for each in seen]
    assert total[0] == total[1]


def test_a_window_sends_its_reach(ranks: Ranks) -> None:
    """The rank in the middle: 2 x (left + right) x dilation x Hkv x D x 4 bytes, and a byte for padding."""
    (_, (sent, forward, backward), _) = ranks.run(3, calls.counted, 192, "window(5, 3, dilation=2)", False)
    positions, tensors, width, size = (5 + 3) * 2, 2, 8, 4
    assert backward == positions * tensors * width * size
    assert forward == backward + positions
    assert sent["c10d::alltoall_base_"] == forward + backward


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"heads": 4}, "heads of q 2 on rank 0, 2 on rank 1, 4 on rank 2"),
        ({"kv_heads": 2}, "heads of k 1 on rank 0"),
        ({"dtype": torch.float64}, "dtype torch.float32 on rank 0"),
        ({"pattern": lf.Window(1, 1)}, "pattern .*window.1, 1. on rank 2"),
        ({"options": {"documents": torch.zeros(1, 8, dtype=torch.int64)}}, "options .*documents"),
        ({"options": {"dropout_p": 0.5}}, "dropout_p 0.0 on rank 0"),
        ({"options": {"softcap": -1.0}}, "rank 2 ShapeError: softcap"),
        ({"options": {"key_padding": torch.zeros(2, 8, dtype=torch.bool)}}, "rank 2 ShapeError: key_padding"),
    ],
)
def test_ranks_that_disagree_are_all_told(ranks: Ranks, odd: dict[str, Any], said: str) -> None:
    *others, last = ranks.run(3, calls.different, odd)
    assert isinstance(last, lf.LFError)
    for error in others:
        with pytest.raises(lf.LFError, match=said):
            raise error


@pytest.mark.parametrize("job", [calls.dies, calls.stays_away])
def test_a_rank_that_does_not_come_ends_the_wait(tmp_path: Path, job: Callable[..., Any]) -> None:
    ranks = Ranks(tmp_path / "store", size=3, timeout=timedelta(seconds=10))
    try:
        found = ranks.run(3, job)
    finally:
        ranks.close()
    failed = [each for each in found if isinstance(each, lf.LFError)]
    assert len(failed) == 2 and "mesh: all ranks wanted" in str(failed[0])


def _joined(found: list[Any]) -> list[Tensor]:
    for each in found:
        if isinstance(each, Exception):
            raise each
    return [torch.cat(parts, 2) for parts in zip(*found, strict=True)]


def test_checkpoint_replays_dropout(ranks: Ranks) -> None:
    torch.manual_seed(5)
    out, grads = calls.of_one_process(40, dropout_p=0.2)
    for size in (1, 3):
        found = _joined(ranks.run(size, calls.recomputed))
        torch.testing.assert_close(found, [out, *grads])


def test_autocast(ranks: Ranks) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = calls.of_one_process(40)
    found = _joined(ranks.run(2, calls.halved))
    assert found[0].dtype == torch.bfloat16 and found[1].dtype == torch.float32
    for got, wanted in zip(found, [out, *grads], strict=True):
        assert float((got - wanted).abs().max()) <= 2**-6 * float(wanted.abs().max())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("pattern", [calls.WINDOW, "window(9, 9)", "window(2, 2)"])
def test_a_compiled_function_is_one_graph(ranks: Ranks, backend: str, pattern: Any) -> None:
    found = _joined(ranks.run(2, calls.compiled, backend, pattern, {}))
    q, k, v = given = [x.requires_grad_() for x in calls.whole(40)]
    out, lse = lf.attention(q * 2, k, v, pattern, return_lse=True)
    out = out * 3
    wanted = [out.detach(), lse.detach(), *torch.autograd.grad(out.square().sum() + lse.sum(), given)]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_calls_with_everything(ranks: Ranks, recomputed: bool) -> None:
    found = ranks.run(3, calls.compiled_with_everything, recomputed)
    for each in found:
        if isinstance(each, Exception):
            raise each
    wanted = [x for length in (40, 57, 70) for x in calls.of(calls.everything(length), lf.attention)]
    for got, one in zip(zip(*found, strict=True), wanted, strict=True):
        whole = sum(got) if one.ndim == 1 else torch.cat(got, 2)  # a rank has its share of sinks' gradient
        torch.testing.assert_close(whole, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_dtensors_come_back_as_such(ranks: Ranks, compiled: bool) -> None:
    out, grads = calls.of_one_process(40)
    for each in ranks.run(3, calls.as_dtensors, compiled):  # 14, 13 and 13 positions
        torch.testing.assert_close(each, [out, *grads])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_module_in_the_style_of_parallelize_module(ranks: Ranks, compiled: bool) -> None:
    out, grads = calls.of_one_process(40)
    torch.testing.assert_close(_joined(ranks.run(3, calls.styled, compiled)), [out, *grads])


@pytest.mark.parametrize("documents", [False, True])
def test_bounds_that_reach_too_far(ranks: Ranks, documents: bool) -> None:
    for error in ranks.run(3, calls.far, documents):
        with pytest.raises(lf.UnsupportedError, match="at most half of the row"):
            raise error


def test_a_dtensor_that_is_sharded_otherwise(ranks: Ranks) -> None:
    for error in ranks.run(2, calls.misplaced):
        with pytest.raises(lf.ShapeError, match=r"q: a DTensor with Shard\(2\)"):
            raise error


@pytest.mark.parametrize(
    ("job", "error", "said"),
    [
        (calls.of_one_backend, lf.LFError, "'flash' cannot run this call"),
        (calls.elsewhere, lf.ShapeError, "q: device cpu of the mesh wanted, got meta"),
        (calls.transformed, lf.UnsupportedError, "transforms of torch.func"),
        (calls.compiled_without_a_dimension, lf.LFError, r"q: \[batch, heads, length, head_dim\] wanted"),
    ],
)
def test_all_ranks_are_told(ranks: Ranks, job: Any, error: type[Exception], said: str) -> None:
    for found in ranks.run(3, job):
        with pytest.raises(error, match=said):
            raise found


def test_gradients_are_the_same_every_time(ranks: Ranks) -> None:
    found = _joined(ranks.run(3, calls.twice))
    for first, *others in zip(found[:3], found[3:6], found[6:], strict=True):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("pattern", [calls.WINDOW, "window(5, 3)"])
def test_an_output_that_was_written_to(ranks: Ranks, pattern: Any) -> None:
    for error in ranks.run(1, calls.written_to, pattern):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            raise error
