"""fairseq-train in this process, with one bar of progress, and what its log holds."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import Progress

Record = dict[str, float]


def train(arguments: Sequence[str], log: Path, updates: int, progress: Progress, title: str) -> None:
    """Run fairseq-train until its last update; what was interrupted continues, what is done stays as it is.

    Args:
        arguments: of fairseq-train, with `--log-format json --log-file LOG`.
        log: that file.
        updates: the last update.
        title: of the bar.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with _spoken_to(log.with_name("fairseq.log")), _own_state(log), _followed(log, updates, progress, title):
        from fairseq import options
        from fairseq.dataclass.utils import convert_namespace_to_omegaconf
        from fairseq.distributed import utils as distributed_utils
        from fairseq_cli.train import main

        parser = options.get_training_parser()
        parsed = options.parse_args_and_arch(parser, input_args=list(arguments))
        if updates_of(Path(parsed.save_dir) / "checkpoint_last.pt") < updates:  # fairseq would do one more
            distributed_utils.call_main(convert_namespace_to_omegaconf(parsed), main)


def updates_of(checkpoint: Path) -> int:
    """Updates after which a checkpoint was written, 0 if there is none."""
    from fairseq import checkpoint_utils

    if not checkpoint.exists():
        return 0
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))
    return int(state["optimizer_history"][-1]["num_updates"])


def curves(log: Path) -> tuple[list[Record], list[Record]]:
    """Training and development records of a phase, in the order of updates: `update`, `bits` and `lr`.

    An update that was done again after an interruption counts as it was done last.
    """
    return _curves(log.read_text("utf8") if log.exists() else "")


def _curves(text: str) -> tuple[list[Record], list[Record]]:
    training: dict[int, Record] = {}
    development: dict[int, Record] = {}
    for record in _records(text):
        if "valid_loss" in record:
            update = int(record["valid_num_updates"])
            development[update] = {"update": update, "bits": float(record["valid_loss"])}
        elif "loss" in record and "num_updates" in record:
            update = int(record["num_updates"])
            training[update] = {"update": update, "bits": float(record["loss"]), "lr": float(record["lr"])}
    return [training[at] for at in sorted(training)], [development[at] for at in sorted(development)]


def _records(text: str) -> Iterator[dict[str, Any]]:
    """Yield a log's JSON lines: fairseq writes sentences between them, and repeats lines in later epochs."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            yield record


@contextmanager
def _spoken_to(path: Path) -> Iterator[None]:
    """A file for all that fairseq says, and the console for the bar: it would print from its import on."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s"))
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        handler.close()


@contextmanager
def _own_state(log: Path) -> Iterator[None]:
    """Take back, at the end, what fairseq keeps in its modules and would carry into the next training."""
    from fairseq import checkpoint_utils

    try:
        yield
    finally:
        if hasattr(checkpoint_utils.save_checkpoint, "best"):
            del checkpoint_utils.save_checkpoint.best
        for name in ("fairseq_cli.train", "fairseq.logging.progress_bar"):
            logger = logging.getLogger(name)
            for handler in list(logger.handlers):
                if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == log.resolve():
                    logger.removeHandler(handler)
                    handler.close()


@contextmanager
def _followed(log: Path, updates: int, progress: Progress, title: str) -> Iterator[None]:
    """A bar that follows the log, which is also where the processes of several devices report."""
    task = progress.add_task(title, total=updates)
    done, position = threading.Event(), 0
    latest: dict[str, Record] = {}

    def look() -> None:
        """Read what is new: the log of a long training is large."""
        nonlocal position
        text = _lines_from(log, position)
        position += len(text)
        for name, records in zip(("training", "development"), _curves(text.decode("utf8")), strict=True):
            if records:
                latest[name] = records[-1]
        bits = ", ".join(f"{name} {record['bits']:.3f}" for name, record in latest.items())
        update = max((record["update"] for record in latest.values()), default=0)
        progress.update(task, completed=update, description=f"{title} [dim]{bits}[/dim]")

    def follow() -> None:
        while not done.wait(1.0):
            look()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
        look()


def _lines_from(log: Path, position: int) -> bytes:
    """The whole lines of a file from a position on."""
    if not log.exists():
        return b""
    with log.open("rb") as file:
        file.seek(position)
        text = file.read()
    return text[: text.rfind(b"\n") + 1]
