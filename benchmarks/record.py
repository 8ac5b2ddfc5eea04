"""Figures of sections: as tables, and as JSON with the machine, versions and commit they come from."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import lf_backend
from lf_backend.measure import Function, Timing, peak_bytes

Row = dict[str, Any]
Section = Callable[..., Iterable[Row]]
RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Processor, threads, versions, commit."""
    packages = ("torch", "transformers", "fairseq-fixed", "triton", "xformers")
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


def parser(doc: str | None, sections: Iterable[str], repeats: int) -> argparse.ArgumentParser:
    """Options that all commands with sections share."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--repeats", type=int, default=repeats, help="timed rounds of each section")
    found.add_argument("--threads", type=int, default=torch.get_num_threads())
    found.add_argument("--only", choices=sections, action="append", help="sections, all by default")
    found.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    return found


def report(
    options: argparse.Namespace, sections: Mapping[str, Section], run: Callable[[Section], Iterable[Row]]
) -> None:
    """Run the sections that were asked for; print their tables, and save all rows."""
    torch.set_num_threads(options.threads)
    console, rows = Console(width=120), list[Row]()
    console.print(environment())
    for name in options.only or sections:
        found = list(run(sections[name]))
        rows += [{"section": name, **row} for row in found]
        console.print(table(f"{name}: {(sections[name].__doc__ or '').strip()}", found))
    if options.save:
        console.print(f"saved {save(options.save, rows)}")


def by_layers(doc: str | None, sections: Mapping[str, Section], layers: int) -> None:
    """The command of sections that take repeats and a number of layers, `layers` unless asked."""
    found = parser(doc, sections, repeats=3)
    found.add_argument("--layers", type=int, default=layers, help="layers of each model")
    options = found.parse_args()

    def run(section: Section) -> Iterator[Row]:
        return ({"layers": options.layers, **row} for row in section(options.repeats, options.layers))

    report(options, sections, run)


def compared(work: str, times: Mapping[str, Timing], unit: str) -> Iterator[Row]:
    """Times of the same work, and how many times as long as `unit` each takes."""
    for name, time in times.items():
        row: Row = {"work": work, "name": name, "ms": time.median * 1e3}
        row |= {"p20": time.p20 * 1e3, "p80": time.p80 * 1e3}
        yield {**row, "times as long": time.median / times[unit].median}


def peaks(work: str, runs: Mapping[str, Function], stock: str) -> Iterator[Row]:
    """Peak memory of the same work, and the share of the stock one's."""
    found = {name: peak_bytes(run) for name, run in runs.items()}
    for name, peak in found.items():
        yield {"work": work, "name": name, "peak MiB": peak / 2**20, "of stock": peak / found[stock]}


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
