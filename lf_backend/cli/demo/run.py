"""The demo from its options to its verdict."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.padding import Padding
from rich.progress import Progress
from torch import Tensor, nn

from lf_backend._optional import optional
from lf_backend.api import explain, patch
from lf_backend.cli.arguments import coloured
from lf_backend.cli.demo import comparison, document, report, subject
from lf_backend.errors import LFError
from lf_backend.measure import machine_load
from lf_backend.patching import Report
from lf_backend.pattern.picture import draw
from lf_backend.pattern.terms import Global
from lf_backend.problem import Machine

TOLERANCE = 1e-4  # of the largest output: float32 through 12 layers stays some ten times below
SHORTEST = 512
PLOT = Path("lf-demo.png")


@dataclass(frozen=True)
class Request:
    """The demo's options, as in its `--help`; `plot` is None where nothing was said."""

    files: tuple[Path, ...]
    model: Path | None
    max_length: int
    window: int
    layers: int
    seed: int
    device: str
    plot: Path | None


@dataclass(frozen=True)
class Findings:
    """The results of a demo.

    Attributes:
        document, model: what was read, and by what.
        machine: how busy the machine was before.
        rows: one per length.
    """

    document: str
    model: str
    machine: str
    rows: tuple[comparison.Compared, ...]

    @property
    def worst(self) -> float:
        """The largest difference between the outputs, divided by the largest output."""
        return max(row.difference for row in self.rows)

    @property
    def agree(self) -> bool:
        """Whether both models gave one answer at every length."""
        return all(row.difference <= TOLERANCE for row in self.rows)  # false for NaN

    def as_json(self) -> str:
        """Return the findings as JSON: seconds and bytes."""
        return json.dumps({**asdict(self), "agree": self.agree}, indent=2)


def run(request: Request, console: Console) -> Findings:
    """Run the demo.

    A plot that was asked for and cannot be drawn is an error, before anything is measured. One that
    was not asked for is left out, with a word about it.

    Raises:
        LFError: what cannot be used: a file, a model, a device, a missing package.
    """
    device = _device(request.device)
    if request.plot is not None:
        optional("matplotlib", "plots")
    text = document.read(request.files)
    if request.model is None:
        reader = subject.seeded(request.layers, request.window, request.max_length, request.seed)
    else:
        reader = subject.loaded(request.model)
    tokens = torch.tensor(reader.encode(text.text), device=device)
    longest = _longest(request, reader, text, tokens, console)
    stock = reader.model.to(device)
    ours = comparison.twin(stock)
    with patch(ours) as patched:
        _introduce(patched.report, reader, longest, device, console)
        attention = [row.path for row in patched.report.rows if row.pattern is not None]
        load = machine_load()
        rows = _measure(stock, ours, attention, tokens[:longest], console)
    found = Findings(text.name, reader.name, load, tuple(rows))
    console.print(f"the machine is {load}\n", highlight=False)
    console.print(report.times(rows))
    console.print(report.memory(rows))
    _plot(rows, request, reader, console)
    _say(found, console)
    return found


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise LFError(f"--device: cpu, or cuda where there is one, wanted, got {name!r}")
    return torch.device(name)


def _longest(
    request: Request, reader: subject.Subject, text: document.Document, tokens: Tensor, console: Console
) -> int:
    """The longest length, and a word about what it is cut by."""
    console.print(f"{text.name}: {len(tokens):,} tokens", highlight=False)
    console.print(reader.name, highlight=False)
    longest = min(request.max_length, reader.max_tokens, len(tokens))
    if longest < request.max_length:
        what = "the text has no more" if longest == len(tokens) else "the model has no more positions"
        console.print(f"lengths end at {longest:,}, not {request.max_length:,}: {what}", style="yellow")
    return longest


def _introduce(
    patched: Report, reader: subject.Subject, length: int, device: torch.device, console: Console
) -> None:
    """Print what was patched, what the first layer sees, and which backend runs it."""
    console.print(f"\n{patched}", highlight=False, markup=False, soft_wrap=True)
    pattern = next(row.pattern for row in patched.rows if row.pattern is not None)
    console.print(Padding(coloured(draw(pattern | Global(0), length)), (1, 2)))
    q = torch.empty(1, reader.heads, length, reader.head_dim, device="meta")
    mask = torch.empty(1, length, dtype=torch.bool, device="meta")
    selection = explain(
        q, q, q, pattern, global_mask=mask, global_q=q, global_k=q, global_v=q, machine=Machine.of(device)
    )
    console.print(f"{selection}\n", highlight=False, markup=False, soft_wrap=True)


def _measure(
    stock: nn.Module, ours: nn.Module, attention: list[str], tokens: Tensor, console: Console
) -> list[comparison.Compared]:
    """All lengths up to that of `tokens`, under a progress bar."""
    rows: list[comparison.Compared] = []
    lengths = comparison.lengths(min(SHORTEST, len(tokens)), len(tokens))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(lengths))
        for length in lengths:
            for step in comparison.compare(stock, ours, attention, tokens, length):
                if isinstance(step, comparison.Compared):
                    rows.append(step)
                else:
                    progress.update(task, description=f"{length:,} tokens: {step}")
            progress.advance(task, length)
    return rows


def _plot(
    rows: list[comparison.Compared], request: Request, reader: subject.Subject, console: Console
) -> None:
    path = request.plot or PLOT
    try:
        report.plot(rows, path, reader.name)
    except LFError as error:
        if request.plot is not None:
            raise
        console.print(f"no plot: {error}", style="yellow", highlight=False, markup=False)
        return
    console.print(f"plot: {path}", highlight=False)


def _say(found: Findings, console: Console) -> None:
    """Print the last line: whether the answers agree, and how much is gained at the longest length."""
    last = found.rows[-1]
    answer = "the same answer" if found.agree else "NOT the same answer"
    model = last.stock.seconds.median / last.ours.seconds.median
    attention = last.stock.attention / last.ours.attention
    console.print(
        f"{answer}: largest difference {found.worst:.1e} of the largest output, {TOLERANCE:.0e} allowed; "
        f"at {last.length:,} tokens the attention is {attention:.1f} x as fast, the model {model:.1f} x, "
        f"in {last.ours.bytes / last.stock.bytes:.0%} of the memory",
        style="bold green" if found.agree else "bold red",
        highlight=False,
        soft_wrap=True,
    )
