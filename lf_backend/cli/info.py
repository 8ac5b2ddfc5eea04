"""A table of what is installed here and what the backends can do, read from the registry."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch
from rich.console import Console
from rich.table import Table

import lf_backend
from lf_backend.backend import FLOATS, Backend
from lf_backend.dispatch.registry import Broken, backends, working
from lf_backend.patching.apply import adapters
from lf_backend.problem import OPTIONAL_PACKAGES, Feature, Machine


def show(console: Console) -> None:
    """Print versions, devices, the table of backends, and what could not be loaded."""
    console.print(_machine())
    console.print(_backends({n: entry for n, entry in backends().items() if isinstance(entry, Backend)}))
    for backend in working().values():
        if details := backend.details():
            console.print(f"{backend.name}: {details}", highlight=False, markup=False)
    found = adapters()
    loaded = [name for name, adapter in found.items() if not isinstance(adapter, Broken)]
    console.print(f"integrations: {', '.join(loaded) or 'none installed'}", highlight=False)
    for kind, entries in (("backend", backends()), ("integration", found)):
        for name, entry in entries.items():
            if isinstance(entry, Broken):
                text = f"{kind} {name} could not be loaded: {entry.error}"
                console.print(text, style="red", highlight=False, markup=False)


def _machine() -> Table:
    table = Table(show_header=False, box=None)
    here = Machine.of(torch.device("cpu"))
    cuda = [Machine.of(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    names = (*OPTIONAL_PACKAGES, "matplotlib")
    packages = [f"{name} {here.version(name) or _version(name)}" for name in names]
    for name, value in (
        ("lf-backend", lf_backend.__version__),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("devices", ", ".join(["cpu", *map(str, cuda)])),
        ("optional", ", ".join(packages)),
        ("LF_BACKEND", os.environ.get("LF_BACKEND") or "not set: the best backend for each call"),
    ):
        table.add_row(name, value)
    return table


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _backends(entries: dict[str, Backend]) -> Table:
    """One column per backend in the order of preference, one row per capability."""
    table = Table(title="backends, the preferred first")
    table.add_column("")
    for name in entries:
        table.add_column(name, justify="center")
    able = [backend.capabilities for backend in entries.values()]
    table.add_row("devices", *(", ".join(sorted(c.devices)) if c.devices else "any" for c in able))
    table.add_row("dtypes", *("all" if c.dtypes == FLOATS else ", ".join(sorted(c.dtypes)) for c in able))
    table.add_row("largest head_dim", *(str(c.max_head_dim or "any") for c in able))
    table.add_row("packages", *(", ".join(c.packages) or "-" for c in able), end_section=True)
    for feature in Feature:
        table.add_row(feature.value, *("yes" if feature in c.features else "-" for c in able))
    return table
