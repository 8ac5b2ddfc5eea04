"""What only a GPU can show. The conformance kit runs there as well, on its own."""

from __future__ import annotations

import pytest
import torch

import lf_backend as lf

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA device wanted, found none")

PATTERN = lf.Window(40, 40) | lf.Global(0)


def inputs(device: str, length: int = 300, grad: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = (2, 4, length, 64)
    made = [torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) for _ in "qkv"]
    return [x.requires_grad_(grad) for x in made]


def test_the_kernels_are_chosen() -> None:
    assert lf.explain(*inputs("cuda"), PATTERN).chosen == "triton"


def test_graphs_capture_and_replay() -> None:
    q, k, v = inputs("cuda")
    with torch.no_grad():
        wanted = lf.attention(q, k, v, PATTERN)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            lf.attention(q, k, v, PATTERN)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = lf.attention(q, k, v, PATTERN)
        v.mul_(2)
        graph.replay()
    assert torch.equal(out, wanted * 2)


def test_compiles_whole_and_once() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: lf.attention(q, k, v, PATTERN), fullgraph=True, dynamic=True)
    for length in (300, 511):
        given = inputs("cuda", length)
        assert torch.equal(compiled(*given), lf.attention(*given, PATTERN))


def test_streams_do_not_disturb_each_other() -> None:
    q, k, v = inputs("cuda", 2048)
    wanted = lf.attention(q, k, v, PATTERN)
    found, streams = [], [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    for stream in streams:
        with torch.cuda.stream(stream):
            found.append(lf.attention(q, k, v, PATTERN))
    torch.cuda.synchronize()
    assert all(torch.equal(out, wanted) for out in found)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two CUDA devices wanted")
def test_tensors_decide_the_device() -> None:
    given = inputs("cuda:1")
    out = lf.attention(*given, PATTERN)
    assert out.device == given[0].device
    assert torch.equal(out.cpu(), lf.attention(*(x.to("cuda:0") for x in given), PATTERN).cpu())


def test_tensors_of_more_than_2_31_elements() -> None:
    """The last head and example equal the same alone."""
    shape = (9, 8, 1 << 19, 64)
    q = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        whole = lf.attention(q, q, q, PATTERN)[-1:, -1:]
        alone = lf.attention(q[-1:, -1:], q[-1:, -1:], q[-1:, -1:], PATTERN)
    assert torch.equal(whole, alone)


def test_backward_is_deterministic() -> None:
    given = inputs("cuda", 5000, grad=True)
    runs = [torch.autograd.grad(lf.attention(*given, PATTERN).sum(), given) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
