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
from lf_backend.dispatch.registry import Broken, backends, priority, working
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
    """Backends in the order of preference: where they run, and what."""
    table = Table(show_header=False, title="backends, the preferred first")
    table.add_column(min_width=max(map(len, entries)))
    table.add_column()
    for name, backend in entries.items():
        able = backend.capabilities
        where = (
            ", ".join(sorted(able.devices)) if able.devices else "any device",
            "any dtype" if able.dtypes == FLOATS else ", ".join(sorted(able.dtypes)),
            f"head_dim to {able.max_head_dim}" if able.max_head_dim else "any head_dim",
            f"with {', '.join(able.packages)}" if able.packages else "",
            f"priority {priority(backend)}",
        )
        table.add_row(name, "; ".join(filter(None, where)) + "\n" + _runs(able.features), end_section=True)
    return table


def _runs(features: frozenset[Feature]) -> str:
    """Features, or those that are missing if these are fewer."""
    missing = [feature.value for feature in Feature if feature not in features]
    if 2 * len(missing) <= len(Feature):
        return f"all but {', '.join(missing)}" if missing else "everything"
    return ", ".join(feature.value for feature in Feature if feature in features)
