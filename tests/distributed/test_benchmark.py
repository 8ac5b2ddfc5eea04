"""The benchmark's commands, at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def run(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_measured(tmp_path: Path) -> None:
    run(*TORCHRUN, "-m", "benchmarks.parallel", "--toy", "--repeats", "1", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "parallel-2-ranks-cpu.json").read_text())["rows"]
    assert {row["section"] for row in rows} == {"correct", "weak", "tokens", "strong", "peers"}
    assert all("backward" in row["not run"] for row in rows if row["section"] == "peers")  # none on a CPU
    assert all(row["error"] < 1e-4 for row in rows if row["section"] == "correct")


def test_on_paper(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("-m", "benchmarks.parallel", "--model", "--out", str(tmp_path), "--link", "25")
    given, *rows = json.loads((tmp_path / "parallel-model.json").read_text())["rows"]
    assert given["GB/s"] == 25 and "a model" in (tmp_path / "parallel-model.svg").read_text()
    near = {row["ranks"]: row for row in rows if row["N"] == 10_000_000 and row["name"] == "neighbours"}
    assert near[1]["of kernels"] == 1 and near[1024]["ms"] < near[1]["ms"] / 500
