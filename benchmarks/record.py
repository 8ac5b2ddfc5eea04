"""Figures as JSON, with the machine, versions and commit they come from, and as tables."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import lf_backend

Row = dict[str, Any]
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


def save(name: str, rows: list[Row], folder: Path = RESULTS) -> Path:
    """Write rows and environment to FOLDER/NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n", "utf8")
    return path


def table(title: str, rows: list[Row]) -> Table:
    """Rows as people read them."""
    found = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        found.add_column(column, justify="left" if column in ("work", "name") else "right")
    for row in rows:
        found.add_row(
            *(f"{row[c]:.2f}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns)
        )
    return found


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
