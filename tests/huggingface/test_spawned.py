"""A configured model in a worker that is spawned: docs/huggingface.md says what it imports."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.huggingface import families

_WORKER = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    model, ids, wanted = pickle.load(file)
assert (model(ids)[0] == wanted).all()
"""


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """Write a model, its input and its answer."""
    model = families.build("BERT", lf_attention="window(4, 4)").eval()
    ids = torch.randint(5, families.VOCABULARY, (1, 12))
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((model, ids, model(ids)[0].detach())))
    return path


def _work(script: str, pickled: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, str(pickled)], capture_output=True, text=True)


def test_a_worker_that_imports_the_integration(pickled: Path) -> None:
    done = _work("import lf_huggingface" + _WORKER, pickled)
    assert done.returncode == 0, done.stderr


def test_a_worker_that_does_not_is_told_the_name(pickled: Path) -> None:
    done = _work(_WORKER, pickled)
    assert done.returncode != 0
    assert "KeyError: '`lf` is not a valid attention implementation" in done.stderr
