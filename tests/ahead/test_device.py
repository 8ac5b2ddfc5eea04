"""A kernel that cannot be built is a reason against the backend, not a crash."""

from __future__ import annotations

from contextlib import nullcontext
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

from lf_backend.backends.triton import devices
from lf_backend.backends.triton.device import Device
from lf_backend.backends.triton.tuning import Tiles
from lf_backend.errors import BuildError


class Failing:
    """A kernel whose launch fails."""

    fn = SimpleNamespace(__name__="forward")

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        def launch(**arguments: Any) -> None:
            raise self.error

        return launch


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (
            OutOfResources(300_000, 232_448, "shared memory"),
            "shared memory, Required: 300000, Hardware limit",
        ),
        (PTXASError("Value 'sm_999' is not defined for option 'gpu-name'"), "sm_999"),
        (RuntimeError("PassManager::run failed"), "PassManager::run failed"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "out of memory"),
        (RuntimeError("Triton Error [HIP]:  Code: 209, no kernel image"), "Code: 209"),
        (CalledProcessError(1, ["gcc", "main.c"]), "gcc"),
        (PermissionError(13, "Permission denied", "/home/.triton/cache"), "/home/.triton/cache"),
        (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), "image is invalid"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_cannot_be_built_is_named(error: Exception, wanted: str) -> None:
    with pytest.raises(BuildError, match=rf"forward with Tiles\(rows=128.*{wanted}"):
        Device(90, 132, 0).launch(Failing(error), (1, 1), Tiles(128, 128, 8, 4))


def test_what_befell_the_device_is_not_hidden() -> None:
    """It may be an earlier kernel's, and another backend would fail as well."""
    error = RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access") as caught:
        Device(90, 132, 0).launch(Failing(error), (1, 1), Tiles(128, 128, 8, 4))
    assert caught.value is error


@pytest.mark.parametrize(
    "error", [RuntimeError("Failed to find C compiler"), CalledProcessError(1, ["gcc", "cuda_utils.c"])]
)
def test_a_device_that_triton_cannot_drive(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Its driver is built when it is first asked for."""

    class Driver:
        @property
        def active(self) -> Any:
            raise error

    monkeypatch.setattr(triton.runtime, "driver", Driver())
    with pytest.raises(BuildError, match=r"triton cannot drive the device: .*(C compiler|gcc)"):
        devices._device.__wrapped__("cuda", 0)
