"""The published training in numbers, and the command of fairseq-train that is one phase of it.

Beltagy et al. 2020, section 4.1 and table 12. Training has five phases; from one to the next the windows
and the length of sequences double and the learning rate halves. What the paper leaves open:

- A phase takes over the weights alone. The optimizer starts anew, and so does the warm-up, which the paper
  gives for each phase.
- After the warm-up the learning rate is constant within a phase.
- Adam's betas and epsilon are those of AdamW's authors, (0.9, 0.999) and 1e-8.

`laptop` is ours: the same in small, for two cores of a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lf_backend as lf
from lf_backend.errors import LFError

LAST_PHASE = 5
USER_DIR = Path(__file__).parents[1]


@dataclass(frozen=True)
class Phase:
    """One of the five trainings.

    Attributes:
        length: characters of a sequence.
        batch: sequences of an update, over all devices and accumulation.
        schedule: what each layer sees, bottom first.
    """

    number: int
    length: int
    learning_rate: float
    batch: int
    updates: int
    schedule: lf.schedules.Schedule

    @property
    def warmup(self) -> int:
        """A tenth of the updates, at most 10,000."""
        return min(self.updates // 10, 10_000)


@dataclass(frozen=True)
class Size:
    """A model and its training.

    Attributes:
        arch: of `lf_fairseq.archs.longformer_lm`.
        schedule: the windows of a phase.
        lengths, batches, updates: of each phase.
        sequences: of a batch that one device takes at a time, in each phase; the rest accumulates.
        learning_rate: of the first phase.
        evaluation: length and step of the sequences that give bits per character.
        evaluated: characters of the test text that are scored, None for all.
        validation: updates between two looks at the development text.
        look: batches of it that a look takes, None for all, 0 for no look.
        block: `--position-block`.
    """

    name: str
    arch: str
    schedule: Callable[[int], lf.schedules.Schedule]
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    sequences: tuple[int, ...]
    updates: tuple[int, ...]
    learning_rate: float
    evaluation: tuple[int, int]
    validation: int
    block: int
    look: int | None = None
    evaluated: int | None = None
    weight_decay: float = 0.01
    clip: float = 0.25

    def phase(self, number: int) -> Phase:
        """One phase, 1 to 5."""
        if not 1 <= number <= LAST_PHASE:
            raise LFError(f"--phase: 1 to {LAST_PHASE} wanted, got {number}")
        at = number - 1
        return Phase(
            number,
            self.lengths[at],
            self.learning_rate / 2**at,
            self.batches[at],
            self.updates[at],
            self.schedule(number),
        )

    def trial(self, updates: int) -> Size:
        """Return a trial of the phases: so many updates in each, and little text to evaluate."""
        return replace(
            self,
            updates=(updates,) * LAST_PHASE,
            validation=updates,
            look=1,
            evaluated=sum(self.evaluation),  # two sequences
        )


def _laptop(phase: int) -> lf.schedules.Schedule:
    """6 layers of 4 heads; windows from 8 to 64 keys in phase 1, dilation on 2 heads of the upper half."""
    factor = 2 ** (phase - 1)
    return lf.schedules.dilated(lf.schedules.growing(6, 8 * factor, 64 * factor), (1, 1, 1, 2, 3, 4), heads=4)


SMALL = Size(
    name="small",
    arch="longformer_lm_small",
    schedule=lambda phase: lf.schedules.longformer_lm("small", phase),
    lengths=(2048, 4096, 8192, 16384, 23040),
    batches=(32, 32, 16, 16, 16),
    sequences=(4, 2, 1, 1, 1),
    updates=(430_000, 50_000, 50_000, 35_000, 5_000),
    learning_rate=2.5e-4,
    evaluation=(32_256, 512),
    validation=2_000,
    block=1024,
)
LARGE = replace(
    SMALL,
    name="large",
    arch="longformer_lm_large",
    schedule=lambda phase: lf.schedules.longformer_lm("large", phase),
    updates=(350_000, 25_000, 10_000, 5_000, 5_000),
    validation=1_000,
)
LAPTOP = Size(
    name="laptop",
    arch="longformer_lm_laptop",
    schedule=_laptop,
    lengths=(256, 512, 1024, 2048, 4096),
    batches=(16, 8, 4, 2, 1),
    sequences=(16, 8, 4, 2, 1),
    updates=(300, 60, 50, 40, 20),
    learning_rate=2e-3,
    evaluation=(4096, 2048),
    evaluated=65_536,
    validation=100,
    look=8,
    block=0,
)
SIZES = {size.name: size for size in (SMALL, LARGE, LAPTOP)}


@dataclass(frozen=True)
class Run:
    """The folders and devices of a training.

    Attributes:
        data: folder of binarised data.
        out: folder of the results; phase 3 writes to `out/phase3`.
        sequences: of one device at a time, instead of the size's.
        devices: GPUs; 0 is the CPU.
        half: half precision, with attention in float32.
    """

    data: Path
    out: Path
    seed: int = 1
    sequences: int | None = None
    devices: int = 0
    half: bool = False

    def folder(self, phase: int) -> Path:
        return self.out / f"phase{phase}"

    def checkpoint(self, phase: int) -> Path:
        """The checkpoint that a finished phase leaves and an interrupted one continues."""
        return self.folder(phase) / "checkpoint_last.pt"

    def log(self, phase: int) -> Path:
        """The log, in which fairseq reports as JSON among other lines."""
        return self.folder(phase) / "train.log"


def identity(size: Size, phase: Phase, run: Run) -> dict[str, Any]:
    """Describe the training itself: everything but folders, devices and portions."""
    return {
        "arch": size.arch,
        "windows": [pattern.text for pattern in phase.schedule],
        "length": phase.length,
        "batch": phase.batch,
        "updates": phase.updates,
        "learning_rate": phase.learning_rate,
        "seed": run.seed,
    }


def arguments(size: Size, phase: Phase, run: Run) -> list[str]:
    """Return fairseq-train's arguments for one phase; repeated, they continue an interrupted one.

    Raises:
        LFError: a batch that devices and sequences do not divide, or half precision without a GPU.
    """
    if run.half and not run.devices:
        raise LFError(
            "--half: at least one GPU wanted, fairseq has no half precision on a CPU, got --devices 0"
        )
    model = {
        "--user-dir": USER_DIR,
        "--arch": size.arch,
        "--attention-pattern": json.dumps([pattern.text for pattern in phase.schedule]),
        "--position-block": size.block,
        "--seed": run.seed,
    }
    if phase.number > 1:
        model["--finetune-from-model"] = run.checkpoint(phase.number - 1)  # weights alone, the first time
    options = {**model, **_text(size, phase, run), **_optimizer(size, phase), **_files(size, phase, run)}
    flags = ["--no-epoch-checkpoints"]
    flags += (
        ["--disable-validation"] * (size.look == 0) + ["--fp16"] * run.half + ["--cpu"] * (not run.devices)
    )
    return [str(run.data), *(str(part) for pair in options.items() for part in pair), *flags]


def _text(size: Size, phase: Phase, run: Run) -> dict[str, Any]:
    """Arguments that say which data are read, and how much at a time."""
    devices = max(run.devices, 1)
    sequences = run.sequences or size.sequences[phase.number - 1]
    if phase.batch % (sequences * devices):
        raise LFError(
            f"--sequences: times {devices} devices a divisor of the batch, {phase.batch}, wanted, "
            f"got {sequences}"
        )
    return {
        "--task": "language_modeling",
        "--tokens-per-sample": phase.length,
        "--sample-break-mode": "none",
        "--batch-size": sequences,
        "--update-freq": phase.batch // (sequences * devices),
        "--num-workers": 0,
        **({"--distributed-world-size": run.devices} if run.devices else {}),
    }


def _optimizer(size: Size, phase: Phase) -> dict[str, Any]:
    return {
        "--criterion": "cross_entropy",
        "--optimizer": "adam",  # decouples weight decay, as AdamW
        "--adam-betas": "(0.9, 0.999)",
        "--adam-eps": "1e-8",
        "--weight-decay": size.weight_decay,
        "--clip-norm": size.clip,
        "--lr-scheduler": "fixed",
        "--lr": phase.learning_rate,
        "--warmup-updates": phase.warmup,
        "--max-update": phase.updates,
    }


def _files(size: Size, phase: Phase, run: Run) -> dict[str, Any]:
    """Arguments that say which files are written and when, and what is evaluated then."""
    options = {
        "--save-dir": run.folder(phase.number),
        "--save-interval-updates": size.validation,
        "--keep-interval-updates": 1,
        "--log-format": "json",
        "--log-file": run.log(phase.number),
        "--log-interval": max(1, min(100, phase.updates // 20)),
    }
    if size.look:
        options["--max-valid-steps"] = size.look - 1  # fairseq takes one more than it is told
    return options
