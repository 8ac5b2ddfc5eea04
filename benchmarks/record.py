"""Where a figure comes from: machine, versions and commit, kept with the raw results as JSON."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lf_backend

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Processor, threads, versions, commit."""
    packages = ("torch", "transformers", "triton", "xformers")
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "lf_backend": lf_backend.__version__,
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "packages": {name: version for name in packages if (version := _version(name))},
    }


def save(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows and environment to results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n", "utf8")
    return path


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()
