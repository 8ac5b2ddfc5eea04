"""A kernel that cannot be built is a reason against the backend, not a crash."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

from lf_backend.backends.triton.device import Device
from lf_backend.backends.triton.tuning import Tiles
from lf_backend.errors import BuildError


class TooLarge:
    """A kernel that asks for more shared memory than there is."""

    fn = SimpleNamespace(__name__="forward")

    def __getitem__(self, grid: tuple[int, int]) -> Any:
        def launch(**arguments: Any) -> None:
            raise OutOfResources(300_000, 232_448, "shared memory")

        return launch


def test_too_large_a_tile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    wanted = r"forward with Tiles\(rows=128.*shared memory, Required: 300000, Hardware limit: 232448"
    with pytest.raises(BuildError, match=wanted):
        Device(90, 132, 0).launch(TooLarge(), (1, 1), Tiles(128, 128, 8, 4))
