"""A kernel that fails at its launch is a reason against the backend, and the next one runs the call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

import lf_backend as lf
from lf_backend.backends.triton import Triton, devices
from lf_backend.backends.triton.device import Device
from lf_backend.backends.triton.tuning import Tiles
from lf_backend.dispatch import registry, select

FAILURES = {
    "PassManager::run failed": RuntimeError("PassManager::run failed"),
    "out of resource: shared memory": OutOfResources(300_000, 232_448, "shared memory"),
    "out of memory": RuntimeError("Triton Error [CUDA]: out of memory"),
}
WINDOW = lf.Window(3, 2) | lf.Global(0)


class First(Triton):
    """The backend itself, before all others."""

    name = "first"
    priority = 1000


@dataclass(frozen=True)
class Failing(Device):
    """A device on which one kernel fails, and others are the interpreter's."""

    kernel: str = ""
    error: Exception = field(default_factory=RuntimeError)
    whole: Device = field(default_factory=lambda: devices.of(torch.device("cpu")))

    def launch(self, kernel: Any, grid: tuple[int, int], size: Tiles, **arguments: Any) -> None:
        if kernel.fn.__name__ == self.kernel:
            super().launch(_Broken(kernel.fn, self.error), grid, size, **arguments)
        self.whole.launch(kernel, grid, size, **arguments)


class _Broken:
    """A kernel whose launch raises."""

    def __init__(self, fn: Any, error: Exception) -> None:
        self.fn, self.error = fn, error

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        def launch(**arguments: Any) -> None:
            raise self.error

        return launch


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(select, "_ruled_out", {})
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    registry.register(First)
    yield
    registry.unregister(First.name)


def _device(monkeypatch: pytest.MonkeyPatch, kernel: str, error: Exception) -> None:
    whole = devices.of(torch.device("cpu"))
    failing = Failing(whole.arch, whole.processors, None, kernel, error, whole)
    monkeypatch.setattr(devices, "of", lambda _: failing)


def _tensors() -> list[torch.Tensor]:
    return [torch.randn(1, 2, 100, 16, requires_grad=True) for _ in "qkv"]


@pytest.mark.parametrize("said", FAILURES)
@pytest.mark.parametrize("kernel", ["forward", "combine", "deltas", "grad_queries", "grad_keys", "sum_parts"])
def test_the_next_backend_runs_with_the_answer(
    first: None, monkeypatch: pytest.MonkeyPatch, kernel: str, said: str
) -> None:
    """Whichever kernel it is, of the window or of a global token's row, forward or backward."""
    _device(monkeypatch, kernel, FAILURES[said])
    tensors = _tensors()
    found = lf.attention(*tensors, WINDOW)
    wanted = lf.attention(*tensors, WINDOW, backend="reference")
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(found)
    grads = (torch.autograd.grad(out, tensors, upstream) for out in (found, wanted))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)
    explained = lf.explain(*tensors, WINDOW)
    assert explained.chosen != First.name
    (reasons,) = (verdict.reasons for verdict in explained.verdicts if verdict.backend == First.name)
    assert len(reasons) == 1 and said in reasons[0] and reasons[0].startswith(f"{kernel} with Tiles(")


def test_asked_for_by_name_it_is_an_error(first: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _device(monkeypatch, "forward", FAILURES["PassManager::run failed"])
    with pytest.raises(lf.UnsupportedError, match=r"'first' cannot run this call[\s\S]*PassManager::run"):
        lf.attention(*_tensors(), WINDOW, backend=First.name)


def test_what_befell_the_device_is_raised(first: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _device(monkeypatch, "forward", RuntimeError("Triton Error [CUDA]: an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        lf.attention(*_tensors(), WINDOW)
    assert lf.explain(*_tensors(), WINDOW).chosen == First.name
