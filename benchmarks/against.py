"""Two commits in one run: `python -m benchmarks.against REF cpu --only attention --repeats 5`.

The benchmark of this tree measures the package of another commit, then that of this tree, and so on in turn,
each time in a process of its own. A ratio below 1 is faster than the other commit. What does not depend on
either, such as a matrix product, shows how steady the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from rich.console import Console

from benchmarks import record
from benchmarks.record import Row

ROOT = Path(__file__).parents[1]
Times = dict[tuple[str, ...], list[float]]


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("base", metavar="REF", help="the other commit")
    parser.add_argument("benchmark", help="a module of benchmarks, such as cpu")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    options, rest = parser.parse_known_args()
    times: dict[str, Times] = {options.base: {}, "here": {}}
    with package_of(options.base) as other:
        for _ in range(options.repeats):
            for name, tree in ((options.base, other), ("here", ROOT)):
                for row in measured(tree, options.benchmark, rest):
                    key = tuple(str(row.get(word, "")) for word in ("section", "situation", "work", "name"))
                    times[name].setdefault(key, []).append(row["ms"])
    Console(width=140).print(record.table(f"this tree against {options.base}", list(compared(times))))


def compared(times: dict[str, Times]) -> Iterator[Row]:
    """Medians of what both have, and their ratio."""
    (base, before), (_, after) = times.items()
    for key in filter(after.__contains__, before):
        ms = median(before[key]), median(after[key])
        _, situation, work, name = key
        work = f"{situation}, {work}" if situation else work
        yield {"work": work, "name": name, f"{base}, ms": ms[0], "here, ms": ms[1], "ratio": ms[1] / ms[0]}


@contextmanager
def package_of(ref: str) -> Iterator[Path]:
    """A folder with the package of another commit, built, and the benchmarks of this tree."""
    with tempfile.TemporaryDirectory() as folder:
        tree, mixed = Path(folder, "tree"), Path(folder, "mixed")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(tree), ref], check=True, capture_output=True)
        try:
            subprocess.run([sys.executable, "hatch_build.py"], cwd=tree, check=True)
            mixed.mkdir()
            for name, owner in (("lf_backend", tree), ("integrations", tree), ("benchmarks", ROOT)):
                (mixed / name).symlink_to(owner / name)
            yield mixed
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def measured(tree: Path, benchmark: str, options: list[str]) -> list[Row]:
    """Rows with a time, of one round."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--repeats", "1", *options]
        paths = os.pathsep.join([str(tree), str(tree / "integrations")])
        subprocess.run(
            [*command, "--save", "round", "--out", folder],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": paths},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rows: list[Row] = json.loads(Path(folder, "round.json").read_text("utf8"))["rows"]
    return [row for row in rows if "ms" in row]


if __name__ == "__main__":
    main()
