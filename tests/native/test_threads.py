"""The same bits whatever the threads; any thread, and a forked process, may call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.native.calls import LONG, results


@pytest.fixture(autouse=True)
def one_thread_after() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_bits_do_not_depend_on_threads(name: str, dtype: torch.dtype, many_cores: None) -> None:
    alone = results(name, dtype)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for one, other in zip(alone, results(name, dtype), strict=True):
            assert torch.equal(one, other), threads


def test_sixteen_python_threads(many_cores: None) -> None:
    alone = {name: results(name) for name in ("two-sided", "unlimited", "band bias", "grouped heads")}
    torch.set_num_threads(3)
    with ThreadPoolExecutor(16) as pool:
        calls = [(name, pool.submit(results, name)) for name in list(alone) * 8]
        for name, call in calls:
            for one, other in zip(alone[name], call.result(), strict=True):
                assert torch.equal(one, other), name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_calls(many_cores: None) -> None:
    """The child has none of the parent's threads, and must not wait for them."""
    torch.set_num_threads(4)
    out = results("two-sided")[0]  # now the parent has threads
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork; `delta` is computed by them
        from lf_backend.backends.native import arguments

        torch.get_num_threads = lambda: 4  # type: ignore[assignment]
        assert arguments.torch.get_num_threads() == 4
        os._exit(0 if torch.equal(out, results("two-sided")[0]) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("name", "length"),
    [
        (name, length)
        for name, (_, options) in LONG.items()
        for length in (1, 2, 63, 64, 65, 129)
        if not options and (length > 77 or "globals" not in name)  # one of them is at position 77
    ],
)
def test_short_calls_on_many_threads(name: str, length: int, many_cores: None) -> None:
    torch.set_num_threads(8)
    found, wanted = results(name, length=length), results(name, length=length, backend="reference")
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
