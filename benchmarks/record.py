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
from lf_backend.dispatch import registry
from lf_backend.measure import Function, Timing, machine_load, peak_bytes

Row = dict[str, Any]
Section = Callable[..., Iterable[Row]]
NOISY = 0.1  # share by which a time may drift
WORDS = ("section", "work", "name", "situation")  # columns of text
RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Processor and what the native backend uses of it, threads, versions, commit."""
    packages = ("torch", "transformers", "fairseq-fixed", "triton", "xformers")
    return {
        "processor": _processor(),
        "native": registry.get("native").details(),
        "threads": torch.get_num_threads(),
        "load": machine_load(),
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
    found.add_argument("--save", metavar="NAME", help="write NAME.json")
    found.add_argument(
        "--resume", action="store_true", help="keep sections that NAME.json has of this commit"
    )
    found.add_argument("--out", type=Path, default=RESULTS, help="its folder, benchmarks/results by default")
    return found


def parsed(
    parser: argparse.ArgumentParser, module: dict[str, Any], quick: Mapping[str, Any]
) -> argparse.Namespace:
    """Parse the command line; for `--quick`, one round of the module's work at other sizes.

    Args:
        module: the globals of the benchmark.
        quick: names among these, and their values for `--quick`.
    """
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: shows that it all runs")
    options = parser.parse_args()
    if options.quick and getattr(options, "save", None):
        raise SystemExit("--save: no --quick wanted, whose times say nothing")
    if options.quick:
        options.repeats = 1
        module.update(quick)
    return options


def report(
    options: argparse.Namespace, sections: Mapping[str, Section], run: Callable[[Section], Iterable[Row]]
) -> None:
    """Run the sections that were asked for; print their tables, and save all rows, after each."""
    if options.resume and not options.save:
        raise SystemExit("--resume: the --save wanted that was interrupted, got none")
    torch.set_num_threads(options.threads)
    console, here = Console(width=120), environment()
    rows = _saved(options.out / f"{options.save}.json", here) if options.resume else []
    done = {row["section"] for row in rows}
    console.print(here)
    for name in options.only or sections:
        if name in done:
            console.print(f"{name}: kept")
            continue
        found = list(run(sections[name]))
        rows += [{"section": name, **row} for row in found]
        console.print(table(f"{name}: {(sections[name].__doc__ or '').strip()}", found))
        if options.save:
            console.print(f"saved {save(options.save, rows, options.out, here)}")


def _saved(path: Path, here: dict[str, Any]) -> list[Row]:
    """Return what was saved before, on this machine and of this commit; of others nothing is kept."""
    if not path.exists():
        return []
    found = json.loads(path.read_text("utf8"))
    same = all(found["environment"].get(name) == here[name] for name in here if name != "load")
    return list(found["rows"]) if same else []


def by_layers(module: dict[str, Any], sections: Mapping[str, Section], layers: int) -> None:
    """The command of a benchmark whose sections take repeats and a number of layers, `layers` unless asked.

    Args:
        module: the globals of the benchmark, with its `QUICK`.
    """
    found = parser(module["__doc__"], sections, repeats=3)
    found.add_argument("--layers", type=int, default=layers, help="layers of each model")
    options = parsed(found, module, module["QUICK"])

    def run(section: Section) -> Iterator[Row]:
        return ({"layers": options.layers, **row} for row in section(options.repeats, options.layers))

    report(options, sections, run)


def compared(work: str, times: Mapping[str, Timing], unit: str) -> Iterator[Row]:
    """Times of the same work, and how many times as long as `unit` each takes."""
    for name, time in times.items():
        row = {"work": work, "name": name, **timed(time)}
        yield {**row, "times as long": time.median / times[unit].median}


def timed(time: Timing) -> Row:
    """Columns of a time. It is noisy if it drifted by more than a tenth while it was taken."""
    row: Row = {"ms": time.median * 1e3, "p20": time.p20 * 1e3, "p80": time.p80 * 1e3}
    return {**row, "noisy": True} if time.drift > NOISY else row


def peaks(work: str, runs: Mapping[str, Function], stock: str) -> Iterator[Row]:
    """Peak memory of the same work, and the share of the stock one's."""
    found = {name: peak_bytes(run) for name, run in runs.items()}
    for name, peak in found.items():
        yield {"work": work, "name": name, "peak MiB": peak / 2**20, "of stock": peak / found[stock]}


def save(name: str, rows: list[Row], folder: Path = RESULTS, where: dict[str, Any] | None = None) -> Path:
    """Write rows and environment to FOLDER/NAME.json.

    Args:
        where: the environment before anything ran; that of now if it is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    found = {"environment": where or environment(), "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n", "utf8")
    return path


def table(title: str, rows: list[Row]) -> Table:
    """Rows as people read them."""
    found = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        found.add_column(column, justify="left" if column in WORDS else "right")
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
