"""Calls that ranks cannot run, and what is said of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import lf_backend as lf
import lf_backend.distributed

Q = torch.randn(1, 2, 4000, 8)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "pattern, options",
    [
        (lf.Window(None, 0), {}),
        (lf.Predicate(lambda head, query, key: key == query), {}),
        (lf.Window(2, 2) | (lf.Global(0) & lf.Causal()), {}),
    ],
)
def test_a_call_that_needs_all_keys_is_refused(mesh: DeviceMesh, pattern: lf.Pattern, options: Any) -> None:
    with pytest.raises(lf.UnsupportedError):
        lf.distributed.attention(Q, Q, Q, pattern, mesh=mesh, **options)
    assert lf.distributed.explain(Q, Q, Q, pattern, mesh=mesh, **options).reasons


def test_without_a_process_group() -> None:
    with pytest.raises(lf.LFError, match="torchrun"):
        lf.distributed.attention(Q, Q, Q, lf.Window(2, 2), mesh=None)


def test_one_rank_sends_nothing(mesh: DeviceMesh) -> None:
    found = lf.distributed.explain(Q, Q, Q, lf.Window(2, 2), mesh=mesh)
    assert found.sizes == (4000,) and found.forward_sent == found.forward_received == (0,)
    assert "4000 positions on 1 ranks" in str(found)


def test_import_does_not_load_it() -> None:
    code = "import sys, lf_backend; assert 'lf_backend.distributed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
