"""The folder of a run: whose it is, the commands that were given, results, and the last whole checkpoint."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lf_huggingface.errors import RecipeError

IDENTITY, COMMANDS, METRICS = "run.json", "commands.jsonl", "metrics.json"
CHECKPOINTS, BEST = "checkpoints", "model"
_WHOLE = "trainer_state.json"  # Trainer writes it last
_PACKAGES = ("lf-backend", "torch", "transformers", "accelerate")


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder that of one run, which no other may continue.

    Raises:
        RecipeError: it belongs to another run, or holds other things.
    """
    path, wanted = folder / IDENTITY, json.loads(json.dumps(identity))
    if path.exists():
        found = read_json(path)
        if different := sorted(
            name for name in wanted.keys() | found.keys() if found.get(name) != wanted.get(name)
        ):
            raise RecipeError(
                f"--out: the folder of the same run wanted, {folder} belongs to one with another "
                + ", ".join(f"{name} ({found.get(name)}, not {wanted.get(name)})" for name in different)
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"--out: a new or empty folder, or that of a run, wanted, got {folder}")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)


def owner(folder: Path | None) -> dict[str, Any]:
    """The identity of the run that a folder belongs to.

    Raises:
        RecipeError: it belongs to none.
    """
    if folder is None or not (folder / IDENTITY).exists():
        raise RecipeError(f"--out: the folder of a trained run wanted, got {folder}")
    found: dict[str, Any] = read_json(folder / IDENTITY)
    return found


def note_command(folder: Path, arguments: list[str]) -> None:
    """Add the command line of this process to those of the run, with versions and time."""
    versions = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    command = shlex.join(["python", "-m", "lf_huggingface.recipes", *arguments])
    line = {
        "command": command,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": sys.version.split()[0],
    }
    with (folder / COMMANDS).open("a", encoding="utf8") as file:
        file.write(json.dumps({**line, **versions}) + "\n")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; one that was cut short does not count."""
    whole = [path.parent for path in (folder / CHECKPOINTS).glob(f"checkpoint-*/{_WHOLE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def read_json(path: Path) -> Any:
    """The content of one of our own JSON files."""
    return json.loads(path.read_text("utf8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf8")
    partial.replace(path)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
